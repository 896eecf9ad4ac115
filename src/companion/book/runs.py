"""A run on disk: its folder, what its executed chapters depend on, which failed, and ``results.json``.

An executed chapter is kept with a key of everything it depends on: its source, its parameters, the package,
the data and the libraries. A chapter whose key is unchanged is not run again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import nbformat
import papermill

from companion import paths, store
from companion.book import contents, record
from companion.book.contents import Chapter
from companion.errors import CompanionError
from companion.lm import models, tiny

# Libraries whose version can change a number; results.json and the key of a chapter list them.
LIBRARIES = (
    *("torch", "transformers", "transformer-lens", "scikit-learn"),
    *("accelerate", "peft", "numpy", "safetensors"),
)

RUN = "COMPANION_RUN"  # tells kernels the folder of their run

# Settings that may name a folder, or a file after this beginning.
PLACES = {"model": "", "judge": "", "encoder": "", "scorer": "detoxify:", "scorers": "detoxify:"}


def folder_of(profile: str, overrides: dict[str, object]) -> Path:
    """Where a run lives: runs with changed parameters do not overwrite the profile's own."""
    suffix = f"-{store.key_of(located(overrides))[:8]}" if overrides else ""
    return paths.build() / "runs" / f"{profile}{suffix}"


def located(overrides: dict[str, object]) -> dict[str, object]:
    """Parameters with absolute paths: kernels run in another folder, and a run is one from anywhere."""
    return {key: _located(PLACES[key], value) if key in PLACES else value for key, value in overrides.items()}


def _located(kind: str, value: object) -> object:
    if isinstance(value, list):
        return [_located(kind, one) for one in value]
    if not isinstance(value, str) or not value.startswith(kind) or value in (*models.PACKAGED, *tiny.NAMES):
        return value
    name = value.removeprefix(kind)
    is_path = re.match(r"~|\.\.?([/\\]|$)", name) or (os.path.isfile if kind else os.path.isdir)(name)
    return kind + paths.absolute(name) if is_path else value


def known(chapter: Chapter) -> list[str]:
    """Names of a chapter's parameters."""
    return list(papermill.inspect_notebook(literal(chapter.path)))


def parameters(chapter: Chapter, profile: str, overrides: dict[str, object]) -> dict[str, object]:
    """What a chapter is given of a run's parameters: those that it has."""
    names = known(chapter)
    return {"profile": profile, **{key: value for key, value in overrides.items() if key in names}}


def literal(path: Path) -> str:
    """A path for papermill, which would fill in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def chapter_key(chapter: Chapter, given: dict[str, object], folder: Path) -> str:
    """Key of everything an executed chapter of a run depends on; ``given`` are its parameters."""
    code = (".py", ".html", ".css", ".js", ".toml")
    sources = sorted(p for p in paths.PACKAGE.rglob("*") if p.suffix in code)
    sources += sorted(p for p in paths.DATA.rglob("*") if p.is_file() and p.suffix != ".md")
    if not chapter.sums_up:  # no other chapter reads them
        sources = [p for p in sources if p.name != "claims.toml" and p.parent.name != "editions"]
    digest = hashlib.sha256()
    for path in [chapter.path, *sources]:
        digest.update(path.read_bytes())
    inputs = {"sources": digest.hexdigest(), "parameters": given, "versions": versions()}
    return store.key_of(inputs | ({"results": collected(folder, but=chapter)} if chapter.sums_up else {}))


def is_fresh(output: Path, key: str) -> bool:
    """Whether an executed chapter exists and belongs to this key."""
    if not output.is_file():
        return False
    try:
        return nbformat.read(output, as_version=4).metadata.get("companion", {}).get("key") == key
    except (ValueError, AttributeError, nbformat.ValidationError):  # damaged: no JSON, or no notebook
        return False


def changed(folder: Path, results: dict[str, Any]) -> list[str]:
    """Names of the chapters of ``results.json`` whose source, package, data or libraries have changed."""
    stale = []
    for chapter in contents.chapters():
        if chapter.name in results["chapters"]:
            key = chapter_key(chapter, parameters(chapter, results["profile"], results["parameters"]), folder)
            stale += [] if is_fresh(folder / chapter.path.name, key) else [chapter.name]
    return stale


def failed(folder: Path) -> dict[str, str]:
    """Chapters whose last run failed, and how: by a fault of theirs or because they were killed.

    A wrong setting is no failure. What they gave before is still in the folder and in ``results.json``.
    """
    path = folder / "failed.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def note(folder: Path, chapter: Chapter, failure: str | None) -> None:
    """Remember how a chapter failed, or that it has succeeded."""
    before = failed(folder)
    after = {name: how for name, how in before.items() if name != chapter.name}
    if failure:
        after[chapter.name] = failure
    if after != before:
        _write_json(folder / "failed.json", after)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a number."""
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **libraries}


def collected(folder: Path, but: Chapter | None = None) -> dict[str, dict[str, Any]]:
    """The records of a run's executed chapters by name, each with the name of its chapter."""
    results: dict[str, dict[str, Any]] = {}
    for chapter in contents.chapters():
        if chapter != but and (folder / chapter.path.name).is_file():
            records = record.collect(folder / chapter.path.name)
            records.pop("peak_memory", None)  # it is the process's, and never the same twice
            results |= {name: {**value, "chapter": chapter.name} for name, value in records.items()}
    return dict(sorted(results.items()))


def current(profile: str) -> dict[str, dict[str, Any]]:
    """For a chapter that sums up: results of the run that it is part of, or of the profile's last one."""
    try:
        return collected(Path(os.environ.get(RUN) or folder_of(profile, {})))
    except CompanionError:  # outside of a checkout, as in Colab, there are no runs
        return {}


def write_results(folder: Path, profile: str, overrides: dict[str, object]) -> Path:
    """Collect the records of all executed chapters in a run into ``results.json`` (atomically)."""
    durations, took = {}, seconds(folder)
    for chapter in contents.chapters():
        if chapter.name in took:
            peak = record.collect(folder / chapter.path.name).get("peak_memory", {}).get("value")
            durations[chapter.name] = {"seconds": took[chapter.name], "peak_memory_mb": peak}
    machine = {
        "processor": platform.machine(),
        "cores": models.cores(),
        "cuda": models.usable_cuda(),
        "system": platform.platform(),
    }
    content = {
        "profile": profile,
        "parameters": overrides,
        "results": collected(folder),
        "chapters": durations,
        "versions": versions(),
        "machine": machine,
    }
    return _write_json(folder / "results.json", content)


def seconds(folder: Path) -> dict[str, float]:
    """How long each executed chapter of a run took, by its name."""
    found = {}
    for chapter in contents.chapters():
        if (folder / chapter.path.name).is_file():
            notebook = nbformat.read(folder / chapter.path.name, as_version=4)
            found[chapter.name] = notebook.metadata["companion"]["seconds"]
    return found


def load_results(folder: Path) -> dict[str, Any]:
    """Read ``results.json`` of a run.

    Raises
    ------
    CompanionError
        If there is none.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise CompanionError(f"'{folder}' holds no results.json: run `companion run` first.")
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: dict) -> Path:
    """Write all of a file or nothing."""
    with store.replacing(path) as fresh:
        fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
