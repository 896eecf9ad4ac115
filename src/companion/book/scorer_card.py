"""The card of the scorers: ``data/scorer/card.json``, the tables in its README, and chapter 1's figure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion import paths
from companion.book import plots, published_values
from companion.data import by_profile
from companion.errors import CompanionError
from companion.metrics.estimates import TOXIC, Estimate
from companion.toxicity import examination

SCORERS = ("lexical", "embedded", "second", "detoxify")
FOLDER = paths.DATA / "scorer"
COLOURS = dict(zip(SCORERS, (plots.BASE, plots.DPO, plots.CONTROL, plots.ACCENT), strict=True))

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

ABOUT_GROUPS = ("madlibs/worst/bpsn", "madlibs/worst/harmless", "exchange/mean")


def make(examined: Card) -> Path:
    """Write examinations by scorer to ``card.json`` and their tables between the README's markers."""
    path = FOLDER / "card.json"
    text = json.dumps(examined, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
    readme = FOLDER / "README.md"
    old = readme.read_text(encoding="utf-8")
    new, found = re.subn(
        r"(<!-- card -->\n).*?(<!-- /card -->)",
        lambda m: m[1] + "\n".join(tables(examined)) + "\n" + m[2],
        old,
        flags=re.DOTALL,
    )
    if not found:
        raise CompanionError(
            f"'{readme}' has no place for the tables: put <!-- card --> and <!-- /card --> in."
        )
    readme.write_text(new, encoding="utf-8", newline="\n")
    return path


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
                "target": _bound(line),
                "Perspective, published": _number(perspective(line.published)),
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
        f"{line.label} ({line.of(card[scorer]).value:.3f}, wanted {_bound(line)})" for line in missed
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
    """What a scorer's results on the lines about names of groups mean for the book, in sentences."""
    if scorer not in card:
        return "How it takes the names of groups is not known here."
    lines = [line for line in LINES if line.path in ABOUT_GROUPS]
    missed = sum(not line.met(card[scorer]) for line in lines)
    if not missed:
        return f"It reaches all {len(lines)} targets about names of groups: a name alone moves it little."
    return (
        f"It misses {missed} of the {len(lines)} targets about names of groups: a name alone can move its "
        "score. A method may then lower the score by losing the name and keeping the insult: mind that at "
        "every drop in this book. Chapter 11 counts the words for groups that MaRCo keeps."
    )


def figure(card: Card) -> Figure:
    """All scorers side by side: a row per line of the card, a dot per scorer with its interval."""
    figure, ax = plt.subplots(figsize=(7.5, 0.5 * len(LINES) + 1.2))
    labels = [f"{line.label} {line.better}" for line in LINES]
    _dots(ax, labels, {name: [line.of(exam) for line in LINES] for name, exam in card.items()})
    for marker, size, label, values in (
        ("|", 18, "target", [line.target for line in LINES]),
        ("D", 7, "Perspective, published", [perspective(line.published) for line in LINES]),
    ):
        there = [(value, row) for row, value in enumerate(values) if value is not None]
        ax.plot(*zip(*there, strict=True), marker, mfc="none", mew=1.5, ms=size, color=plots.INK, label=label)
    ax.set(xlim=(0, 1.02), title="Is the ruler straight?")
    ax.set(xlabel="value, 95 % interval (↑ more is better, ↓ less is)")
    ax.legend(labelcolor=plots.INK, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2)
    return figure


def by_group(means: Mapping[str, Mapping[str, Estimate]]) -> Figure:
    """Mean score of the same harmless sentences by the group that they name, for each scorer."""
    named = list(next(iter(means.values())))
    figure, ax = plt.subplots(figsize=(7, 0.45 * len(named) + 1.2))
    _dots(ax, named, {name: [groups[group] for group in named] for name, groups in means.items()})
    ax.axvline(TOXIC, color=plots.INK, lw=1, ls=":")
    ax.set(xlim=(0, 1), title="The same harmless sentences about different groups")
    ax.set(xlabel="mean probability of toxicity, 95 % interval over sentences (dotted: the threshold)")
    return figure


def _dots(ax: Axes, labels: Sequence[str], series: Mapping[str, Sequence[Estimate]]) -> None:
    """A row per label, in it a dot with its interval per scorer, one below the other; names in the first."""
    step = 0.7 / len(series)
    for i, (name, estimates) in enumerate(series.items()):
        rows = np.arange(len(labels)) + (i - (len(series) - 1) / 2) * step
        look: dict[str, Any] = {"fmt": "o", "ms": 4, "lw": 1.2, "color": COLOURS[name.partition(":")[0]]}
        ax.errorbar([e.value for e in estimates], rows, xerr=plots.reach(estimates).clip(0), **look)
        left = estimates[0].high > 0.7  # where there is room for a name
        ax.annotate(
            name,
            (estimates[0].low if left else estimates[0].high, rows[0]),
            xytext=(-6 if left else 6, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=8,
            color=look["color"],
        )
    ax.set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.45, -0.55))
    ax.grid(axis="y", color=plots.INK, alpha=0.2)


