"""Editions: results of whole runs that are too long for every reader, committed in ``data/editions``.

An edition says what was run, where, how long it took, and all results with their intervals. Figures and
tables that carry a verdict show it beside the run at hand.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from companion import paths, store

FOLDER = paths.DATA / "editions"
DIGITS = 5  # significant ones; intervals are never this sure


def load(name: str) -> dict[str, Any]:
    """An edition by the profile that was run; ``results`` is empty if there is none."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"results": {}}


def names() -> list[str]:
    """The profiles of which there are editions."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def make(found: dict[str, Any]) -> Path:
    """Take a run's ``results.json`` as the edition of its profile; return the file."""
    results = {
        name: {
            key: _short(value)
            for key, value in result.items()
            if key in ("value", "low", "high", "n", "chapter")
        }
        for name, result in found["results"].items()
    }
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=paths.project(), capture_output=True, text=True, check=False
    )
    edition = {**found, "commit": commit.stdout.strip(), "results": results}
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{found['profile']}.json"
    with store.replacing(path) as fresh:
        fresh.write_text(json.dumps(edition, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _short(value: object) -> object:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
