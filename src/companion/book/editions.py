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
SIZE_OF = {"full": "embedded"}  # profiles that are another one at an edition's size


def load(name: str) -> dict[str, Any]:
    """The edition of a profile; ``results`` is empty if there is none. That of *full* is *embedded*'s."""
    path = _path(name)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"results": {}}


def names() -> list[str]:
    """The profiles of which there are editions."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def make(found: dict[str, Any]) -> Path:
    """Take a run's ``results.json`` as the edition of its profile, chapter by chapter; return the file.

    Chapters that did not run keep what the edition says of them: a long run may be spread over days. Each
    chapter says from which commit, profile and versions its results are.
    """
    before = load(found["profile"])
    kept = {k: v for k, v in before["results"].items() if v["chapter"] not in found["chapters"]}
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
    origin = {
        "profile": found["profile"],
        "commit": commit.stdout.strip(),
        "torch": found.get("versions", {}).get("torch", ""),
        "machine": found.get("machine", {}),
    }
    chapters = {name: {**took, **origin} for name, took in found["chapters"].items()}
    edition = {
        "chapters": {**before.get("chapters", {}), **chapters},
        "results": dict(sorted({**kept, **results}.items())),
    }
    FOLDER.mkdir(exist_ok=True)
    path = _path(found["profile"])
    with store.replacing(path) as fresh:
        fresh.write_text(json.dumps(edition, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _path(profile: str) -> Path:
    return FOLDER / f"{SIZE_OF.get(profile, profile)}.json"


def _short(value: object) -> object:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
