"""Run chapters through papermill, each in a kernel of its own, and gather their results.

A chapter whose key (:func:`companion.book.runs.chapter_key`) is unchanged is not run again, so an interrupted
run goes on where it stopped and a second run is quick; ``force`` runs it all the same.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import nbformat
import papermill
import psutil
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from companion import paths, profiles, store
from companion.book import contents, runs
from companion.book.contents import Chapter
from companion.errors import CompanionError
from companion.terminal import console

KERNEL = "kernel-"  # beginning of a folder's name
STARTS = 3
NEVER_STARTED = "Kernel died before replying"  # jupyter_client's words; it has no exception of its own for it


class Kernel(AsyncKernelManager):
    """Starts this very interpreter, whatever kernels the user's Jupyter knows under the name of python3."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, language="python", display_name="companion")


def run(
    names: Sequence[str] | None, profile: str, overrides: dict[str, object], *, force: bool = False
) -> Path:
    """Run chapters and write ``results.json``; return the run's folder.

    Raises
    ------
    CompanionError
        If a chapter, profile or parameter does not exist, or a chapter reports a user error or is killed.
    """
    selected, overrides = contents.chapters(names), runs.located(overrides)
    profiles.load(profile)
    known = {name for chapter in selected for name in runs.known(chapter)}
    for key in overrides:
        if key not in known:
            raise CompanionError(
                f"no chosen chapter has a parameter '{key}': choose from {', '.join(sorted(known))}."
            )
    profiles.load(profile, **{k: v for k, v in overrides.items() if k in profiles.settings()})
    folder = runs.folder_of(profile, overrides)
    for name in ("COMPANION_CACHE", "COMPANION_DATA"):  # kernels inherit them, and run in another folder
        if os.environ.get(name):
            os.environ[name] = paths.absolute(os.environ[name])
    try:
        store.writable(folder / "logs")
        os.environ[runs.RUN] = str(folder)
        for left in folder.glob(f"{KERNEL}*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        for chapter in selected:
            _run_chapter(chapter, runs.parameters(chapter, profile, overrides), folder, force)
        runs.write_results(folder, profile, overrides)
    except OSError as error:
        if store.is_disk_full(error):
            raise store.disk_full_error() from error
        raise
    return folder


def _run_chapter(chapter: Chapter, parameters: dict[str, object], folder: Path, force: bool) -> None:
    output, key = folder / chapter.path.name, runs.chapter_key(chapter, parameters, folder)
    title = f"chapter {chapter.number} {chapter.name}"
    if not force and runs.is_fresh(output, key):
        console.print(f"{title}: unchanged since its last run")
        runs.note(folder, chapter, None)
        return
    partial, log = output.with_suffix(".partial.ipynb"), folder / "logs" / f"{chapter.path.stem}.log"
    started = time.perf_counter()
    try:
        notebook = _execute(chapter, parameters, title, partial, log)
    except PapermillExecutionError as error:
        _explain(error, chapter, partial, log)
    except DeadKernelError as error:
        runs.note(folder, chapter, "its kernel was killed")
        what = f"the kernel of chapter '{chapter.name}' was killed, most often because memory ran out"
        raise _memory_error(what) from error
    seconds = time.perf_counter() - started
    notebook.metadata["companion"] = {"key": key, "seconds": round(seconds, 1)}
    nbformat.write(notebook, partial)
    partial.replace(output)
    runs.note(folder, chapter, None)
    console.print(f"{title}: {seconds:.0f} s")


def _execute(
    chapter: Chapter, parameters: dict[str, object], title: str, partial: Path, log: Path
) -> nbformat.NotebookNode:
    """Run the chapter's cells in a kernel of its own, which is started again if it dies before the first one.

    A manager looks for free ports and the kernel takes them a second later: in between, another process that
    starts kernels, too, can be given the same ones.
    """
    for started in range(1, STARTS + 1):
        with (
            log.open("w", encoding="utf-8") as stream,
            tempfile.TemporaryDirectory(prefix=KERNEL, dir=log.parents[1]) as own,
        ):
            try:
                notebook = papermill.execute_notebook(
                    runs.literal(chapter.path),
                    runs.literal(partial),
                    parameters,
                    kernel_name="python3",
                    kernel_manager_class=Kernel,
                    config=Config(Kernel={"connection_file": f"{own}/connection.json"}),
                    progress_bar={"desc": title, "unit": "cell", "ncols": 80, "mininterval": 1},
                    cwd=str(chapter.path.parent),
                    stdout_file=stream,
                    stderr_file=stream,
                    log_output=False,
                    shutdown_kernel="immediate",  # every cell is done; a polite request takes three seconds
                    extra_arguments=["--IPKernelApp.log_level=40"],  # no advice about transports
                )
                break
            except RuntimeError as error:
                if NEVER_STARTED not in str(error) or started == STARTS:
                    raise
    return notebook


def _explain(error: PapermillExecutionError, chapter: Chapter, partial: Path, log: Path) -> NoReturn:
    """Turn a chapter's failure into a sentence if the user can put it right, else point to the log."""
    if error.ename == "CompanionError":
        raise CompanionError(error.evalue) from error
    if "No space left on device" in error.evalue:  # not str(error), which quotes the source
        raise store.disk_full_error() from error
    # torch's words for the CPU, where there is no exception of its own
    if error.ename in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in error.evalue:
        runs.note(partial.parent, chapter, "memory ran out")
        raise _memory_error(f"memory ran out in chapter '{chapter.name}'") from error
    with log.open("a", encoding="utf-8") as stream:
        stream.write(re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)))
    what = f"{error.ename}: {error.evalue}"
    runs.note(partial.parent, chapter, what.splitlines()[0])
    raise RuntimeError(
        f"chapter {chapter.name} failed with {what}\n(traceback in {log}, cells run so far in {partial})"
    ) from error


def _memory_error(what: str) -> CompanionError:
    free = psutil.virtual_memory().available / 1e9
    return CompanionError(
        f"{what}: {free:.1f} GB of this machine's memory are free now, so close what else needs much "
        "and run the same command again, which goes on where it stopped."
    )
