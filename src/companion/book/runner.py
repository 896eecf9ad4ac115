"""Run chapters through papermill, each in a kernel of its own, and gather their results.

A chapter whose key (:func:`companion.book.runs.chapter_key`) is unchanged is not run again, so an interrupted
run goes on where it stopped and a second run is quick; ``force`` runs it all the same. Chapters that do not
build on each other run side by side (:mod:`companion.book.schedule`): on one of two cores each takes one and
a half times as long as on both.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import chdir, closing, contextmanager, suppress
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
from companion.book import contents, runs, schedule
from companion.book.contents import Chapter
from companion.errors import CompanionError
from companion.lm import models
from companion.plan import estimate
from companion.terminal import console

KERNEL = "kernel-"  # beginning of a folder's name
LAUNCHER = "ipykernel_launcher"
STARTS = 3
THREADS = "OMP_NUM_THREADS"
NEVER_STARTED = "Kernel died before replying"  # jupyter_client's words; it has no exception of its own for it


class Kernel(AsyncKernelManager):
    """Starts this very interpreter, whatever kernels the user's Jupyter knows under the name of python3."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", LAUNCHER, "-f", "{connection_file}"]
        return KernelSpec(argv=command, language="python", display_name="companion")


def run(
    names: Sequence[str] | None,
    profile: str,
    overrides: dict[str, object],
    *,
    force: bool = False,
    jobs: int | None = None,
) -> Path:
    """Run chapters and write ``results.json``; return the run's folder.

    ``jobs`` is how many run at a time; None: as many as the machine bears.

    Raises
    ------
    CompanionError
        If a chapter, profile or parameter does not exist, a chapter has no room on this machine
        (:mod:`companion.plan`), reports a user error or is killed.
    """
    selected = contents.chapters(names or profiles.load(profile).chapters)
    overrides = runs.located(overrides)
    known = {name for chapter in selected for name in runs.known(chapter)}
    for key in overrides:
        if key not in known:
            raise CompanionError(
                f"no chosen chapter has a parameter '{key}': choose from {', '.join(sorted(known))}."
            )
    settings = profiles.load(profile, **{k: v for k, v in overrides.items() if k in profiles.settings()})
    estimate.refuse(settings, [chapter.name for chapter in selected])
    folder = runs.folder_of(profile, overrides)
    for name in ("COMPANION_CACHE", "COMPANION_DATA"):  # kernels inherit them, and run in another folder
        if os.environ.get(name):
            os.environ[name] = paths.absolute(os.environ[name])
    try:
        store.writable(folder / "logs")
        os.environ[runs.RUN] = str(folder)
        for left in folder.glob(f"{KERNEL}*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        jobs = min(jobs or schedule.at_a_time(), len(selected))
        if settings.model in models.PACKAGED and (terms := models.PACKAGED[settings.model].terms):
            console.print(terms)

        def do(chapter: Chapter, lane: int) -> None:
            given = runs.parameters(chapter, profile, overrides)
            _run_chapter(chapter, given, folder, force, lane if jobs > 1 else None)

        with (
            _shared_cores(jobs),
            chdir(selected[0].path.parent),  # papermill would do so in every thread
            closing(schedule.side_by_side(selected, do, _kill_kernels, jobs)) as ended,
        ):
            for chapter, future in ended:
                _ended(chapter, future, folder)
        runs.write_results(folder, profile, overrides)
    except OSError as error:
        if store.is_disk_full(error):
            raise store.disk_full_error() from error
        raise
    return folder


@contextmanager
def _shared_cores(jobs: int) -> Iterator[None]:
    """Kernels that start here have an equal share of the cores each, unless the user has said otherwise."""
    if jobs == 1 or THREADS in os.environ:
        yield
        return
    os.environ[THREADS] = str(max(1, models.cores() // jobs))
    try:
        yield
    finally:
        del os.environ[THREADS]


def _kill_kernels() -> None:
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if LAUNCHER in child.cmdline():
                child.kill()


def _run_chapter(
    chapter: Chapter, parameters: dict[str, object], folder: Path, force: bool, lane: int | None
) -> None:
    output, key = folder / chapter.path.name, runs.chapter_key(chapter, parameters, folder)
    title = _title(chapter)
    if not force and runs.is_fresh(output, key):
        console.print(f"{title}: unchanged since its last run")
        return
    if lane is not None:  # a bar says nothing in a log, and is one of several
        console.print(f"{title}: begun")
    started = time.perf_counter()
    notebook = _execute(chapter, parameters, _partial(chapter, folder), _log(chapter, folder), lane)
    seconds = time.perf_counter() - started
    notebook.metadata["companion"] = {"key": key, "seconds": round(seconds, 1)}
    nbformat.write(notebook, _partial(chapter, folder))
    _partial(chapter, folder).replace(output)
    console.print(f"{title}: {seconds:.0f} s")


def _title(chapter: Chapter) -> str:
    return f"chapter {chapter.number} {chapter.name}"


def _partial(chapter: Chapter, folder: Path) -> Path:
    return (folder / chapter.path.name).with_suffix(".partial.ipynb")


def _log(chapter: Chapter, folder: Path) -> Path:
    return folder / "logs" / f"{chapter.path.stem}.log"


def _ended(chapter: Chapter, future: Future[None], folder: Path) -> None:
    """Note how a chapter ended; raise what the user is to know of it."""
    try:
        future.result()
    except PapermillExecutionError as error:
        _explain(error, chapter, _partial(chapter, folder), _log(chapter, folder))
    except DeadKernelError as error:
        runs.note(folder, chapter, "its kernel was killed")
        what = f"the kernel of chapter '{chapter.name}' was killed, most often because memory ran out"
        raise _memory_error(what) from error
    runs.note(folder, chapter, None)


def _execute(
    chapter: Chapter, parameters: dict[str, object], partial: Path, log: Path, lane: int | None
) -> nbformat.NotebookNode:
    """Run the chapter's cells in a kernel of its own, which is started again if it dies before the first one.

    A manager looks for free ports and the kernel takes them a second later: in between, another process that
    starts kernels, too, can be given the same ones.
    """
    bar = {"desc": _title(chapter), "unit": "cell", "ncols": 80, "mininterval": 1}
    if lane is not None:  # several bars would fill a log with jumps of the cursor
        bar |= {"position": lane, "leave": False, "disable": not sys.stderr.isatty()}
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
                    progress_bar=bar,
                    stdout_file=stream,
                    stderr_file=stream,
                    log_output=False,
                    iopub_timeout=120,  # s; on a busy machine outputs come late, and 4 is the default
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
