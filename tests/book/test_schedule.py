"""Chapters side by side: each behind those that it builds on, never more than so many, none left behind."""

from __future__ import annotations

import json
import threading
import time

import pytest

from companion.book import contents, schedule
from companion.book.contents import Chapter


@pytest.fixture
def chapters(tmp_path):
    """Make chapters by name, with what each says it builds on."""

    def write(**after: list[str] | None) -> list[Chapter]:
        made = []
        for number, (name, before) in enumerate(after.items(), start=1):
            path = tmp_path / f"{number:02}_{name}.ipynb"
            metadata = {"companion": {"after": before}} if before is not None else {}
            path.write_text(json.dumps({"metadata": metadata}), encoding="utf-8")
            made.append(Chapter(path))
        return made

    return write


def never() -> None:
    raise AssertionError("nothing was to be stopped")


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_order_and_number(chapters, jobs):
    listed = chapters(a=[], b=["a"], c=["a"], d=["b", "c"], e=[], f=None)
    under_way, ended, most, lock = set(), [], [], threading.Lock()

    def do(chapter: Chapter, lane: int) -> int:
        with lock:
            assert set(chapter.after if chapter.after is not None else "abcde") <= set(ended)
            under_way.add(lane)
            most.append(len(under_way))
        time.sleep(0.02)
        with lock:
            under_way.remove(lane)
            ended.append(chapter.name)
        return chapter.number

    found = list(schedule.side_by_side(listed, do, never, jobs))
    assert sorted(future.result() for _, future in found) == [1, 2, 3, 4, 5, 6] and ended[-1] == "f"
    assert max(most) <= jobs and (jobs == 1) == (max(most) == 1)
    assert jobs > 1 or ended == list("abcdef")


def test_what_most_time_hangs_on_begins_first(chapters, monkeypatch):
    took = {"a": {"seconds": 1}, "b": {"seconds": 9}, "c": {"seconds": 5}, "d": {"seconds": 99}}
    monkeypatch.setattr(schedule.editions, "load", lambda name: {"chapters": took})
    listed, begun = chapters(a=[], b=[], c=[], d=["a"], new=[]), []

    def do(chapter: Chapter, lane: int) -> None:
        begun.append(chapter.name)
        time.sleep(0.05)

    list(schedule.side_by_side(listed, do, never, 2))
    assert set(begun[:2]) == {"a", "b"} and begun[2] == "d" and begun[3:] == ["c", "new"]


def test_only_chapters_that_are_asked_for_are_waited_for(chapters):
    _, b, c = chapters(a=[], b=["a"], c=None)
    assert [chapter.name for chapter, _ in schedule.side_by_side([b, c], lambda *_: None, never, 2)] == [
        "b",
        "c",
    ]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit])
def test_what_is_under_way_is_stopped(chapters, kind):
    """By Ctrl-C, or because another chapter failed."""
    stopped = threading.Event()

    def do(chapter: Chapter, lane: int) -> None:
        if chapter.name != "a":
            assert stopped.wait(30)

    running = schedule.side_by_side(chapters(a=[], b=[], c=["b"]), do, stopped.set, 2)
    assert next(running)[0].name == "a" and not stopped.is_set()
    if kind is GeneratorExit:
        running.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            running.throw(KeyboardInterrupt())
    assert stopped.is_set()


def test_chapters_name_chapters_before_them():
    listed = contents.chapters()
    for chapter in listed:
        before = {other.name for other in listed if other.number < chapter.number}
        assert set(chapter.after or ()) <= before
        assert chapter.sums_up == (chapter.after is None)


def test_a_small_machine_runs_one_at_a_time(monkeypatch):
    class Memory:
        available = 3e9

    monkeypatch.setattr(schedule.models, "usable_cuda", lambda: False)
    monkeypatch.setattr(schedule.models, "cores", lambda: 8)
    monkeypatch.setattr(schedule.psutil, "virtual_memory", Memory)
    assert schedule.at_a_time() == 1
    Memory.available = 100e9
    assert schedule.at_a_time() == schedule.AT_MOST
    monkeypatch.setattr(schedule.models, "cores", lambda: 2)
    assert schedule.at_a_time() == 2
    monkeypatch.setattr(schedule.models, "usable_cuda", lambda: True)
    assert schedule.at_a_time() == 1
