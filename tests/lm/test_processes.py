"""Pieces of work dealt out to several processes: all are done, whoever dies, and nothing is left running."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from companion.lm import processes


def writer(folder: Path) -> Callable[[int], None]:
    """Leaves a file for each piece with who did it; piece 13 kills whoever begins it."""

    def write(piece: int) -> None:
        if piece == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / str(piece)).write_text(f"{os.getpid()} {processes.count()}")

    return write


def done(folder: Path) -> dict[int, list[str]]:
    return {int(path.name): path.read_text().split() for path in folder.iterdir()}


def test_each_piece_is_done_once_by_one_of_several(tmp_path, monkeypatch):
    monkeypatch.setenv(processes.PROCESSES, "3")
    before = set(psutil.Process().children())  # of other tests
    assert processes.spread(writer, (tmp_path,), list(range(8))) == []
    found = done(tmp_path)
    assert sorted(found) == list(range(8)) and {count for _, count in found.values()} == {"1"}
    assert len({pid for pid, _ in found.values()}) == 3 and str(os.getpid()) not in {
        pid for pid, _ in found.values()
    }
    left = set(psutil.Process().children()) - before
    assert all("resource_tracker" in " ".join(child.cmdline()) for child in left)


def test_one_that_dies_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv(processes.PROCESSES, "2")
    pieces = [0, 1, 2, 13, 4, 5]  # the second process dies at its second
    [sentence] = processes.spread(writer, (tmp_path,), pieces)
    assert sentence == "process 2 of 2 ended with exit code -9: its pieces are done again"
    assert sorted(done(tmp_path)) == [0, 1, 2, 4]


@pytest.mark.parametrize("given", ["1", ""])
def test_alone_nothing_is_dealt_out(given, tmp_path, monkeypatch):
    monkeypatch.setenv(processes.PROCESSES, given)
    assert processes.spread(writer, (tmp_path,), [1, 2]) == [] and done(tmp_path) == {}


def test_one_piece_needs_no_other_process(tmp_path, monkeypatch):
    monkeypatch.setenv(processes.PROCESSES, "4")
    assert processes.spread(writer, (tmp_path,), [1]) == [] and done(tmp_path) == {}
