"""Diagrams of ideas, drawn with code in the look of the figures: one of each, where it is needed first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from companion.book import censor, plots

DOTS = 4000  # neurons that the quadrant shows at most
LINE = 70.0  # characters of a line of the sentence
BLANK = "____"


def _canvas(width: float, height: float, across: float, up: float) -> tuple[Figure, Axes]:
    """A figure of some inches with nothing but a plane of ``across`` by ``up``."""
    figure, ax = plt.subplots(figsize=(width, height))
    ax.set(xlim=(0, across), ylim=(0, up))
    ax.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    return figure, ax


def _box(ax: Axes, x: float, y: float, width: float, text: str, colour: str = plots.INK) -> None:
    """A rounded box of the height 1 around its middle, with a text."""
    style = "round,pad=0,rounding_size=.15"
    ax.add_patch(
        FancyBboxPatch((x - width / 2, y - 0.5), width, 1, boxstyle=style, fc="none", ec=colour, lw=1.4)
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=10, color=colour)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = plots.INK) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.4})


def _mark(ax: Axes, x: float, y: float, letter: str, colour: str) -> None:
    """A letter in a disc: something that a method does here."""
    ax.plot(x, y, "o", ms=17, color=colour)
    ax.text(x, y, letter, ha="center", va="center", fontsize=10, color="white", weight="bold")


def block() -> Figure:
    """A transformer block with its MLP opened, and where the methods of chapters 2, 4 and 5 read and act."""
    figure, ax = _canvas(7.5, 3.9, 15.0, 7.8)
    _arrow(ax, (0.3, 6.0), (14.7, 6.0))  # the stream
    ax.text(0.3, 6.25, "residual stream $x$", color=plots.INK, fontsize=10)
    _box(ax, 2.6, 4.2, 2.6, "attention")
    _arrow(ax, (1.8, 6.0), (1.8, 4.75))
    _arrow(ax, (3.4, 4.75), (3.4, 5.95))
    places = ((5.6, 1.3, "keys"), (8.2, 2.2, "activations\n$m_i$"), (11.0, 2.2, "value vectors\n$v_i$"))
    for x, width, text in places:
        _box(ax, x, 4.2, width + 0.4, text)
    _arrow(ax, (5.6, 6.0), (5.6, 4.75))
    _arrow(ax, (6.5, 4.2), (6.85, 4.2))
    _arrow(ax, (9.55, 4.2), (9.65, 4.2))
    _arrow(ax, (11.0, 4.75), (11.0, 5.95))
    ax.text(8.2, 5.1, "MLP: it adds $\\sum_i m_i v_i$", ha="center", color=plots.INK, fontsize=10)
    ax.axvline(13, 0.66, 0.86, color=plots.INK, ls=":", lw=1.2)
    ax.text(13, 6.85, "last block", ha="center", color=plots.INK, fontsize=10)
    acts = (
        (12.6, 6.0, "P", plots.DPO, "the probe reads the stream that enters the last block (chapter 2)"),
        (7.4, 3.3, "A", plots.ACCENT, "ablation sets the activation $m_i$ to 0 (chapter 4)"),
        (9.0, 3.3, "C", plots.CONTROL, "patching sets $m_i$ to its mean in the DPO model (chapter 5)"),
        (5.6, 3.3, "K", plots.GROUPS["AN"], "un-aligning multiplies a key (chapter 4)"),
    )
    for row, (x, y, letter, colour, text) in enumerate(acts):
        _mark(ax, x, y, letter, colour)
        _mark(ax, 0.7, 2.3 - 0.62 * row, letter, colour)
        ax.text(1.2, 2.3 - 0.62 * row, text, va="center", color=plots.INK, fontsize=10)
    return figure


def quadrant(cosine: Float[Tensor, "layer d_mlp"], mean: Float[Tensor, "layer d_mlp"]) -> Figure:
    """The four groups: real neurons by mean activation and cosine, and which change lowers the projection."""
    x, y = mean.flatten().double().cpu(), cosine.flatten().double().cpu()
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:DOTS]
    # Half of the plane for the few far ones: on a linear axis all others would be one line.
    unit = max(float(x.abs().quantile(0.5)), 1e-9)
    x = torch.asinh(x / unit)
    wide, high = float(x.abs().quantile(0.999)), float(y.abs().quantile(0.999))
    figure, ax = plt.subplots(figsize=(7, 4.2))
    for group, (right, up) in {"TP": (1, 1), "TN": (-1, 1), "AP": (1, -1), "AN": (-1, -1)}.items():
        colour = plots.GROUPS[group]
        here = [i for i in some.tolist() if (x[i] >= 0) == (right > 0) and (y[i] > 0) == (up > 0)]
        ax.plot(x[here], y[here], ".", ms=3, color=colour, alpha=0.35, rasterized=True)
        share = float((((x >= 0) == (right > 0)) & ((y > 0) == (up > 0))).double().mean())
        adds = "adds" if right * up > 0 else "takes away"
        told = f"{group} · {share:.0%}\n{adds} toxicity"
        place = (right * wide * 0.97, up * high * 0.97)
        look: dict[str, Any] = {"ha": "right" if right > 0 else "left", "va": "top" if up > 0 else "bottom"}
        ax.text(*place, told, color=colour, weight="bold", **look)
        _arrow(
            ax,
            (wide * (right * 0.5 + up * 0.14), up * high * 0.55),
            (wide * (right * 0.5 - up * 0.14), up * high * 0.55),
            colour,
        )
    ax.axhline(0, color=plots.INK, lw=1)
    ax.axvline(0, color=plots.INK, lw=1)
    ax.set(xlim=(-wide, wide), ylim=(-high, high), title="Four groups by two signs")
    ax.set(xlabel="mean activation, base model (asinh scale)")
    ax.set(ylabel="cosine with the toxic direction", xticks=[0])
    return figure


def marco(words: Sequence[str], odds: Sequence[float], masked: Sequence[int], rewritten: str) -> Figure:
    """One sentence from scores to blanks to rewrite; words are shown as :mod:`companion.book.censor` does.

    Parameters
    ----------
    odds
        Log odds of each word; NaN where it has none.
    masked
        Which words are blanked.
    """
    shown = [censor.censored(word) for word in words]
    blanked = [BLANK if j in masked else word for j, word in enumerate(shown)]
    steps = [
        ("1 · Expert and anti-expert score each word (log odds, nats)", shown, masked),
        ("2 · Words that reach the threshold give way to blanks", blanked, masked),
        (
            "3 · Base, expert and anti-expert fill them together",
            censor.censored(rewritten).split() or ["(nothing)"],
            (),
        ),
    ]
    places = [_placed(row) for _, row, _ in steps]
    lines = [1 + at[-1][1] for at in places]
    up = 1.3 * lines[0] + 0.85 * (lines[1] + lines[2]) + 1.3 * len(steps)
    figure, ax = _canvas(7.5, 0.3 * up, LINE, up)
    top = up - 0.5
    for k, ((title, row, struck), at) in enumerate(zip(steps, places, strict=True)):
        step = 0.85 if k else 1.3
        ax.text(0.3, top, title, va="center", color=plots.INK, weight="bold", fontsize=10)
        for j, (word, (x, line)) in enumerate(zip(row, at, strict=True)):
            look: dict[str, Any] = {"va": "center", "color": plots.ACCENT if j in struck else plots.INK}
            y = top - step * (line + 1) - 0.15
            ax.text(x, y, _plain(word), family="monospace", fontsize=11, **look)
            if k == 0 and not math.isnan(odds[j]):
                ax.text(x, y + 0.6, f"{odds[j]:+.1f}", fontsize=8, **look)
        top -= step * lines[k] + 1.3
    return figure


def _placed(words: Sequence[str]) -> list[tuple[float, int]]:
    """Place and line of each word, as a text is broken into lines."""
    places, x, line = [], 0.5, 0
    for word in words:
        width = max(len(word), 4) + 1
        if x + width > LINE and x > 0.5:
            x, line = 0.5, line + 1
        places.append((x, line))
        x += width
    return places


def _plain(text: str) -> str:
    """A text that Matplotlib does not set as a formula, and that its fonts can draw."""
    return "".join(c if c.isprintable() else "�" for c in text).replace("$", r"\$")
