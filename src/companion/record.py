"""Glue results into the book and collect them from executed chapters.

A result is glued twice: its value, for ``{glue:text}`` in the prose, and a record with interval,
n and seed, which ``companion run`` collects into ``results.json``.
"""

from __future__ import annotations

import ast
import math
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from myst_nb import glue

from companion import paths
from companion.metrics import Estimate

PREFIX = "record:"


def result(name: str, value: Estimate | float, *, seed: int, digits: int = 3, percent: bool = False) -> None:
    """Glue a result under ``name`` (value) and ``name_ci`` (value with interval and n).

    Parameters
    ----------
    digits
        Digits after the point in the text.
    percent
        Show as a percentage.
    """
    estimate = value if isinstance(value, Estimate) else Estimate(float(value), float("nan"), float("nan"), 0)
    glue(name, _text(estimate.value, digits, percent), display=False)
    record = {"value": _plain(estimate.value), "seed": seed}
    if isinstance(value, Estimate):
        low, high = _text(estimate.low, digits, percent), _text(estimate.high, digits, percent)
        glue(f"{name}_ci", f"{_text(estimate.value, digits, percent)} [{low}, {high}], n = {estimate.n:,}", display=False)
        record |= {"low": _plain(estimate.low), "high": _plain(estimate.high), "n": estimate.n}
    glue(PREFIX + name, record, display=False)


def resources() -> None:
    """Glue the peak memory of this chapter's process; the last line of each chapter."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux, bytes on macOS
    glue(PREFIX + "peak_memory", {"value": round(peak / (2**10 if sys.platform == "linux" else 2**20))}, display=False)


def text(name: str, value: str) -> None:
    """Glue a word or phrase for the prose (not a result)."""
    glue(name, value, display=False)


def _plain(value: float) -> float | None:
    """A number that JSON can hold; what is undefined (an AUC with one class only) becomes None."""
    return float(value) if math.isfinite(value) else None


def _text(value: float, digits: int, percent: bool) -> str:
    return f"{100 * value:.{max(0, digits - 2)}f} %" if percent else f"{value:.{digits}f}"


def collect(notebook: Path) -> dict[str, dict]:
    """Return the records of an executed notebook by name."""
    return {name.removeprefix(PREFIX): value for name, value in glued(notebook).items() if name.startswith(PREFIX)}


def glued(notebook: Path) -> Mapping[str, object]:
    """Return everything an executed notebook has glued (what myst-nb stored as ``repr``)."""
    import nbformat  # here, because chapters write records only, and it takes longer to import than torch

    cells = nbformat.read(notebook, as_version=4).cells
    outputs = (output for cell in cells for output in cell.get("outputs", []))
    return {
        output.metadata["scrapbook"]["name"]: ast.literal_eval(output.data["application/papermill.record/text/plain"])
        for output in outputs
        if "scrapbook" in output.get("metadata", {})
    }


def published(intervention: str, source: str, setting: str = "gpt2-medium") -> str:
    """Toxicity / perplexity / F1 of a row of the papers' tables, for a column beside our own.

    Raises
    ------
    ValueError
        If the table has no such row, or several.
    """
    rows = pd.read_csv(paths.DATA / "published.csv")
    rows = rows[(rows.intervention == intervention) & (rows.source == source) & (rows.setting == setting)].set_index("metric").value
    if not rows.index.is_unique or "toxicity" not in rows:
        raise ValueError(f"'{intervention}' of {source} is not one row of published.csv")
    return f"{rows['toxicity']:.3f} / {rows['perplexity']:.2f} / {rows['f1']:.3f}"
