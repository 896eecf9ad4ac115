"""Every page: nothing missing, nothing from elsewhere, no complaint in the console, and not too heavy."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from bs4 import BeautifulSoup
from built import DESKTOP, PAGES, SITE

PAGE_LIMIT, SITE_LIMIT = 2e6, 40e6  # bytes


@functools.cache
def sent(path: Path) -> int:
    """Bytes of a file as a host that compresses sends them, as GitHub Pages does."""
    return len(gzip.compress(path.read_bytes()))


@pytest.fixture(scope="module", params=PAGES)
def visit(request, browser, site) -> dict[str, list[str]]:
    """A first visit (a context of its own, so an empty cache), to the end: what it asked for and said."""
    asked, said = [], []
    with browser.new_context(viewport=DESKTOP) as context:
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        page.on("response", lambda r: said.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        page.goto(f"{site}/{request.param}.html", wait_until="networkidle")
        page.evaluate("document.querySelectorAll('img').forEach((image) => { image.loading = 'eager'; })")
        page.wait_for_load_state("networkidle")
        return {"asked": asked, "said": said, "site": [url.removeprefix(f"{site}/") for url in asked]}


def test_the_console_is_silent_and_nothing_is_missing(visit):
    assert not visit["said"]


def test_no_request_leaves_the_host(visit, site):
    assert not [url for url in visit["asked"] if not url.startswith((f"{site}/", "data:", "blob:"))]


def test_no_page_is_heavy(visit):
    files = {SITE / unquote(urlsplit(url).path) for url in visit["site"]}
    weight = sum(sent(path) for path in files if path.is_file())
    assert 1e5 < weight < PAGE_LIMIT


def test_the_site_is_not_heavy():
    assert sum(path.stat().st_size for path in SITE.rglob("*") if path.is_file()) < SITE_LIMIT


@functools.cache
def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@functools.cache
def anchors(path: Path) -> set[str]:
    return {tag.get("id") or tag.get("name") for tag in parsed(path).find_all(["a", True]) if tag.attrs}


def broken(path: Path, link: str) -> bool:
    """Whether a link within the site leads nowhere."""
    address, base = urlsplit(link), f"/{path.relative_to(SITE).as_posix()}"
    target = SITE / unquote(urljoin(base, address.path)).lstrip("/") if address.path else path
    if not target.is_file():
        return True
    fragment = unquote(address.fragment)
    return bool(fragment) and target.suffix == ".html" and fragment not in anchors(target)


@pytest.mark.parametrize("name", PAGES)
def test_links_and_anchors_lead_somewhere(name):
    path = SITE / f"{name}.html"
    links = {
        tag.get("href") or tag.get("src") for tag in parsed(path).find_all(["a", "img", "link", "script"])
    }
    inner = {link for link in links - {None, "#"} if not urlsplit(link).scheme}
    assert parsed(path).find("link", rel="icon")
    assert inner and not sorted(link for link in inner if broken(path, link))


@pytest.mark.parametrize("name", PAGES)
def test_figures_load_when_they_come_into_view(name):
    images = parsed(SITE / f"{name}.html").select("article img")
    assert not [image["src"] for image in images if image.get("loading") != "lazy"]
