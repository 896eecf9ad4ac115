"""Several processes for what is large: one training that they share, or pieces that they deal out.

By default there are as many as GPUs, and each has its own.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from companion.errors import CompanionError
from companion.lm.models import cores, usable_cuda

PROCESSES = "COMPANION_PROCESSES"
Piece = TypeVar("Piece")
Begin = Callable[..., Callable[[Piece], object]]


def count() -> int:
    """How many processes share what is large: as many as ``COMPANION_PROCESSES`` says, else one a GPU.

    Raises
    ------
    CompanionError
        If that is no positive number.
    """
    if not (given := os.environ.get(PROCESSES, "")):
        return max(1, torch.cuda.device_count()) if usable_cuda() else 1
    if not (given.isdecimal() and int(given)):
        raise CompanionError(f"{PROCESSES} is '{given}': set it to how many processes may share the work.")
    return int(given)


def launch(module: str, folder: Path, what: str) -> None:
    """Run ``python -m module folder`` in :func:`count` processes that find each other; wait for all.

    What they print for people goes to this process's standard error. None outlives this call.

    Raises
    ------
    CompanionError
        If one of them fails or is killed: the sentence names it, and ``what`` it was doing.
    """
    n = count()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // n))} | dict(os.environ)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        started = subprocess.Popen(
            [*command, "-m", module, str(folder)], env=threads, stderr=log, start_new_session=True
        )
        try:
            failed = started.wait()
        finally:
            if started.poll() is None:  # Ctrl-C: the launcher ends its own
                started.send_signal(signal.SIGTERM)
                started.wait()
        log.seek(0)
        if failed:
            raise CompanionError(_sentence(log.read(), what, n))


def _sentence(log: str, what: str, n: int) -> str:
    """Which process failed first, and how, from what the launcher reports of it."""
    rank = re.search(r"Root Cause.*?rank\s*: (\d+)", log, re.DOTALL)
    code = re.search(r"Root Cause.*?exitcode\s*: (-?\d+)", log, re.DOTALL)
    who = f"process {int(rank[1]) + 1} of {n}" if rank else f"one of {n} processes"
    how = f"ended with exit code {code[1]}" if code else "ended early"
    if code and int(code[1]) < 0:
        how = f"was ended by signal {-int(code[1])}" + (
            ", as when memory is short" if code[1] == "-9" else ""
        )
    reason = re.findall(r"^(\w+Error: .*)$", log, re.MULTILINE)
    why = f" ({reason[0]})" if reason else ""
    return f"{who} of {what} {how}{why}: run again, finished work is kept."


def spread(
    begin: Callable[..., Callable[[Piece], object]], given: tuple, pieces: Sequence[Piece]
) -> list[str]:
    """Deal pieces of work out to :func:`count` processes, which leave what they make in store or folder.

    Nothing comes back: the caller then does all pieces itself, finds what is made, and makes what a process
    that died has left undone. So results and their order do not depend on how many processes there are.

    Parameters
    ----------
    begin
        A function of a module, called once in each process; what it returns is called with one piece each.
    given
        What ``begin`` is called with; it and the pieces must go through pickle.

    Returns
    -------
    list[str]
        A sentence for each process that failed.
    """
    n = min(count(), len(pieces))
    if n < 2:
        return []
    context = multiprocessing.get_context("spawn")  # a process with CUDA cannot be forked
    started = [
        context.Process(target=_do, args=(rank, begin, given, list(pieces[rank::n])), daemon=True)
        for rank in range(n)
    ]
    threads, shared = os.environ.get("OMP_NUM_THREADS"), str(max(1, cores() // n))
    os.environ["OMP_NUM_THREADS"] = threads or shared
    try:
        for one in started:
            one.start()
        for one in started:
            one.join()
    finally:
        for one in started:
            one.terminate()
        os.environ.pop("OMP_NUM_THREADS")
        if threads:
            os.environ["OMP_NUM_THREADS"] = threads
    return [
        f"process {rank + 1} of {n} ended with exit code {one.exitcode}: its pieces are done again"
        for rank, one in enumerate(started)
        if one.exitcode
    ]


def _do(rank: int, begin: Begin, given: tuple, pieces: Sequence[Piece]) -> None:
    os.environ[PROCESSES] = "1"  # what is done here is not dealt out again
    if usable_cuda():
        torch.cuda.set_device(rank % torch.cuda.device_count())
    work = begin(*given)
    for piece in pieces:
        work(piece)
