"""Compare a run with the baseline of its profile and with the papers."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from companion import paths
from companion.book import claims, editions, published_values, runs, scoreboard

# By the first pattern that a result's name has: a share of its interval's half width; a relative floor.
TOLERANCES = Path(__file__).with_name("tolerances.tsv")


@dataclass(frozen=True)
class Row:
    """One compared quantity; ``expected`` and ``tolerance`` are None if there is no baseline for it."""

    name: str
    result: dict[str, Any]
    expected: float | int | None
    tolerance: float | int | None
    published: str

    @property
    def ok(self) -> bool | None:
        """Whether the value lies within tolerance; None without a baseline."""
        if self.expected is None or self.tolerance is None:
            return None
        value = self.result["value"]  # None: undefined in this run
        return value is not None and math.isclose(value, self.expected, rel_tol=0, abs_tol=self.tolerance)


def baseline_path(profile: str) -> Path:
    """Where the baseline of a profile is, if it has one."""
    return paths.project() / "tests" / "baselines" / f"{profile}.json"


def load_baseline(profile: str) -> dict[str, dict[str, Any]]:
    """Value, tolerance, its reason and the chapter by result; empty if the profile has no baseline."""
    path = baseline_path(profile)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def compare(results: dict[str, Any]) -> tuple[list[Row], list[str]]:
    """Return a row per result, and the names in the baseline that the run's chapters did not give."""
    baseline, published = load_baseline(results["profile"]), published_values.beside()
    rows = []
    for name, result in results["results"].items():
        entry = baseline.get(name, {})
        rows.append(Row(name, result, entry.get("value"), entry.get("tolerance"), published.get(name, "")))
    chapters = {result["chapter"] for result in results["results"].values()}
    expected = [name for name, entry in baseline.items() if entry["chapter"] in chapters]
    return rows, [name for name in expected if name not in results["results"]]


@dataclass(frozen=True)
class Change:
    """A verdict that is another than in the edition; ``drifted`` if what it rests on is out of tolerance.

    A contrast on fewer units has a wider interval, and another processor's rounding may tip one that stands
    on the border: such a verdict says no more than that, while every value is within tolerance. ``units``
    are those of the contrast in the edition and in this run.
    """

    claim: str
    before: str
    now: str
    drifted: bool
    units: tuple[int, int]


def changed_verdicts(results: dict[str, Any], rows: list[Row]) -> list[Change]:
    """Verdicts of a run that are other than those of its profile's edition, on the claims that both test."""
    found = results["results"]
    edition = {k: v for k, v in editions.load(results["profile"])["results"].items() if k in found}
    before, now = scoreboard.verdicts(edition), scoreboard.verdicts(found)
    out = {row.name for row in rows if row.ok is False}
    return [
        Change(
            claim.id,
            before[claim.id],
            now[claim.id],
            not out.isdisjoint(claim.tested_by),
            (edition[claim.result]["n"], found[claim.result]["n"]),
        )
        for claim in claims.load()
        if claim.id in before and claim.id in now and before[claim.id] != now[claim.id]
    ]


def sentence(change: Change) -> str:
    """What has changed, and why that may be if nothing has drifted."""
    said = f"'{change.before}' in the edition, '{change.now}' in this run."
    before, now = change.units
    if change.drifted:
        why = ""
    elif now < before:
        why = f" Nothing has drifted: this run has n = {now:,}, the edition {before:,}."
    else:
        why = " What it rests on is within tolerance: it stands on the border."
    return f"The verdict on '{change.claim}' has changed: {said}{why}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def table(rows: list[Row]) -> Table:
    """The comparison as a table for the terminal."""
    shown = Table("result", "value", "95 % interval", "n", "baseline", "tolerance", "", "published")
    for row in rows:
        r = row.result
        cells = [
            row.name,
            _number(r["value"]),
            f"[{_number(r['low'])}, {_number(r['high'])}]" if "low" in r else "",
            str(r.get("n", "")),
            "" if row.expected is None else f"{row.expected:.4g}",
            "" if row.tolerance is None else f"± {row.tolerance:.3g}",
        ]
        verdict = {None: Text(), True: Text("same", "green"), False: Text("differs", "red")}[row.ok]
        shown.add_row(*map(Text, cells), verdict, Text(row.published))  # a string would be markup
    return shown


def update_baseline(folder: Path) -> None:
    """Take a run's values as the baseline.

    Quantities that are there keep tolerance and reason, and chapters that did not run keep their entries.
    """
    results = runs.load_results(folder)
    path, old = baseline_path(results["profile"]), load_baseline(results["profile"])
    chapters = {result["chapter"] for result in results["results"].values()}
    baseline = {name: entry for name, entry in old.items() if entry["chapter"] not in chapters}
    for name, result in results["results"].items():
        if result["value"] is not None:
            now = {"value": result["value"], "chapter": result["chapter"]}
            baseline[name] = (old.get(name) or first_tolerance(name, result)) | now
    path.parent.mkdir(exist_ok=True)
    in_order = dict(sorted(baseline.items()))  # a difference shows what moved
    path.write_text(json.dumps(in_order, indent=1) + "\n", encoding="utf-8")


def first_tolerance(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Tolerance and reason for a new quantity: by what can move it without another story being told."""
    half_width = (result.get("high") or 0.0) / 2 - (result.get("low") or 0.0) / 2
    rules = pd.read_csv(TOLERANCES, sep="\t", keep_default_na=False).itertuples()
    rule = next(rule for rule in rules if re.search(rule.pattern, name))
    tolerance = max(rule.share * half_width, rule.floor * max(1.0, abs(result["value"])))
    return {"tolerance": float(tolerance), "reason": rule.reason}
