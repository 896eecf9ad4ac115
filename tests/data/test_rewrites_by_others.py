"""Rewrites of other systems: matched by sentence, in our quotation marks, absent where they cannot be had."""

from __future__ import annotations

import pytest

from companion import profiles
from companion.data import public, rewrites_by_others
from companion.errors import CompanionError

ROWS = """set\toriginal\tmarco_authors_bart\tmarco_retrained_bart\tmistral_7b_instruct
sbf\tWhat a dull idea, \tWhat an idea,\tAn idea\tI disagree.
dynahate\tWhat a dull idea,\tother\tother\tother
sbf\t"He is slow"\t"He is calm"\t"He"\t"He takes his time"
"""
PUBLIC = profiles.load("public")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    path = tmp_path / rewrites_by_others.FILE
    path.parent.mkdir()
    path.write_text(ROWS, encoding="utf-8")
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    monkeypatch.setattr(public, "fetch", lambda name: tmp_path / name)
    return tmp_path


def test_each_sentence_gets_its_own_in_order(folder):
    found = rewrites_by_others.rewrites(PUBLIC, "sbf", ['"He is slow"', "what a dull  idea"])
    assert found["authors' BART"] == ['"He is calm"', "What an idea,"]
    assert found["Mistral 7B"] == ['"He takes his time"', "I disagree."]


def test_quotation_marks_of_ours_alone_are_given_to_theirs(folder):
    found = rewrites_by_others.rewrites(PUBLIC, "sbf", ["“What a dull idea,”"])
    assert found["authors' BART"] == ["“What an idea,”"]


def test_the_folder_may_begin_with_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    monkeypatch.setenv("COMPANION_DATA", f"~/{folder.name}")
    assert rewrites_by_others.rewrites(PUBLIC, "sbf", ["What a dull idea,"])


def test_an_unknown_sentence_is_refused(folder):
    with pytest.raises(CompanionError, match="1 sentences of 'sbf' are not in"):
        rewrites_by_others.rewrites(PUBLIC, "sbf", ["Never seen."])


def test_without_the_file_or_for_embedded_sentences_there_are_none(folder, monkeypatch):
    assert rewrites_by_others.rewrites(profiles.load("embedded"), "subtle", ["x"]) == {}
    (folder / rewrites_by_others.FILE).unlink()
    assert rewrites_by_others.rewrites(PUBLIC, "sbf", ["x"]) == {}
    monkeypatch.delenv("COMPANION_DATA")
    assert rewrites_by_others.rewrites(PUBLIC, "sbf", ["x"]) == {}
