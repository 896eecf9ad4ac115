"""Exercises say how hard they are, give a hint and have a solution, which test_chapters.py runs."""

from __future__ import annotations

import pytest
import solutions

from companion.book import contents

CHAPTERS = [chapter for chapter in contents.chapters() if not chapter.sums_up]


@pytest.fixture(params=CHAPTERS, ids=[c.name for c in CHAPTERS])
def chapter(request) -> contents.Chapter:
    return request.param


def test_every_exercise_has_a_level_a_hint_and_a_folded_solution(chapter):
    text = solutions.text(chapter.path)
    listed = solutions.EXERCISE.findall(text)
    assert 1 <= len(listed) == text.count("{exercise}")
    assert {level for level, _ in listed} <= {"easy", "medium", "hard"}
    labels = [label for _, label in listed]
    assert [label for label, _ in solutions.SOLUTION.findall(text)] == labels
    assert text.count("```{hint}\n:class: dropdown\n") == len(listed)


def test_solutions_are_python_and_narrow():
    found = {label: code for chapter in CHAPTERS for label, code in solutions.codes(chapter.path).items()}
    assert len(found) >= 12
    for label, code in found.items():
        compile(code, label, "exec")
        assert max(map(len, code.splitlines())) <= 88, label
        assert "print(" in code and "plt." not in code, label


def test_solutions_stand_before_the_last_cell(tmp_path):
    [chapter] = contents.chapters(["setting"])
    cells = solutions.nbformat.read(solutions.added(chapter.path, tmp_path), as_version=4).cells
    assert "record.resources()" in cells[-1].source
    assert [c.source for c in cells[-3:-1]] == list(solutions.codes(chapter.path).values())
