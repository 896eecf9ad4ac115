"""Blind pairs of rewrites for a reader to rate, in the built page; nothing leaves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from IPython.display import HTML

from companion.book import censor, plots
from companion.book.widgets import element

TEMPLATE = Path(__file__).with_name("ratings.html")
NOTE = (
    "Two rewrites of one sentence, in random order, without a word on who wrote them. Nothing that you click "
    "leaves this page; reloading forgets it, and Save writes a file on your machine. Strong words are masked."
)


def pairs(
    originals: Sequence[str], ours: Sequence[str], others: Mapping[str, Sequence[str]]
) -> list[dict[str, str]]:
    """Each rewrite of ours that is no original, beside those of other ways that differ in more than space.

    Texts are censored (:func:`companion.book.censor.censored`).
    """
    return [
        {"original": censor.censored(original), "ours": censor.censored(own), "other": censor.censored(text)}
        | {"way": way}
        for way, texts in others.items()
        for original, own, text in zip(originals, ours, texts, strict=True)
        if own != original and text.split() != own.split()
    ]


def html(found: Sequence[Mapping[str, str]], *, ours: str, title: str) -> HTML:
    """The element: ``found`` is from :func:`pairs`, ``ours`` the name of what all are compared with."""
    data = {"ours": ours, "pairs": list(found)}
    return element.html(TEMPLATE, "ratings", data, title=title, note=NOTE, accent=plots.DPO)
