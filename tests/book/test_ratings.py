"""Pairs to rate: what is worth a comparison, masked, and blind in the page."""

from __future__ import annotations

from test_element import HOSTILE, Page

from companion.book import censor
from companion.book.widgets import ratings

ORIGINALS = ["You fucking fool.", "You are kind.", "What a stupid idea!"]
OURS = ["You good fool.", "You are kind.", "What a great idea!"]
OTHERS = {"delete": ["You fool.", "You kind.", "What  a great idea!"], "people": [*ORIGINALS]}


def test_only_different_rewrites_are_compared():
    found = ratings.pairs(ORIGINALS, OURS, OTHERS)
    assert [(pair["way"], pair["ours"]) for pair in found] == [
        ("delete", OURS[0]),  # not the second, which we left alone, nor the third, which is the same
        ("people", OURS[0]),
        ("people", OURS[2]),
    ]
    assert ratings.pairs(ORIGINALS, ORIGINALS, OTHERS) == []


def test_strong_words_are_masked():
    [first, *_] = ratings.pairs(ORIGINALS, OURS, OTHERS)
    assert first["original"] == censor.censored(ORIGINALS[0]) != ORIGINALS[0]


def test_the_page_has_every_pair_and_no_text_outside_its_data():
    found = ratings.pairs(ORIGINALS, OURS, OTHERS)
    page = Page(ratings.html(found, ours="MaRCo", title="T").data)
    assert page.data == {"ours": "MaRCo", "pairs": found}
    assert not any(OURS[0] in text for text in page.text)  # who wrote what, only the script knows
    for hostile in HOSTILE:
        pair = {"original": hostile, "ours": hostile, "other": "b", "way": hostile}
        assert Page(ratings.html([pair], ours=hostile, title="T").data).data["pairs"] == [pair]
