"""Which chapter runs when: several side by side, each behind those that it builds on.

First comes what most time hangs on: a chapter's own and that of the longest chain behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import psutil

from companion.book import editions
from companion.book.contents import Chapter
from companion.lm import models

T = TypeVar("T")
MEMORY = 8e9  # bytes that a chapter may need; the largest one took 6 GB
AT_MOST = 4  # more gain little: chapters 4 to 7 are all that can run at the same time


def at_a_time() -> int:
    """How many chapters this machine runs side by side: one a core and 8 GB of free memory, one on a GPU."""
    by_memory = int(psutil.virtual_memory().available / MEMORY)
    return 1 if models.usable_cuda() else max(1, min(models.cores(), by_memory, AT_MOST))


def side_by_side(
    chapters: Sequence[Chapter], do: Callable[[Chapter, int], T], stop: Callable[[], None], jobs: int
) -> Generator[tuple[Chapter, Future[T]], None, None]:
    """Do something to every chapter, ``jobs`` at a time; give each with its outcome when it is done.

    ``do`` gets the chapter and the number of its lane, below ``jobs``, in a thread. A chapter waits for those
    of ``chapters`` that it builds on (:attr:`companion.book.contents.Chapter.after`). ``stop`` is called on
    Ctrl-C and when nobody listens any more: it must end what is under way, which is waited for.
    """
    todo = _longest_way_first(chapters) if jobs > 1 else list(chapters)
    under_way: dict[Future[T], tuple[Chapter, int]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while todo or under_way:
                unfinished = [*todo, *(chapter for chapter, _ in under_way.values())]
                ready = [chapter for chapter in todo if not waits(chapter, unfinished)]
                lanes = sorted(set(range(jobs)) - {lane for _, lane in under_way.values()})
                for chapter, lane in zip(ready, lanes, strict=False):
                    todo.remove(chapter)
                    under_way[pool.submit(do, chapter, lane)] = chapter, lane
                # not for long at a time: Windows hears Ctrl-C in between
                ended, _ = wait(under_way, timeout=1, return_when=FIRST_COMPLETED)
                for future in ended:
                    chapter, _ = under_way.pop(future)
                    yield chapter, future
        except BaseException:
            stop()
            raise


def _longest_way_first(chapters: Sequence[Chapter]) -> list[Chapter]:
    """By the time from its begin to the end of the longest chain behind it, as in the embedded edition.

    So no chain of chapters is alone at the end while other lanes have nothing left to do.
    """
    took = editions.load("embedded").get("chapters", {})
    way: dict[str, float] = {}
    for chapter in sorted(chapters, key=lambda chapter: -chapter.number):
        behind = [way[other.name] for other in chapters if waits(other, [chapter])]
        way[chapter.name] = took.get(chapter.name, {}).get("seconds", 0) + max(behind, default=0)
    return sorted(chapters, key=lambda chapter: -way[chapter.name])


def waits(chapter: Chapter, unfinished: Sequence[Chapter]) -> bool:
    """Whether a chapter builds on one of these; if it does not say on which, on all before it."""
    before = [other for other in unfinished if other.number < chapter.number]
    return any(chapter.after is None or other.name in chapter.after for other in before)
