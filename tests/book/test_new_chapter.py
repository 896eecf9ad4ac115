"""A new chapter runs as it is written, has the form of all chapters, and is in the book."""

from __future__ import annotations

import shutil

import pytest
import test_chapter_cells
import test_chapters as form

from companion import paths
from companion.book import contents, landing, runner, runs
from companion.book.build import PAGES
from companion.errors import CompanionError


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the book, without runs."""
    for name in (*PAGES, "chapters", "pyproject.toml"):
        source = paths.project() / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    monkeypatch.setattr(paths, "project", lambda: tmp_path)
    return tmp_path


def test_a_new_chapter_runs_and_is_in_the_book(project, companion):
    before = contents.chapters()
    code, out, _ = companion("new-chapter", "length")
    assert code == 0 and "CONTRIBUTING.md" in out
    *others, new = contents.chapters()
    assert others == before and (new.name, new.number) == ("length", before[-1].number + 1)
    pages = contents.pages()
    assert pages.index(f"chapters/{new.path.stem}") == pages.index(f"chapters/{before[-1].path.stem}") + 1
    assert f'href="chapters/{new.path.stem}.html"' in landing.chapter_map({})

    form.test_set_up_cell_is_guarded_and_the_same_everywhere(new)
    form.test_set_up_cell_installs_what_the_lock_does(new)
    form.test_one_parameters_cell_with_literals_only(new)
    form.test_no_outputs_are_committed(new)
    form.test_content_warning_and_no_typed_paths(new)
    cells = form.code_cells(form.source(new))
    test_chapter_cells.test_hidden_cells_record_and_do_nothing_else(cells)
    test_chapter_cells.test_cells_are_short_and_narrow(cells)
    folder = runner.run(["length"], "smoke", {})
    assert set(runs.load_results(folder)["results"]) == {"length_answer", "length_control"}
    form.test_prose_shows_its_numbers_where_the_notebook_is_open({"llama": folder}, new)
    form.test_figures_have_alternative_text_and_captions({"llama": folder}, new)
    form.test_no_warnings_or_errors_reach_the_page({"llama": folder}, new)


@pytest.mark.parametrize(
    ("name", "said"), [("dpo", "already"), ("My chapter", "no name"), ("../x", "no name")]
)
def test_a_name_that_does_not_do_is_one_sentence(project, name, said):
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    with pytest.raises(CompanionError, match=said):
        contents.add(name)
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before
