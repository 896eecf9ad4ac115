"""The built book in Debian's Chromium, served from this machine: one browser for all, one tab a module."""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from built import DESKTOP, PAGES, SITE, show
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder: a plain run of pytest leaves it out."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


class Silent(SimpleHTTPRequestHandler):
    """A server that does not print what it serves."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """Address of the built book. Whoever asks for these tests wants them run: without a book they stop."""
    if not (SITE / "index.html").is_file():
        pytest.exit(f"there is no book in '{SITE}': run `companion build` first", returncode=1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.exit("there is no Chromium: `apt-get install chromium`", returncode=1)
    with sync_playwright() as playwright:
        # Playwright hides scrollbars; whether they can be seen is one of the questions.
        browser = playwright.chromium.launch(
            executable_path=chromium, args=FLAGS, ignore_default_args=["--hide-scrollbars"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser: Browser, site: str) -> Iterator[Page]:
    """A tab of a desk's size that all tests of a module share."""
    with browser.new_context(viewport=DESKTOP, base_url=site) as context:
        yield context.new_page()


@pytest.fixture(scope="module", params=PAGES)
def opened(request: pytest.FixtureRequest, page: Page) -> Page:
    """Each page of the book in turn, opened once for all tests of a module."""
    return show(page, request.param)
