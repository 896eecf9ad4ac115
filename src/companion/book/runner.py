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
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
import psutil
import yaml
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from rich.console import Console
from traitlets.config import Config

from companion import paths, profiles, store
from companion.book import record
from companion.errors import CompanionError
from companion.lm import models, tiny

# Libraries whose version can change a number; results.json and the key of a chapter list them.
LIBRARIES = (
    "torch",
    "transformers",
    "transformer-lens",
    "scikit-learn",
    "accelerate",
    "peft",
    "numpy",
    "safetensors",
)
KERNEL = "kernel-"  # beginning of a folder's name

# Settings that may name a folder, or a file after this beginning.
PLACES = {"model": "", "judge": "", "encoder": "", "scorer": "detoxify:", "scorers": "detoxify:"}
console = Console(highlight=False, markup=False, emoji=False)  # a folder may be called [old] or :cat:


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


class Kernel(AsyncKernelManager):
    """Starts this very interpreter, whatever kernels the user's Jupyter knows under the name of python3."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, language="python", display_name="companion")


def chapters(names: list[str] | None = None) -> list[Chapter]:
    """Chapters in the order of ``_toc.yml``; ``names`` picks some by name, number or file name."""
    toc = yaml.safe_load((paths.project() / "_toc.yml").read_text(encoding="utf-8"))
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    found = [Chapter(paths.project() / f"{file}.ipynb") for file in files if file.startswith("chapters/")]
    if not names:
        return found
    known = {alias: c for c in found for alias in (c.name, str(c.number), c.path.stem, c.path.name)}
    for name in names:
        if name not in known:
            raise CompanionError(
                f"there is no chapter '{name}': choose from {', '.join(c.name for c in found)}."
            )
    return [c for c in found if c in [known[name] for name in names]]


def run_folder(profile: str, overrides: dict[str, object]) -> Path:
    """Where a run lives: runs with changed parameters do not overwrite the profile's own."""
    suffix = f"-{store.key_of(located(overrides))[:8]}" if overrides else ""
    return paths.build() / "runs" / f"{profile}{suffix}"


def located(overrides: dict[str, object]) -> dict[str, object]:
    """Parameters with absolute paths: kernels run in the folder of the chapters, and a run is one from anywhere."""
    return {key: _located(PLACES[key], value) if key in PLACES else value for key, value in overrides.items()}


def _located(kind: str, value: object) -> object:
    if isinstance(value, list):
        return [_located(kind, one) for one in value]
    if not isinstance(value, str) or not value.startswith(kind) or value in (*models.PACKAGED, *tiny.NAMES):
        return value
    name = value.removeprefix(kind)
    is_path = re.match(r"~|\.\.?([/\\]|$)", name) or (os.path.isfile if kind else os.path.isdir)(name)
    return kind + paths.absolute(name) if is_path else value