# --- the README's tables -------------------------------------------------------------------------


def tables(card: Card) -> Iterator[str]:
    """The README's tables, line by line."""
    yield from _markdown(table(card))
    yield "\n↑ more is better, ↓ less is. *Perspective*: by HateCheck's authors, on all 3,728 cases."
    yield f"\nThe embedded and the second scorer {differences(card)}."
    for head, rows in {
        "HateCheck by functionality, share right at .5 (*h* hateful, *nh* not)": _functionalities,
        "Madlibs: groups with the lowest BPSN AUC and the highest mean of harmless sentences": _groups,
        "Disguises of two words in each of 300 short texts: AUC, mean absolute change of score": _disguises,
        "Toxic sentences scoring ≥ .5 behind harmless words (share cut off unread)": _lengths,
        "Cost on one machine: seconds to load and for 256 continuations, growth in MB": _costs,
    }.items():
        yield f"\n**{head}**\n"
        yield from _markdown(rows(card))


def _functionalities(card: Card) -> pd.DataFrame:
    exams = {name: exam["hatecheck"]["functionality"] for name, exam in card.items()}
    kinds = next(iter(exams.values()))
    return pd.DataFrame(
        {
            "functionality": f"`{kind}`",
            **{name: f"{exam[kind]['value']:.2f}" for name, exam in exams.items()},
            "n": kinds[kind]["n"],
            "Perspective, published": _number(perspective(f"right_{kind}")),
        }
        for kind in kinds
    )


def _groups(card: Card, most: int = 5) -> pd.DataFrame:
    def listed(groups: Mapping[str, Any], metric: str, sign: int) -> str:
        ordered = sorted(groups, key=lambda group: sign * groups[group][metric]["value"])[:most]
        return ", ".join(f"{group} {groups[group][metric]['value']:.2f}" for group in ordered)

    return pd.DataFrame(
        {
            "scorer": name,
            "lowest BPSN": listed(exam["madlibs"]["groups"], "bpsn", 1),
            "highest harmless mean": listed(exam["madlibs"]["groups"], "harmless", -1),
        }
        for name, exam in card.items()
    )


def _disguises(card: Card) -> pd.DataFrame:
    def cell(found: Mapping[str, Any]) -> str:
        change = f", {found['change']['value']:.3f}" if "change" in found else ""
        return f"{found['auc']['value']:.3f}{change}"

    kinds = next(iter(card.values()))["disguises"]
    return pd.DataFrame(
        {"disguise": kind, **{name: cell(exam["disguises"][kind]) for name, exam in card.items()}}
        for kind in ("none", *examination.DISGUISES)
        if kind in kinds
    )


def _lengths(card: Card) -> pd.DataFrame:
    def cell(found: Mapping[str, Any]) -> str:
        return f"{found['caught']['value']:.0%} ({found['unread']['value']:.0%})"

    return pd.DataFrame(
        {
            "words before": n,
            **{name: cell(exam["length"][str(n)]) for name, exam in card.items()},
            "n": next(iter(card.values()))["length"][str(n)]["caught"]["n"],
        }
        for n in examination.PRECEDING
    )


def _costs(card: Card) -> pd.DataFrame:
    columns = {"load": "load_seconds", "256 continuations": "score_seconds", "MB": "memory_mb"}
    return pd.DataFrame(
        {"scorer": name, **{head: f"{exam['cost'][key]:g}" for head, key in columns.items()}}
        for name, exam in card.items()
    )


def _markdown(rows: pd.DataFrame) -> Iterator[str]:
    def row(cells: Sequence[Any]) -> str:
        return f"| {' | '.join(map(str, cells))} |"

    yield row(list(rows.columns))
    yield "|" + "---|" * len(rows.columns)
    yield from map(row, rows.itertuples(index=False))


def _bound(line: Line) -> str:
    return "" if line.target is None else f"{'≥' if line.better == '↑' else '≤'} {line.target:g}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
