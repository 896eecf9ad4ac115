"""The book's figures: one look, intervals always drawn, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion.metrics.estimates import Estimate

# Mid-tones with a contrast of at least 3:1 against white and against the book's dark grey.
BASE, DPO, CONTROL, ACCENT = "#7f7f7f", "#2f8fd0", "#c9862b", "#c2527b"
INK = "#808080"
# Of the four groups of neurons, everywhere: warm colours are toxic, cold ones anti-toxic.
GROUPS = {"TP": ACCENT, "TN": CONTROL, "AP": DPO, "AN": "#2a9d6f"}


def style() -> None:
    """Set the book's look: transparent background, grey ink, fonts that survive a phone."""
    sns.set_theme(style="ticks", context="notebook")
    inked = (
        "text.color",
        "axes.labelcolor",
        "axes.edgecolor",
        "axes.titlecolor",
        "xtick.color",
        "ytick.color",
    )
    look: dict[Any, Any] = {
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "savefig.transparent": True,
        "figure.dpi": 110,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "legend.frameon": False,
    }
    plt.rcParams.update(look | dict.fromkeys(inked, INK))


def reach(estimates: Sequence[Estimate]) -> Float[np.ndarray, "2 estimates"]:
    """How far intervals reach below and above their values: error bars as Matplotlib takes them."""
    return np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T


def bars(
    names: Sequence[str],
    estimates: Sequence[Estimate],
    *,
    title: str,
    unit: str,
    colours: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Horizontal bars with their intervals and values."""
    ax = ax or plt.subplots(figsize=(7, 0.55 * len(names) + 1.3))[1]
    values, look = np.array([e.value for e in estimates]), {"ecolor": INK, "capsize": 3}
    ax.barh(
        range(len(names)), values, xerr=reach(estimates), color=colours or BASE, height=0.6, error_kw=look
    )
    for i, e in enumerate(estimates):
        place, beside = (max(e.high, 0), i), (6, 0)
        ax.annotate(
            f"{e.value:.3g}", place, xytext=beside, textcoords="offset points", va="center", color=INK
        )
    ax.set(yticks=range(len(names)), yticklabels=names, xlabel=unit, title=title)
    ax.margins(x=0.12)
    ax.invert_yaxis()
    return ax


def lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[Estimate]],
    *,
    title: str,
    x_label: str,
    unit: str,
    colours: Sequence[str],
) -> Axes:
    """Lines with a band for their intervals."""
    ax = plt.subplots(figsize=(7, 3.4))[1]
    for (name, estimates), colour in zip(series.items(), colours, strict=False):
        low, high = [e.low for e in estimates], [e.high for e in estimates]
        ax.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
        ax.plot(x, [e.value for e in estimates], color=colour, label=name)
    ax.set(title=title, xlabel=x_label, ylabel=unit)
    ax.legend(labelcolor=INK)
    return ax


def before_after(
    before: Float[np.ndarray, "prompts"],
    after: Float[np.ndarray, "prompts"],
    *,
    title: str,
    unit: str,
    names: tuple[str, str],
) -> Figure:
    """Two distributions over the same prompts, as survival curves: the share of prompts scoring above x."""
    figure, ax = plt.subplots(figsize=(7, 3.4))
    for values, colour, name in zip((before, after), (BASE, DPO), names, strict=True):
        ordered = np.sort(values)
        ax.step(ordered, 1 - np.arange(len(ordered)) / len(ordered), color=colour, label=name, where="post")
    ax.set(title=title, xlabel=unit, ylabel="share of prompts above", ylim=(0, 1), xlim=(0, 1))
    ax.legend(labelcolor=INK)
    return figure


def price(summaries: Sequence[Mapping[str, Estimate]], ax: Axes, **look: Any) -> None:
    """A point per outcome of an exam: toxicity with its interval over the rise in perplexity in percent."""
    toxicity = [s["toxicity"] for s in summaries]
    rise = [100 * s["perplexity_rise"].value for s in summaries]
    ax.errorbar(rise, [e.value for e in toxicity], yerr=reach(toxicity), **look)