def run(names: list[str] | None, profile: str, overrides: dict[str, object], *, force: bool = False) -> Path:
    """Run chapters and write ``results.json``; return the run's folder.

    Raises
    ------
    CompanionError
        If a chapter, profile or parameter does not exist, or a chapter reports a user error or is killed.
    """
    selected, overrides = chapters(names), located(overrides)
    profiles.load(profile)
    parameters = {chapter: _parameters(chapter, profile, overrides) for chapter in selected}
    _reject_unknown(overrides, parameters)
    profiles.load(profile, **{k: v for k, v in overrides.items() if k in profiles.settings()})
    folder = run_folder(profile, overrides)
    for name in ("COMPANION_CACHE", "COMPANION_DATA"):  # kernels inherit them, and run in another folder
        if os.environ.get(name):
            os.environ[name] = paths.absolute(os.environ[name])
    try:
        store.writable(folder / "logs")
        for left in folder.glob(f"{KERNEL}*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        for chapter in selected:
            _run_chapter(chapter, parameters[chapter], folder, force)
        write_results(folder, profile, overrides)
    except OSError as error:
        if store.is_disk_full(error):
            raise store.disk_full_error() from error
        raise
    return folder


def _parameters(chapter: Chapter, profile: str, overrides: dict[str, object]) -> dict[str, object]:
    known = papermill.inspect_notebook(_literal(chapter.path))
    return {"profile": profile, **{k: v for k, v in overrides.items() if k in known}}


def _reject_unknown(overrides: dict[str, object], parameters: dict[Chapter, dict]) -> None:
    used = {key for taken in parameters.values() for key in taken}
    for key in overrides:
        if key not in used:
            known = sorted(
                {
                    name
                    for chapter in parameters
                    for name in papermill.inspect_notebook(_literal(chapter.path))
                }
            )
            raise CompanionError(
                f"no chosen chapter has a parameter '{key}': choose from {', '.join(known)}."
            )


def _literal(path: Path) -> str:
    """A path for papermill, which would fill in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _run_chapter(chapter: Chapter, parameters: dict[str, object], folder: Path, force: bool) -> None:
    output, key = folder / chapter.path.name, chapter_key(chapter, parameters)
    if not force and is_fresh(output, key):
        console.print(f"chapter {chapter.number} {chapter.name}: unchanged since its last run")
        _note(folder, chapter, None)
        return
    partial, log = output.with_suffix(".partial.ipynb"), folder / "logs" / f"{chapter.path.stem}.log"
    started = time.perf_counter()
    bar = {"desc": f"chapter {chapter.number} {chapter.name}", "unit": "cell", "ncols": 80, "mininterval": 1}
    try:
        with (
            log.open("w", encoding="utf-8") as stream,
            tempfile.TemporaryDirectory(prefix=KERNEL, dir=folder) as own,
        ):
            notebook = papermill.execute_notebook(
                _literal(chapter.path),
                _literal(partial),
                parameters,
                kernel_name="python3",
                kernel_manager_class=Kernel,
                config=Config(Kernel={"connection_file": f"{own}/connection.json"}),
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
    except DeadKernelError as error:
        _note(folder, chapter, "its kernel was killed")
        raise _memory_error(
            f"the kernel of chapter '{chapter.name}' was killed, most often because memory ran out"
        ) from error
    seconds = time.perf_counter() - started
    notebook.metadata["companion"] = {"key": key, "seconds": round(seconds, 1)}
    nbformat.write(notebook, partial)
    partial.replace(output)
    _note(folder, chapter, None)
    console.print(f"chapter {chapter.number} {chapter.name}: {seconds:.0f} s")


def _explain(error: PapermillExecutionError, chapter: Chapter, partial: Path, log: Path) -> None:
    """Turn a chapter's failure into a sentence if the user can put it right, else point to the log."""
    if error.ename == "CompanionError":
        raise CompanionError(error.evalue) from error
    if "No space left on device" in error.evalue:  # not str(error), which quotes the source
        raise store.disk_full_error() from error
    if (
        error.ename in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in error.evalue
    ):  # torch's words for the CPU
        _note(partial.parent, chapter, "memory ran out")
        raise _memory_error(f"memory ran out in chapter '{chapter.name}'") from error
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    with log.open("a", encoding="utf-8") as stream:
        stream.write(trace)
    _note(partial.parent, chapter, f"{error.ename}: {error.evalue}".splitlines()[0])
    raise RuntimeError(
        f"chapter {chapter.name} failed with {error.ename}: {error.evalue}\n(traceback in {log}, cells run so far in {partial})"
    ) from error


def _memory_error(what: str) -> CompanionError:
    free = psutil.virtual_memory().available / 1e9
    return CompanionError(
        f"{what}: {free:.1f} GB of this machine's memory are free now, so close what else needs much "
        "and run the same command again, which goes on where it stopped."
    )


def failed(folder: Path) -> dict[str, str]:
    """Chapters whose last run failed, and how: by a fault of theirs or because they were killed.

    A wrong setting is no failure. What they gave before is still in the folder and in ``results.json``.
    """
    path = folder / "failed.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _note(folder: Path, chapter: Chapter, failure: str | None) -> None:
    """Remember how a chapter failed, or that it has succeeded."""
    before = failed(folder)
    after = {name: how for name, how in before.items() if name != chapter.name}
    if failure:
        after[chapter.name] = failure
    if after != before:
        _write_json(folder / "failed.json", after)


def changed(folder: Path, results: dict) -> list[str]:
    """Names of the chapters of ``results.json`` whose source, package, data or libraries have changed."""

    def fresh(chapter: Chapter) -> bool:
        parameters = _parameters(chapter, results["profile"], results["parameters"])
        return is_fresh(folder / chapter.path.name, chapter_key(chapter, parameters))

    return [
        chapter.name for chapter in chapters() if chapter.name in results["chapters"] and not fresh(chapter)
    ]


def chapter_key(chapter: Chapter, parameters: dict[str, object]) -> str:
    """Key of everything an executed chapter depends on."""
    sources = sorted(p for p in paths.PACKAGE.rglob("*") if p.suffix in (".py", ".html", ".css", ".toml"))
    sources += sorted(p for p in paths.DATA.rglob("*") if p.is_file() and p.suffix != ".md")
    digest = hashlib.sha256()
    for path in [chapter.path, *sources]:
        digest.update(path.read_bytes())
    return store.key_of({"sources": digest.hexdigest(), "parameters": parameters, "versions": versions()})


def is_fresh(output: Path, key: str) -> bool:
    """Whether an executed chapter exists and belongs to this key."""
    if not output.is_file():
        return False
    try:
        return nbformat.read(output, as_version=4).metadata.get("companion", {}).get("key") == key
    except (ValueError, AttributeError, nbformat.ValidationError):  # damaged: no JSON, or no notebook
        return False


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


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
        durations[chapter.name] = {
            "seconds": nbformat.read(output, as_version=4).metadata["companion"]["seconds"],
            "peak_memory_mb": peak,
        }
    machine = {
        "processor": platform.machine(),
        "cores": models.cores(),
        "cuda": models.usable_cuda(),
        "system": platform.platform(),
    }
    content = {
        "profile": profile,
        "parameters": overrides,
        "results": dict(sorted(results.items())),
        "chapters": durations,
        "versions": versions(),
        "machine": machine,
    }
    return _write_json(folder / "results.json", content)


def _write_json(path: Path, content: dict) -> Path:
    """Write all of a file or nothing."""
    with store.replacing(path) as fresh:
        fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
