"""The card of the scorers, ``data/scorer/card.json``: its lines, their targets, and what they say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from companion.book import published_values
from companion.data import by_profile
from companion.metrics.estimates import Estimate

SCORERS = ("lexical", "embedded", "second", "detoxify")
Card = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Line:
    """One line of the card: where its value is in an examination, and what is wanted of it.

    ``better`` is ↑ or ↓. ``published`` is the metric under which ``data/published.csv`` has Perspective's.
    """

    label: str
    path: str
    better: str
    target: float | None = None
    published: str | None = None

    def of(self, exam: Mapping[str, Any]) -> Estimate:
        """The line's value for one scorer."""
        found: Any = exam
        for key in self.path.split("/"):
            found = found[key]
        return Estimate(found["value"], found["low"], found["high"], found["n"])

    def met(self, exam: Mapping[str, Any]) -> bool:
        """Whether the value, as the table shows it, reaches the target; True where there is none."""
        value = round(self.of(exam).value, 3)
        return self.target is None or (value >= self.target if self.better == "↑" else value <= self.target)


LINES = (
    Line("HateCheck: right", "hatecheck/overall", "↑", 0.80, "right"),
    Line("HateCheck: hateful cases right", "hatecheck/hateful", "↑", None, "right_hateful"),
    Line("HateCheck: harmless cases right", "hatecheck/harmless", "↑", 0.65, "right_harmless"),
    Line("madlibs: AUC", "madlibs/auc", "↑", 0.90),
    Line("madlibs: lowest BPSN of a group", "madlibs/worst/bpsn", "↑", 0.85),
    Line("madlibs: highest harmless mean of a group", "madlibs/worst/harmless", "↓", 0.30),
    Line("mean change when groups are exchanged", "exchange/mean", "↓", 0.05),
    Line("rank correlation with Perspective", "perspective/spearman", "↑", 0.87),
    Line("AUC for Perspective ≥ .5", "perspective/auc", "↑"),
    Line("Jigsaw: AUC", "sets/jigsaw", "↑", 0.957),
    Line("Social Bias Frames: AUC", "sets/sbf", "↑", 0.856),
    Line("DynaHate: AUC", "sets/dynahate", "↑", 0.719),
    Line("ParaDetox: AUC", "sets/paradetox", "↑", 0.983),
    Line("negated insults: harmless right", "own/neg/harmless", "↑"),
    Line("praise with profanity: harmless right", "own/prof/harmless", "↑"),
    Line("counter-speech: harmless right", "own/counter/harmless", "↑"),
)


def load() -> dict[str, dict[str, Any]]:
    """The examinations of the shipped card, by scorer, in the usual order."""
    found = json.loads(by_profile.shipped("scorer/card.json").read_text(encoding="utf-8"))
    return {name: found[name] for name in SCORERS if name in found}


def perspective(metric: str | None) -> float | None:
    """What HateCheck's authors measured of Perspective, on all their cases."""
    rows = published_values.rows(source="rottger2021", intervention="Perspective")
    values = rows[rows.metric == metric].value
    return float(values.iloc[0]) if len(values) else None


def table(card: Card) -> pd.DataFrame:
    """The lines of the card: a column per scorer, the target, and Perspective's published value."""
    return pd.DataFrame(
        [
            {
                "": f"{line.label} {line.better}",
                **{name: f"{line.of(exam):.3f}" for name, exam in card.items()},
                "n": f"{line.of(next(iter(card.values()))).n:,}",
                "target": bound(line),
                "Perspective, published": number(perspective(line.published)),
            }
            for line in LINES
        ]
    )


def verdict(card: Card, scorer: str) -> str:
    """What a scorer's examination says of it, as the end of a sentence that begins with its name."""
    if scorer not in card:
        return "is not on the card"
    aims = [line for line in LINES if line.target is not None]
    missed = [line for line in aims if not line.met(card[scorer])]
    if not missed:
        return f"reaches each of the {len(aims)} targets"
    found = "; ".join(
        f"{line.label} ({line.of(card[scorer]).value:.3f}, wanted {bound(line)})" for line in missed
    )
    return f"reaches {len(aims) - len(missed)} of the {len(aims)} targets and misses these: {found}"


def differences(card: Card, one: str = "embedded", other: str = "second", most: float = 0.05) -> str:
    """Where two scorers are further apart than allowed, as the end of a sentence about both."""
    if not {one, other} <= set(card):
        return "are not both on the card"
    values = {line.label: [line.of(card[name]).value for name in (one, other)] for line in LINES}
    apart = [f"{label} ({a:.3f}, {b:.3f})" for label, (a, b) in values.items() if abs(a - b) > most]
    near = f"are within {most:g} of each other on"
    if not apart:
        return f"{near} every line"
    return f"{near} {len(LINES) - len(apart)} of {len(LINES)} lines, but for: {'; '.join(apart)}"


def bent(card: Card, scorer: str) -> str:
    """Whether the name of a group moves a scorer, in sentences that the result chooses.

    By the exchange of names alone: a scorer that is blind to groups, or knows nothing at all, is not moved
    by it, while the lowest BPSN of fifty groups is low for any scorer that tells toxic from harmless badly.
    """
    if scorer not in card:
        return "How it takes the names of groups is not known here."
    line = next(line for line in LINES if line.path == "exchange/mean")
    change, most = line.of(card[scorer]), line.target or 0.0
    found = f"exchanging the names of groups changes its score by {change:.3f} on average (n = {change.n:,})"
    if change.high <= most:
        return f"A name alone moves it little: {found}."
    if change.low <= most:
        return f"Whether a name alone moves it by more than {most:g} cannot be told: {found}."
    return (
        f"A name alone moves it: {found}. A method may then lower the score by losing the name and keeping "
        "the insult: mind that at every drop in this book. Chapter 11 counts the words for groups that MaRCo "
        "keeps."
    )


def bound(line: Line) -> str:
    """A line's target as text."""
    return "" if line.target is None else f"{'≥' if line.better == '↑' else '≤'} {line.target:g}"


def number(value: float | None) -> str:
    """A number that may be missing, as text."""
    return "" if value is None else f"{value:.3f}"
