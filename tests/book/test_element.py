"""What all elements of a page share: nothing in their data can break the page, and they need nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from companion.book.widgets import blanks, element, explorer, ratings

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<b>&amp;",
    "@id@ @data@",
    '"\\',
    " ",
    "日本 ’",
    "</SCRIPT >",
    "\\1 \\g<0>",
)


class Page(HTMLParser):
    """Tags of a page, and the text within its script elements, read by HTML's rules."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        inside = self.tags[-1][0] if self.tags else None
        (self.scripts if inside == "script" else self.text).append(data)

    @property
    def data(self) -> dict:
        return next(json.loads(script) for script in self.scripts if script.startswith("{"))


TEMPLATES = {"neurons": explorer.TEMPLATE, "blanks": blanks.TEMPLATE, "ratings": ratings.TEMPLATE}


@pytest.fixture(params=TEMPLATES)
def html(request):
    """Fill one of the templates; returns the text."""

    def fill(token: str = "token", title: str = "T") -> str:
        template, markup = TEMPLATES[request.param], {"legend": "", "accent": "#000000"}
        made = element.html(template, request.param, {"tokens": [token]}, title=title, note="note", **markup)
        return made.data

    return fill


@pytest.mark.parametrize("token", HOSTILE)
def test_no_token_breaks_out_of_the_data(html, token):
    text = html(token)
    assert Page(text).data == {"tokens": [token]}
    assert [tag for tag, _ in Page(text).tags] == [tag for tag, _ in Page(html()).tags]
    # a browser's rules are stranger than HTMLParser's
    assert text.count("<script") == text.count("</script>") == 2 and "<!--" not in text


def test_a_title_never_becomes_markup(html):
    page = Page(html(title="<i>T</i> & </style>"))
    assert "<i>T</i> & </style>" in page.text and "i" not in {tag for tag, _ in page.tags}


def test_self_contained_and_filled_in(html):
    assert not re.search(r"https?://|@import|\bsrc=|\bhref=|fetch\(|@[a-z]+@", html())
    assert not re.search("innerHTML|insertAdjacentHTML|document\\.write", html())
    assert "<noscript>" in html() and "@media print" in html()


def test_the_same_input_gives_the_same_text_and_others_another_id(html):
    assert html() == html()
    texts = [html(), html("other"), html(title="U")]
    assert len({re.search(r'id="((?:neurons|blanks|ratings)-\w+)"', text)[1] for text in texts}) == 3
