"""Words for people: plain ones, found wherever they stand, and never masked."""

from __future__ import annotations

import json
import tomllib

import pytest

from companion import paths
from companion.book.censor import censored
from companion.marco.rewriting import people
from companion.toxicity import groups


def listed() -> list[str]:
    tables = tomllib.loads(people.LIST.read_text(encoding="utf-8"))
    return [word for table in tables.values() for word in table["words"]]


def test_the_list_has_plain_words_once():
    words = listed()
    assert len(words) == len(set(words)) > 1000
    assert all(word == word.lower().strip() and censored(word) == word for word in words)


@pytest.mark.parametrize(
    "text", ["A Quaker and two Danes.", "(firefighters)", "the deaf-blind choir", "Nuns!"]
)
def test_people_are_found_whatever_stands_around_them(text):
    assert people.spans(text)


def test_a_part_of_a_word_is_nobody():
    for text in ("manage", "womanly", "germanium", "gaymer"):
        assert not people.spans(text)


def test_every_listed_word_is_found_whole():
    for word in listed():
        assert any(end - start >= len(word) for start, end in people.spans(f"Yes, {word}, indeed.")), word
    for text in ("I met Muslims there.", "a trans woman"):
        assert set(groups.spans(text)) <= set(people.spans(text))


def test_sentences_for_the_evaluation_name_whom_they_say():
    rows = [
        json.loads(line)
        for line in (paths.DATA / "sentences" / "groups.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) == 200 == len({row["text"] for row in rows})
    assert all(row["term"] in row["text"].lower() for row in rows)
