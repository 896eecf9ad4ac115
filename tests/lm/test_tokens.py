"""Padding, masks, positions and encoding."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from companion.errors import CompanionError
from companion.lm import tokens
from companion.lm.tiny import MARKS, byte_tokenizer

ROWS = st.lists(st.lists(st.integers(0, 999), max_size=9), min_size=1, max_size=6)


def test_pad_by_hand():
    left = tokens.pad([[5, 6, 7], [8]], "left", pad_id=9)
    assert left.ids.tolist() == [[5, 6, 7], [9, 9, 8]]
    assert left.mask.tolist() == [[True, True, True], [False, False, True]]
    assert left.positions.tolist() == [[0, 1, 2], [0, 0, 0]]
    right = tokens.pad([[5, 6, 7], [8]], "right")
    assert right.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert right.mask.tolist() == [[True, True, True], [True, False, False]]
    assert right.positions[right.mask].tolist() == [0, 1, 2, 0]
    assert left.ids.dtype == right.ids.dtype == torch.long
    assert left.mask.dtype == torch.bool


@given(ROWS, st.sampled_from(["left", "right"]), st.integers(0, 999))
def test_pad_keeps_every_row(rows, side, pad_id):
    batch = tokens.pad(rows, side, pad_id)
    width = max(map(len, rows))
    assert batch.ids.shape == batch.mask.shape == (len(rows), width)
    for row, ids, mask, positions in zip(rows, *batch, batch.positions, strict=True):
        assert ids[mask].tolist() == row
        assert (ids[~mask] == pad_id).all()
        assert positions[mask].tolist() == list(range(len(row)))
        edge = mask[width - len(row) :] if side == "left" else mask[: len(row)]
        assert edge.all()  # the row touches its side


def test_encode_cuts_after_the_first_tokens(tiny):
    text = "The cat sat"
    whole = tokens.encode(tiny.tokenizer, [text])[0]
    assert len(whole) == len(text)  # one token per byte
    assert tokens.encode(tiny.tokenizer, [text, "a"], 4) == [
        whole[:4],
        tokens.encode(tiny.tokenizer, ["a"])[0],
    ]
    assert tiny.tokenizer.decode(whole) == text


def test_encode_empty_text_is_one_end_of_text(tiny):
    assert tokens.encode(tiny.tokenizer, [""]) == [[tiny.tokenizer.eos_token_id]]
    assert tokens.encode(tiny.tokenizer, ["", "ab"], 1) == [
        [tiny.tokenizer.eos_token_id],
        tokens.encode(tiny.tokenizer, ["a"])[0],
    ]
    assert tokens.encode(tiny.tokenizer, []) == []


def test_encode_of_the_real_model_adds_no_bos(embedded_lm):
    assert tokens.encode(embedded_lm.tokenizer, ["hi"]) == [[6004]]
    assert tokens.encode(embedded_lm.tokenizer, [""]) == [[embedded_lm.tokenizer.eos_token_id]]


NO_TEXTS = [
    None,
    3,
    "one text",
    b"bytes",
    ["a", None],
    ["a", 1.5],
    ["a", b"b"],
    ["a", "caf\udce9"],
    pd.Series(["a", None]),
]


@pytest.mark.parametrize("wrong", NO_TEXTS, ids=repr)
def test_what_is_no_list_of_texts_is_one_sentence(unchecked, tiny_llama, wrong):
    """B12, B35: with the index of the text, if it is one of them."""
    for call in (tokens.checked, lambda texts: tokens.encode(tiny_llama.tokenizer, texts)):
        with pytest.raises(CompanionError, match=r"^(a list of texts is needed|texts\[1\] is)[^\n]*\.$"):
            call(wrong)


def test_any_sequence_of_texts_will_do(tiny_llama):
    """B12: what worked goes on working."""
    expected = tokens.encode(tiny_llama.tokenizer, ["ab", "é 😀", ""])
    texts = ["ab", "é 😀", ""]
    for some in (
        tuple(texts),
        np.array(texts),
        np.array(texts, dtype=object),
        pd.Series(texts, index=[7, 8, 9]),
        iter(texts),
    ):
        assert tokens.encode(tiny_llama.tokenizer, some) == expected
    for none in ([], (), np.array([], dtype=str), pd.Series([], dtype=str)):
        assert tokens.encode(tiny_llama.tokenizer, none) == [] == tokens.checked(none)


def marked(template: str):
    """A tokenizer of bytes that puts marks around each text, as BERT's and Llama's do."""
    tokenizer = byte_tokenizer()
    ids = [(mark, tokenizer.convert_tokens_to_ids(mark)) for mark in MARKS[:2]]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("template", ["{0} $A {1}", "{0} $A", "$A {0} {1}", "$A"])
def test_marks_at_the_end_stay_when_a_text_is_cut(template, side):
    """B37: as the tokenizer itself cuts on the right; where no marks stand at the end, as a slice."""
    tokenizer = marked(template.format(*MARKS[:2]))
    texts = ["", "a", "abcd", "abcde", "abcdefgh", MARKS[1], "x" + MARKS[1] * 9]
    whole = [row or [tokenizer.eos_token_id] for row in tokenizer(texts)["input_ids"]]
    expected = tokenizer(texts, truncation=True, max_length=5)["input_ids"]
    tokenizer.truncation_side = side
    assert tokens.encode(tokenizer, texts, 5) == [row or [tokenizer.eos_token_id] for row in expected]
    if template.endswith("$A"):
        assert tokens.encode(tokenizer, texts, 5) == [row[:5] for row in whole]
    assert max(map(len, tokens.encode(tokenizer, texts, 1))) == 1
    assert tokens.encode(tokenizer, texts) == whole  # no limit stays in the tokenizer
    assert tokenizer.truncation_side == side and tokenizer.backend_tokenizer.truncation is None


def test_the_real_models_texts_are_cut_as_slices(embedded_lm):
    """B37."""
    texts = ["The cat sat on the mat, and so it goes.", "", "hi"]
    whole = tokens.encode(embedded_lm.tokenizer, texts)
    for limit in (1, 4, 8, 99):
        assert tokens.encode(embedded_lm.tokenizer, texts, limit) == [row[:limit] for row in whole]
