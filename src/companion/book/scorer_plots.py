"""Figures of the scorers' card and of the scores of one sentence about several groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion.book import plots
from companion.book.scorer_card import LINES, SCORERS, Card, perspective
from companion.metrics.estimates import TOXIC, Estimate

COLOURS = dict(zip(SCORERS, (plots.BASE, plots.DPO, plots.CONTROL, plots.ACCENT), strict=True))


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
