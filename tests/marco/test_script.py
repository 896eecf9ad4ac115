"""What a blank may say: it ends where the text goes on, and repeats nothing that the text says."""

from __future__ import annotations

import pytest
import torch

from companion.marco.rewriting.script import Script
from companion.marco.rewriting.words import Sentence

TOKENS = [
    "<mask>",
    "<end>",
    "This",
    " this",
    "this",
    " city",
    " and",
    " its",
    " shoebox",
    " people",
    ".",
    " Go",
]
ID = {token: i for i, token in enumerate(TOKENS)}


class Words:
    """A denoiser as far as a script needs one: tokens are words."""

    mask_id, end_id, marks = 0, 1, [0, 1]

    def decode(self, ids) -> str:
        return "".join(TOKENS[i] for i in ids)

    encode = next_logits = surprise = begin = decode  # a denoiser has them, and no script asks


def script(source: list[str], length: int) -> Script:
    ids = [ID[token] for token in source]
    return Script(ids, Sentence("", [0] * length, []), Words(), anchored=True)


def written(one: Script, said: list[str]) -> str:
    for token in said:
        assert token in allowed(one)
        one.take(ID[token])
    return Words().decode(one.written)


def allowed(one: Script) -> set[str]:
    scores = torch.zeros(len(TOKENS))
    one.restrict(scores)
    return {token for token, score in zip(TOKENS, scores.tolist(), strict=True) if score == 0}


@pytest.mark.parametrize(
    ("source", "said", "text"),
    [
        (["<mask>", " this", " city"], ["This"], "This city"),  # at the beginning of a text
        (["<mask>", " this", " city"], ["this"], "this city"),  # without its space
        (["<mask>", " this", " city"], [" Go", " this"], " Go this city"),
        ([".", "<mask>", " this", " city"], [" Go", "this", " this"], ". Gothis this city"),
    ],
)
def test_a_blank_ends_where_the_text_goes_on(source, said, text):
    one = script(source, len(source))
    assert written(one, said) == text and one.done


def test_answers_are_what_stands_at_each_blank():
    one = script([" this", "<mask>", "<mask>", " and", "<mask>", " its", "<mask>"], 9)
    said = written(one, [" city", ".", " and", " its", " shoebox", "<end>"])
    assert said == " this city. and its shoebox"
    assert [Words().decode(answer) for answer in one.answers] == [" city.", "", " shoebox"]


def test_a_blank_repeats_no_run_of_the_text():
    one = script([" this", " city", " and", "<mask>", " shoebox", "."], 6)
    for token in (" its", " this", " city"):
        assert " and" in allowed(one)
        one.take(ID[token])
    assert " and" not in allowed(one) and " shoebox" in allowed(one)
    ahead = script(["<mask>", " its", " this", " city", " and", "."], 6)
    ahead.take(ID[" this"])
    ahead.take(ID[" city"])
    assert " and" not in allowed(ahead) and " its" in allowed(ahead)


def test_what_follows_the_blank_is_always_allowed():
    one = script([" this", " city", " and", " its", " this", "<mask>", " and", "."], 8)
    one.take(ID[" city"])  # in place of the masked word; now " and" would be a run that is there already
    assert " and" in allowed(one)
    assert written(one, [" and"]) == " this city and its this city and."
