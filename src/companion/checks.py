"""Compare a run with the baseline of its profile and with the papers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.table import Table
from rich.text import Text

from companion import paths
from companion.errors import CompanionError


@dataclass(frozen=True)
class Row:
    """One compared quantity; ``ok`` is None if there is no baseline for it."""

    name: str
    found: dict
    expected: float | None
    tolerance: float | None
    reason: str
    published: str

    @property
    def ok(self) -> bool | None:
        if self.expected is None:
            return None
        value = self.found["value"]  # None: undefined in this run
        return value is not None and math.isclose(value, self.expected, rel_tol=0, abs_tol=self.tolerance)


def baseline_path(profile: str) -> Path:
    return paths.project() / "tests" / "baselines" / f"{profile}.json"


def load_results(folder: Path) -> dict:
    """Read ``results.json`` of a run."""
    path = folder / "results.json"
    if not path.is_file():
        raise CompanionError(f"'{folder}' holds no results.json: run `companion run` first.")
    return json.loads(path.read_text(encoding="utf-8"))


def compare(results: dict) -> tuple[list[Row], list[str]]:
    """Return a row per result, and the names in the baseline that the run's chapters did not give."""
    path = baseline_path(results["profile"])
    baseline = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    published = pd.read_csv(paths.DATA / "published.csv")
    rows = []
    for name, found in results["results"].items():
        entry = baseline.get(name, {})
        rows.append(Row(name, found, entry.get("value"), entry.get("tolerance"), entry.get("reason", ""), _published(entry.get("published"), published)))
    chapters = {entry["chapter"] for entry in results["results"].values()}
    missing = [name for name, entry in baseline.items() if entry["chapter"] in chapters and name not in results["results"]]
    return rows, missing


def _published(key: dict | None, table: pd.DataFrame) -> str:
    """The paper's value for a quantity; ``key`` holds the columns that pick its row."""
    if not key:
        return ""
    match = table
    for column, value in key.items():
        match = match[match[column] == value]
    if len(match) != 1:
        raise ValueError(f"{key} picks {len(match)} rows of published.csv, not one")
    return f"{match.iloc[0].value:g} ({match.iloc[0].setting})"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def table(rows: list[Row]) -> Table:
    """The comparison as a table for the terminal."""
    shown = Table("result", "value", "95 % interval", "n", "baseline", "tolerance", "", "published")
    for row in rows:
        f = row.found
        interval = f"[{_number(f['low'])}, {_number(f['high'])}]" if "low" in f else ""
        verdict = {None: Text(), True: Text("same", "green"), False: Text("differs", "red")}[row.ok]
        expected, tolerance = ("", "") if row.expected is None else (f"{row.expected:.4g}", f"± {row.tolerance:.3g}")
        value, n = _number(f["value"]), str(f.get("n", ""))
        cells = (row.name, value, interval, n, expected, tolerance, verdict, row.published)
        shown.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))  # a string would be markup
    return shown
