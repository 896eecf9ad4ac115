"""Tables for the book's pages; toxic text is shown considerately, masked by default."""

from __future__ import annotations

import pandas as pd
from pandas.io.formats.style import Styler

from companion import paths
from companion.book.censor import censored
from companion.mechanism.exam import Outcome
from companion.metrics.estimates import Estimate


def samples(rows: pd.DataFrame) -> Styler:
    """A table of texts, masked and HTML-escaped, without an index, aligned to the left."""
    masked = rows.reset_index(drop=True).map(lambda cell: censored(cell) if isinstance(cell, str) else cell)
    return masked.style.hide(axis="index").format(escape="html").set_properties(**{"text-align": "left"})


def numbers(rows: pd.DataFrame) -> Styler:
    """A table of numbers with intervals: one line per row, in small type; the page scrolls it sideways where it is too wide."""
    small = {
        "text-align": "left",
        "white-space": "nowrap",
        "font-size": "0.8rem",
        "padding": "0.15rem 0.8rem 0.15rem 0",
    }
    heads = [{"selector": "th", "props": [("text-align", "left"), ("font-size", "0.8rem")]}]
    return (
        rows.reset_index(drop=True)
        .style.hide(axis="index")
        .format(escape="html")
        .set_properties(**small)
        .set_table_styles(heads)
    )


def method_row(name: str, outcome: Outcome, base: Outcome, seed: int = 0) -> dict[str, str]:
    """A line for a table of methods: each metric with its interval, changes against ``base`` paired by text."""
    s = outcome.summary(base, seed)
    return {
        "method": name,
        "toxicity": f"{s['toxicity']:.3f}",
        "drop": _percent(s["drop"]),
        "perplexity": f"{s['perplexity']:.3g}",
        "perplexity / base": _factor(s["perplexity_rise"]),
        "F1": f"{s['f1']:.3f}",
    }


def _percent(e: Estimate) -> str:
    return f"{e.value:.0%} [{e.low:.0%}, {e.high:.0%}]"


def _factor(rise: Estimate) -> str:
    return f"{1 + rise.value:.3g} [{1 + rise.low:.3g}, {1 + rise.high:.3g}]"


def published(intervention: str, source: str, setting: str = "gpt2-medium") -> str:
    """Toxicity / perplexity / F1 of a row of the papers' tables, for a column beside our own.

    Raises
    ------
    ValueError
        If the table has no such row, or several.
    """
    rows = pd.read_csv(paths.DATA / "published.csv")
    rows = (
        rows[(rows.intervention == intervention) & (rows.source == source) & (rows.setting == setting)]
        .set_index("metric")
        .value
    )
    if not rows.index.is_unique or "toxicity" not in rows:
        raise ValueError(f"'{intervention}' of {source} is not one row of published.csv")
    return f"{rows['toxicity']:.3f} / {rows['perplexity']:.2f} / {rows['f1']:.3f}"
