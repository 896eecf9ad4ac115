"""What the tests of this folder share: where the built book is, and how a page of it is opened."""

from __future__ import annotations

from playwright.sync_api import Page

from companion import paths
from companion.book import contents

SITE = paths.build() / "site" / "_build" / "html"
PAGES = contents.pages()
CHAPTERS = [page for page in PAGES if page.startswith("chapters/")]
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 375, "height": 667}


def show(page: Page, name: str) -> Page:
    """Open a page of the book and wait until its formulas are set."""
    page.goto(f"/{name}.html")
    page.evaluate("window.MathJax?.startup?.promise")
    return page
