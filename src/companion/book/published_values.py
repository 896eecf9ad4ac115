"""The papers' numbers, ``data/published.csv``: a row is a value and names our results beside it."""

from __future__ import annotations

import pandas as pd

from companion import paths


def rows(**columns: str) -> pd.DataFrame:
    """The rows with these values in these columns, as ``rows(source="lee2024", intervention="DPO")``."""
    table = pd.read_csv(paths.DATA / "published.csv")
    for column, value in columns.items():
        table = table[table[column] == value]
    return table


def beside() -> dict[str, str]:
    """The published value and its setting, by the name of the book's result that it stands beside."""
    counterparts = rows().dropna(subset="results")
    return {
        name: f"{row.value:g} ({row.setting})"
        for row in counterparts.itertuples()
        for name in row.results.split()
    }
