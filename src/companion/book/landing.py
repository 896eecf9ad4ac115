"""The landing page's map of the chapters, with links, from the table of contents and the notebooks."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import nbformat

from companion.book import contents, record
from companion.book.contents import Chapter

MARK = "<!-- map of the chapters -->"  # where it goes in intro.md
PICTURE = "pages/images/scoreboard-picture.png"  # the figure of that name in a chapter, put there by build
ASIDE = re.compile(  # hints and solutions, displayed formulas, lines of fences
    r"^(`{3,})\{\w+\}[^\n]*\n:class: dropdown\n.*?^\1$|^\$\$.*?\$\$$|^(?:`{3,}|:{3,})[^\n]*$",
    re.MULTILINE | re.DOTALL,
)
WORDS_A_MINUTE = 100  # of prose with formulas, figures and code between it


def chapter_map(seconds: Mapping[str, float]) -> str:
    """Raw HTML for MyST: a box per chapter, in floors; what builds on a chapter stands below it.

    ``seconds`` says how long chapters ran, by name.
    """
    parts = contents.parts()
    above = [part for part in parts.items() if not any(chapter.sums_up for chapter in part[1])]
    below = [part for part in parts.items() if part not in above]
    rows = [
        f'<div class="row">{"".join(_part(*part, seconds) for part in row)}</div>'
        for row in (above, below)
        if row
    ]
    drawn = f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n"
    drawn += f'<nav class="chapter-map" aria-label="Map of the chapters">\n{DOWN.join(rows)}\n</nav>'
    return f"```{{raw}} html\n{drawn}\n```"


DOWN = '<div class="down" aria-hidden="true">↓</div>'
STYLE = Path(__file__).with_suffix(".css")


def _part(caption: str, chapters: Sequence[Chapter], seconds: Mapping[str, float]) -> str:
    floors = [
        f'<div class="floor">{"".join(_box(chapter, seconds) for chapter in floor)}</div>'
        for floor in _floors(chapters)
    ]
    head = f'<section style="flex-grow: {len(chapters)}"><strong>{html.escape(caption)}</strong>'
    return f"{head}\n{DOWN.join(floors)}</section>\n"


def _floors(chapters: Sequence[Chapter]) -> Iterator[list[Chapter]]:
    """Chapters that build on none of the others, then those that build on these, and so on."""
    left = list(chapters)
    while left:
        names = {chapter.name for chapter in left}
        floor = [chapter for chapter in left if not names & set(chapter.after or ())] or left
        yield floor
        left = [chapter for chapter in left if chapter not in floor]


def _box(chapter: Chapter, seconds: Mapping[str, float]) -> str:
    name, _, question = chapter.title.partition(": ")
    time = f"{max(1, round(words(chapter) / WORDS_A_MINUTE))} min to read"
    if chapter.name in seconds:
        time += f", {max(1, round(seconds[chapter.name] / 60))} to run"
    return (
        f'<a href="chapters/{chapter.path.stem}.html"><b>{chapter.number} · {html.escape(name)}</b> '
        f"{html.escape(question)} <small>{time}</small></a>\n"
    )


def words(chapter: Chapter) -> int:
    """How many words of prose a chapter has, without formulas, fences and what is folded."""
    cells = nbformat.read(chapter.path, as_version=4).cells
    prose = [c.source for c in cells if c.cell_type == "markdown" or c.source.startswith(record.MAGIC)]
    return len(re.findall(r"\w[\w'’-]*", ASIDE.sub("", "\n\n".join(prose))))
