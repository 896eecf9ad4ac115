"""Results of a chapter: shown in its prose, and collected from executed chapters.

A result is stored in the notebook twice: its text, for the prose, and a record with interval, n and seed,
which ``companion run`` collects into ``results.json``. Prose that carries results is a cell that begins with
``%%prose``: Markdown in which ``{{name}}`` stands for a result. It shows its numbers wherever the notebook is
open, also in Colab, and :mod:`companion.book.build` turns it into an ordinary Markdown cell of the book.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from IPython import get_ipython
from IPython.display import DisplayHandle, Markdown, display

from companion.mechanism.exam import Outcome
from companion.metrics import estimates
from companion.metrics.estimates import Estimate

PREFIX = "record:"
MIME = "application/papermill.record/text/plain"  # a type that no front end shows
MAGIC = "%%prose"
NAME = re.compile(r"\{\{([A-Za-z_]\w*)\}\}")
UNKNOWN = "…"  # stands for a result that is not there yet
_texts: dict[str, str] = {}  # of this kernel
_records: dict[str, dict[str, Any]] = {}  # of this kernel, by the result's name
_shown: dict[str, DisplayHandle] = {}  # prose that this kernel has shown, by its source


def result(name: str, value: Estimate | float, *, seed: int, digits: int = 3, percent: bool = False) -> None:
    """Glue a result under ``name`` (value) and ``name_ci`` (value with interval and n).

    Parameters
    ----------
    digits, percent
        Digits after the point in the text; whether it is a percentage (with two digits fewer).
    """
    spec = f".{max(0, digits - 2)} %" if percent else f".{digits}f"
    estimate = value if isinstance(value, Estimate) else Estimate(float(value), math.nan, math.nan, 0)
    shown = f"{estimate:{spec}}"
    text(name, shown.partition(" [")[0])
    record = {"value": _plain(estimate.value), "seed": seed}
    if isinstance(value, Estimate):
        text(f"{name}_ci", f"{shown}, n = {estimate.n:,}")
        record |= {"low": _plain(estimate.low), "high": _plain(estimate.high), "n": estimate.n}
    _records[name] = record
    _store(PREFIX + name, record)


def recorded() -> Mapping[str, Mapping[str, Any]]:
    """What this kernel has recorded: value, low, high and n by name."""
    return _records


def outcome(chapter: str, name: str, summary: Mapping[str, Estimate], *, seed: int) -> None:
    """Record an exam's metrics as ``{chapter}_{metric}_{name}``; of the base model no drop against itself."""
    result(f"{chapter}_toxicity_{name}", summary["toxicity"], seed=seed)
    result(f"{chapter}_perplexity_{name}", summary["perplexity"], seed=seed, digits=1)
    result(f"{chapter}_f1_{name}", summary["f1"], seed=seed)
    if name != "base":
        result(f"{chapter}_drop_{name}", summary["drop"], seed=seed, percent=True)
        result(f"{chapter}_drop_second_{name}", summary["drop_second"], seed=seed, percent=True)


def contrast(name: str, one: Outcome, other: Outcome, *, seed: int) -> None:
    """Record the paired difference in toxicity of two outcomes, and the same by the second scorer."""
    result(name, estimates.mean(one.toxicity - other.toxicity, seed), seed=seed)
    result(f"{name}_second", estimates.mean(one.second - other.second, seed), seed=seed)


def resources() -> None:
    """Store the peak memory of this chapter's process in MB; the last line of each chapter."""
    _store(PREFIX + "peak_memory", {"value": round(peak_bytes() / 2**20)})


def peak_bytes() -> int:
    """The most memory that this process has held so far. Each system says it elsewhere."""
    status = Path("/proc/self/status")
    if status.exists():
        return 2**10 * int(status.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0])
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return memory.peak_wset
    import resource  # macOS

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def text(name: str, value: str) -> None:
    """Store a word or phrase for the prose."""
    _texts[name] = value
    _store(name, value)
    for source, shown in _shown.items():
        if name in names(source):
            shown.update(Markdown(filled(source, _texts)))


def prose(_line: str, source: str) -> None:
    """The cell magic ``%%prose``: show Markdown with results, and again when one comes or changes later."""
    _shown[source] = display(Markdown(filled(source, _texts)), display_id=True)


def filled(source: str, texts: Mapping[str, str]) -> str:
    """Markdown with each ``{{name}}`` replaced by its text."""
    return NAME.sub(lambda match: texts.get(match[1], UNKNOWN), source)


def names(source: str) -> list[str]:
    """Names of the results that a text shows."""
    return NAME.findall(source)


def _store(name: str, value: object) -> None:
    """Leave a value in the notebook without showing it."""
    display({MIME: repr(value)}, raw=True, metadata={"scrapbook": {"name": name}})


def _plain(value: float) -> float | None:
    """A number that JSON can hold; what is undefined (an AUC with one class only) becomes None."""
    return float(value) if math.isfinite(value) else None


def collect(notebook: Path) -> dict[str, dict]:
    """Return the records of an executed notebook by name."""
    stored = glued(notebook).items()
    return {name.removeprefix(PREFIX): value for name, value in stored if name.startswith(PREFIX)}


def glued(notebook: Path) -> dict[str, Any]:
    """Return everything an executed notebook has stored: texts, and records under ``PREFIX``."""
    import nbformat  # here, because chapters write records only, and it takes longer to import than torch

    cells = nbformat.read(notebook, as_version=4).cells
    outputs = (output for cell in cells for output in cell.get("outputs", []))
    return {
        output.metadata["scrapbook"]["name"]: ast.literal_eval(output.data[MIME])
        for output in outputs
        if "scrapbook" in output.get("metadata", {})
    }


if get_ipython() is not None:
    get_ipython().register_magic_function(prose, "cell")
