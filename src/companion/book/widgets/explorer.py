"""A scatter plot of neurons to explore in the built page: filters, search and tips, without a server."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML

from companion.book import plots
from companion.book.widgets import element

TEMPLATE = Path(__file__).with_name("explorer.html")
COLUMNS = (
    *("layer", "index", "cosine", "before", "after", "p_before", "p_after"),
    *("reduction", "low", "high", "group", "role", "tokens"),
)

# Sign of the cosine with the toxic direction, and of the mean activation m before the change.
GROUPS = {"TP": "cos > 0, m ≥ 0", "TN": "cos > 0, m < 0", "AP": "cos ≤ 0, m ≥ 0", "AN": "cos ≤ 0, m < 0"}

# A second channel beside colour: SVG paths around the origin, within a radius of about 1.
SHAPES = {
    "TP": "M-.9,0a.9,.9 0 1,0 1.8,0a.9,.9 0 1,0 -1.8,0",
    "TN": "M0,-1.1L1,.7H-1Z",
    "AP": "M-.8,-.8H.8V.8H-.8Z",
    "AN": "M0,-1.15L1.15,0L0,1.15L-1.15,0Z",
}


def html(rows: pd.DataFrame, *, title: str, limit: int = 4000) -> HTML:
    """The explorer of a table of neurons (:func:`companion.mechanism.accounting.table`, masked ``tokens``).

    Draws the ``limit`` neurons with the largest absolute Δp and says how much of the gross reduction they
    hold. The same input gives the same text, and may stand on a page twice.
    """
    drawn = largest(rows, limit)
    data = {"columns": COLUMNS, "layers": np.unique(rows["layer"]).tolist(), "rows": records(drawn)}
    return element.html(TEMPLATE, "neurons", data, title=title, note=note(rows, drawn), legend=_legend())


def largest(rows: pd.DataFrame, limit: int) -> pd.DataFrame:
    """The neurons with the largest absolute Δp, largest first; ties stay in the order of the table."""
    return rows.iloc[np.argsort(-rows["reduction"].abs().to_numpy(), kind="stable")[:limit]]


def gross_share(rows: pd.DataFrame, drawn: pd.DataFrame) -> float:
    """Share of the gross reduction (sum over those that reduce) held by those drawn; nan if none reduces."""
    gross = rows["reduction"].clip(lower=0).sum()
    return float(drawn["reduction"].clip(lower=0).sum() / gross) if gross > 0 else math.nan


def note(rows: pd.DataFrame, drawn: pd.DataFrame) -> str:
    """Say which neurons are drawn."""
    marks = "cos: cosine of the value vector with the toxic direction; m: mean activation before the change."
    if len(drawn) == len(rows):
        return f"All {len(rows):,} neurons are drawn. {marks}"
    share = gross_share(rows, drawn)
    held = "no neuron reduces toxicity"
    if not math.isnan(share):
        held = f"they hold {100 * share:.1f} % of the gross reduction"
    return f"Drawn are the {len(drawn):,} neurons of {len(rows):,} with the largest |Δp|; {held}. {marks}"


def records(drawn: pd.DataFrame) -> list[list[object]]:
    """Rows for JSON: four significant digits, None for what is not a number, no tokens as an empty string."""
    columns = [drawn[name].fillna("") if name == "tokens" else drawn[name] for name in COLUMNS]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [[_compact(value) for value in row] for row in rows]


def _compact(value: object) -> object:
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _legend() -> str:
    button = (
        '<button type="button" data-group="{name}" aria-pressed="true" style="--wx-colour: {colour}">'
        '<svg viewBox="-1.3 -1.3 2.6 2.6" stroke-width="0.3" aria-hidden="true"><path d="{path}"/></svg>'
        "<b>{name}</b><span></span><small>{meaning}</small></button>"
    )
    return "".join(
        button.format(name=name, colour=plots.GROUPS[name], path=SHAPES[name], meaning=escape(meaning))
        for name, meaning in GROUPS.items()
    )
