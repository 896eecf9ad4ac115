"""How a chapter reads: short, few numbers in a paragraph, nothing left for later."""

from __future__ import annotations

import json
import re

import nbformat
import pytest

from companion import paths
from companion.book import contents, landing, record

CHAPTERS = contents.chapters()
MOST_WORDS, MOST_NUMBERS, MOST_LINES, WIDEST = 1500, 3, 25, 88
FOLDED = {"remove-cell", "remove-input", "hide-input", "hide-cell"}
UNFINISHED = re.compile(r"\b(so far|not run yet|todo|for now|coming soon|to be done)\b", re.IGNORECASE)
BASELINE = paths.project() / "tests" / "baselines" / "embedded.json"
RESULTS = json.loads(BASELINE.read_text(encoding="utf-8"))


def prose(chapter: contents.Chapter) -> str:
    """All that is written in a chapter, without magics, fences, displayed formulas and what is folded."""
    cells = nbformat.read(chapter.path, as_version=4).cells
    written = [
        c.source.removeprefix(record.MAGIC)
        for c in cells
        if c.cell_type == "markdown" or c.source.startswith(record.MAGIC)
    ]
    text = "\n\n".join(written)
    return landing.ASIDE.sub("", text)


def paragraphs(text: str) -> list[str]:
    """Blocks and items of lists; rows of tables are none."""
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text)
    return [block.strip() for block in blocks if block.strip() and not block.strip().startswith("|")]


def numbers(paragraph: str) -> list[str]:
    """Results, and decimals and percentages typed as published values; an interval belongs to its result."""
    plain = re.sub(r"`[^`]*`|\$[^$]*\$|\{[a-z]+\}`[^`]*`|\{cite\}`[^`]*`", "", paragraph)
    shown = [name for name in record.names(plain) if name in RESULTS or name.removesuffix("_ci") in RESULTS]
    typed = re.findall(r"(?<![\w.{])(?:\d*\.\d+|\d+(?= ?%))", re.sub(r"\{\{\w+\}\}", "", plain))
    return shown + typed


def visible(chapter: contents.Chapter) -> list[str]:
    """Code that a reader sees without opening a fold."""
    cells = nbformat.read(chapter.path, as_version=4).cells
    return [
        c.source
        for c in cells
        if c.cell_type == "code"
        and not c.source.startswith(record.MAGIC)
        and not FOLDED & set(c.metadata.get("tags", []))
    ]


@pytest.fixture(params=CHAPTERS, ids=[c.name for c in CHAPTERS])
def chapter(request) -> contents.Chapter:
    return request.param


def test_a_chapter_is_read_in_a_quarter_of_an_hour(chapter):
    assert len(re.findall(r"\w[\w'’-]*", prose(chapter))) <= MOST_WORDS


def test_no_paragraph_has_many_numbers(chapter):
    many = {p[:60]: len(numbers(p)) for p in paragraphs(prose(chapter)) if len(numbers(p)) > MOST_NUMBERS}
    assert many == {}


def test_visible_cells_are_short_and_fit_the_column(chapter):
    code = visible(chapter)
    assert [source[:60] for source in code if len(source.splitlines()) > MOST_LINES] == []
    assert [line for source in code for line in source.splitlines() if len(line) > WIDEST] == []


def test_nothing_is_left_for_later(chapter):
    cells = nbformat.read(chapter.path, as_version=4).cells
    assert [found[0] for c in cells for found in UNFINISHED.finditer(c.source)] == []


def test_the_rules_can_fail():
    crowded = "A drop of {{dpo_relative_drop_ci}} from .25 to .12, and 54 % published."
    assert len(numbers(crowded)) == 4
    assert numbers("32 prompts, chapter 4, `0.5`, $\\beta = 0.1$ {cite}`a2024`, {{dpo_scorer_name}}") == []
    assert paragraphs("one\n\n- two\n- three\n\n| a | b |\n|---|---|\n| .1 | .2 |") == [
        "one",
        "- two",
        "- three",
    ]
    assert UNFINISHED.search("It has not run yet")
