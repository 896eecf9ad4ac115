"""Padding, masks, positions and encoding."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from companion import tokens

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
    assert tokens.encode(tiny.tokenizer, [text, "a"], 4) == [whole[:4], tokens.encode(tiny.tokenizer, ["a"])[0]]
    assert tiny.tokenizer.decode(whole) == text


def test_encode_empty_text_is_one_end_of_text(tiny):
    assert tokens.encode(tiny.tokenizer, [""]) == [[tiny.tokenizer.eos_token_id]]
    assert tokens.encode(tiny.tokenizer, ["", "ab"], 1) == [[tiny.tokenizer.eos_token_id], tokens.encode(tiny.tokenizer, ["a"])[0]]
    assert tokens.encode(tiny.tokenizer, []) == []


def test_encode_of_the_real_model_adds_no_bos(embedded_lm):
    assert tokens.encode(embedded_lm.tokenizer, ["hi"]) == [[6004]]
    assert tokens.encode(embedded_lm.tokenizer, [""]) == [[embedded_lm.tokenizer.eos_token_id]]
