"""Run chapters through papermill and gather their results.

An executed chapter is kept with a key of everything it depends on (its source, its parameters,
the package, the data). A chapter whose key is unchanged is not run again, so an interrupted run
goes on where it stopped and a second run is quick; ``force`` runs it all the same.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
import torch
import yaml
from papermill.exceptions import PapermillExecutionError
from rich.console import Console

from companion import artifacts, paths, profiles, record
from companion.errors import CompanionError

# Libraries whose version can change a number; results.json and the key of a chapter list them.
LIBRARIES = ("torch", "transformers", "transformer-lens", "scikit-learn", "accelerate", "peft", "numpy", "safetensors")
console = Console(highlight=False)


@dataclass(frozen=True)
class Chapter:
    """A notebook of the book: ``01_setting.ipynb`` is called *setting*."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem.split("_", 1)[1]

    @property
    def number(self) -> int:
        return int(self.path.stem.split("_", 1)[0])


def chapters(names: list[str] | None = None) -> list[Chapter]:
    """Chapters in the order of ``_toc.yml``; ``names`` picks some by name, number or file name."""
    toc = yaml.safe_load((paths.project() / "_toc.yml").read_text())
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    found = [Chapter(paths.project() / f"{file}.ipynb") for file in files if file.startswith("chapters/")]
    if not names:
        return found
    known = {alias: c for c in found for alias in (c.name, str(c.number), c.path.stem, c.path.name)}
    for name in names:
        if name not in known:
            raise CompanionError(f"there is no chapter '{name}': choose from {', '.join(c.name for c in found)}.")
    return [c for c in found if c in [known[name] for name in names]]


def run_folder(profile: str, overrides: dict[str, object]) -> Path:
    """Where a run lives: runs with changed parameters do not overwrite the profile's own."""
    suffix = f"-{artifacts.key_of(overrides)[:8]}" if overrides else ""
    return paths.project() / "_build" / "runs" / f"{profile}{suffix}"


def run(names: list[str] | None, profile: str, overrides: dict[str, object], *, force: bool = False) -> Path:
    """Run chapters and write ``results.json``; return the run's folder.

    Raises
    ------
    CompanionError
        If a chapter, profile or parameter does not exist, or a chapter reports a user error.
    """
    selected = chapters(names)
    profiles.load(profile)
    parameters = {chapter: _parameters(chapter, profile, overrides) for chapter in selected}
    _reject_unknown(overrides, parameters)
    profiles.load(profile, **{k: v for k, v in overrides.items() if k in profiles.settings()})
    folder = run_folder(profile, overrides)
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        for chapter in selected:
            _run_chapter(chapter, parameters[chapter], folder, force)
        write_results(folder, profile, overrides)
    except OSError as error:
        if artifacts.is_disk_full(error):
            raise artifacts.disk_full_error() from error
        raise
    return folder


def _parameters(chapter: Chapter, profile: str, overrides: dict[str, object]) -> dict[str, object]:
    known = papermill.inspect_notebook(str(chapter.path))
    return {"profile": profile, **{k: v for k, v in overrides.items() if k in known}}


def _reject_unknown(overrides: dict[str, object], parameters: dict[Chapter, dict]) -> None:
    used = {key for taken in parameters.values() for key in taken}
    for key in overrides:
        if key not in used:
            known = sorted({name for chapter in parameters for name in papermill.inspect_notebook(str(chapter.path))})
            raise CompanionError(f"no chosen chapter has a parameter '{key}': choose from {', '.join(known)}.")


def _run_chapter(chapter: Chapter, parameters: dict[str, object], folder: Path, force: bool) -> None:
    output, key = folder / chapter.path.name, chapter_key(chapter, parameters)
    if not force and is_fresh(output, key):
        console.print(f"chapter {chapter.number} {chapter.name}: unchanged since its last run")
        return
    partial, log = output.with_suffix(".partial.ipynb"), folder / "logs" / f"{chapter.path.stem}.log"
    started = time.perf_counter()
    bar = {"desc": f"chapter {chapter.number} {chapter.name}", "unit": "cell", "ncols": 80, "mininterval": 1}
    try:
        with log.open("w") as stream:
            notebook = papermill.execute_notebook(
                str(chapter.path),
                str(partial),
                parameters,
                kernel_name="python3",
                progress_bar=bar,
                cwd=str(chapter.path.parent),
                stdout_file=stream,
                stderr_file=stream,
                log_output=False,
                shutdown_kernel="immediate",  # every cell is done; a polite request takes three seconds
                extra_arguments=["--IPKernelApp.log_level=40"],  # no advice about transports on the terminal
            )
    except PapermillExecutionError as error:
        _explain(error, chapter, partial, log)
    seconds = time.perf_counter() - started
    notebook.metadata["companion"] = {"key": key, "seconds": round(seconds, 1)}
    nbformat.write(notebook, partial)
    partial.replace(output)
    console.print(f"chapter {chapter.number} {chapter.name}: {seconds:.0f} s")


def _explain(error: PapermillExecutionError, chapter: Chapter, partial: Path, log: Path) -> None:
    """Turn a chapter's failure into a sentence if the user can put it right, else point to the log."""
    if error.ename == "CompanionError":
        raise CompanionError(error.evalue) from error
    if "No space left on device" in error.evalue:  # not str(error), which quotes the source
        raise artifacts.disk_full_error() from error
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    with log.open("a") as stream:
        stream.write(trace)
    raise RuntimeError(f"chapter {chapter.name} failed with {error.ename}: {error.evalue}\n(traceback in {log}, cells run so far in {partial})") from error


def chapter_key(chapter: Chapter, parameters: dict[str, object]) -> str:
    """Key of everything an executed chapter depends on."""
    sources = sorted(p for p in paths.PACKAGE.rglob("*") if p.suffix in (".py", ".html", ".css", ".toml"))
    sources += sorted(p for p in paths.DATA.rglob("*") if p.is_file() and p.suffix != ".md")
    digest = hashlib.sha256()
    for path in [chapter.path, *sources]:
        digest.update(path.read_bytes())
    return artifacts.key_of({"sources": digest.hexdigest(), "parameters": parameters, "versions": versions()})


def is_fresh(output: Path, key: str) -> bool:
    """Whether an executed chapter exists and belongs to this key."""
    if not output.is_file():
        return False
    try:
        return nbformat.read(output, as_version=4).metadata.get("companion", {}).get("key") == key
    except (ValueError, AttributeError, nbformat.ValidationError):  # damaged: no JSON, or no notebook
        return False


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def write_results(folder: Path, profile: str, overrides: dict[str, object]) -> Path:
    """Collect the records of all executed chapters in a run into ``results.json`` (atomically)."""
    results, durations = {}, {}
    for chapter in chapters():
        output = folder / chapter.path.name
        if not output.is_file():
            continue
        records = record.collect(output)
        peak = records.pop("peak_memory", {}).get("value")
        results |= {name: {**value, "chapter": chapter.name} for name, value in records.items()}
        durations[chapter.name] = {"seconds": nbformat.read(output, as_version=4).metadata["companion"]["seconds"], "peak_memory_mb": peak}
    machine = {"processor": platform.machine(), "cores": len(os.sched_getaffinity(0)), "cuda": torch.cuda.is_available(), "system": platform.platform()}
    content = {
        "profile": profile,
        "parameters": overrides,
        "results": dict(sorted(results.items())),
        "chapters": durations,
        "versions": versions(),
        "machine": machine,
    }
    path = folder / "results.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=1) + "\n")
    fresh.replace(path)
    return path
