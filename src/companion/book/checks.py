"""Compare a run with the baseline of its profile and with the papers."""

from __future__ import annotations

import json
import math
import re
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
        rows.append(
            Row(
                name,
                found,
                entry.get("value"),
                entry.get("tolerance"),
                entry.get("reason", ""),
                _published(entry.get("published"), published),
            )
        )
    chapters = {entry["chapter"] for entry in results["results"].values()}
    missing = [
        name
        for name, entry in baseline.items()
        if entry["chapter"] in chapters and name not in results["results"]
    ]
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
        expected, tolerance = (
            ("", "") if row.expected is None else (f"{row.expected:.4g}", f"± {row.tolerance:.3g}")
        )
        value, n = _number(f["value"]), str(f.get("n", ""))
        cells = (row.name, value, interval, n, expected, tolerance, verdict, row.published)
        shown.add_row(
            *(Text(cell) if isinstance(cell, str) else cell for cell in cells)
        )  # a string would be markup
    return shown


# (pattern of names, share of the interval's half width, least relative tolerance, reason)
TOLERANCES = (
    ("^dpo_first_loss$", 0, 1e-5, "ln 2 before the first step, whatever the model; fp32 rounding"),
    ("^dpo_pairs", 0, 1e-9, "the shipped file"),
    ("neurons_", 0, 0.25, "a rank in a long list of nearly equal neurons"),
    (
        "^(ablation|patching|editing|controls)_|^decomposition_",
        1,
        2e-2,
        "text written under an intervention or by a trained model; beyond its own interval it would be another result",
    ),
    (
        "_dpo$|drop|rise|change",
        1,
        2e-2,
        "training amplifies another processor's rounding; beyond its own interval it would be another result",
    ),
    (
        "^experts_live|^evaluation_meeting",
        1,
        2e-2,
        "training amplifies another processor's rounding; beyond its own interval it would be another result",
    ),
    (
        "^marco_(fail|harmless|toxic|gap|touched|lost)",
        0.5,
        6e-2,
        "a share of few sentences, of which another processor may flip one or two at a near tie",
    ),
    (
        "^(experts|marco|evaluation)_",
        0.5,
        1e-2,
        "another processor may flip near ties in what is masked and written; half of its own interval",
    ),
    ("_control$", 1, 2e-2, "the noise is scaled to the size of the trained change"),
    ("cosine", 0, 1e-2, "logistic regression in fp32; the random directions are seeded"),
    ("", 0.25, 1e-3, "fp32 and deterministic; another processor may flip a near-tie of greedy decoding"),
)

# Counterparts in the papers' tables for GPT-2 medium: beginnings of names, and the row (source, table, intervention).
# The metric comes between beginning and end: ablation_toxicity_100, ablation_perplexity_100 and ablation_f1_100 are one row.
LEE, YANG = ("lee2024", "Table 2"), ("yang2024v1", "Table 1")

PUBLISHED = {
    ("setting", ""): (*LEE, "none"),
    ("dpo", "_base"): (*LEE, "none"),
    ("dpo", "_dpo"): (*LEE, "DPO"),
    ("ablation", "_base"): (*YANG, "none"),
    ("ablation", "_dpo"): (*YANG, "DPO"),
    **{("ablation", f"_{n}"): (*YANG, f"ablate top {n} toxic vectors") for n in (100, 200, 1000)},
    **{
        ("ablation", f"_positive_{n}"): (*YANG, f"ablate top {n} positively activated")
        for n in (100, 200, 1000, 2000)
    },
    ("ablation", "_subtract_w"): (*LEE, "subtract probe"),
    ("ablation", "_subtract_value"): (*LEE, "subtract value vector 19/770"),
    ("ablation", "_subtract_svd"): (*LEE, "subtract SVD U0"),
    **{("ablation", f"_keys_{f}"): (*YANG, f"DPO, 7 toxic keys x{f}") for f in (2, 5, 10)},
    ("patching", "_dampened"): (*YANG, "patch all dampened toxic neurons"),
}


def update_baseline(folder: Path) -> None:
    """Take a run's values as the baseline; quantities that are there keep tolerance and reason, chapters that did not run their entries."""
    results = load_results(folder)
    path = baseline_path(results["profile"])
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    chapters = {found["chapter"] for found in results["results"].values()}
    baseline = {name: entry for name, entry in old.items() if entry["chapter"] not in chapters}
    for name, found in results["results"].items():
        if found["value"] is not None:
            entry = {
                **(old.get(name) or first_tolerance(name, found)),
                "value": found["value"],
                "chapter": found["chapter"],
            }
            if key := published_key(name):
                entry["published"] = key
            baseline[name] = entry
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps(dict(sorted(baseline.items())), indent=1) + "\n", encoding="utf-8"
    )  # sorted: a difference shows what moved


def published_key(name: str) -> dict[str, str] | None:
    """The columns that pick a result's counterpart in ``data/published.csv``; None if it has none."""
    for metric in ("toxicity", "perplexity", "f1"):
        for (beginning, end), (source, table, intervention) in PUBLISHED.items():
            if name == f"{beginning}_{metric}{end}":
                return {
                    "source": source,
                    "table": table,
                    "setting": "gpt2-medium",
                    "intervention": intervention,
                    "metric": metric,
                }
    return None


def first_tolerance(name: str, found: dict) -> dict:
    """Tolerance and reason for a new quantity: by what can move it without another story being told."""
    half_width = (found.get("high") or 0.0) / 2 - (found.get("low") or 0.0) / 2
    for pattern, share, floor, reason in TOLERANCES:
        if re.search(pattern, name):
            return {
                "tolerance": max(share * half_width, floor * max(1.0, abs(found["value"]))),
                "reason": reason,
            }
    raise ValueError(f"no tolerance for {name}")
