"""Tokenizers built from GGUF files: what transformers 5.15 gets wrong must not depend on its version."""

from __future__ import annotations

import pytest

from companion.lm import models

TEXT = "hi there, 12 naïve  cats\n\n\tdon't 🙂"


@pytest.mark.parametrize(
    ("name", "special", "ids"),
    [
        (models.EMBEDDED, {"bos": 1, "eos": 2, "pad": 2, "unk": 0}, [6004, 665]),
        (models.JUDGE, {"bos": 2, "eos": 1, "pad": 0, "unk": 3}, [2, 2202, 993]),  # <bos>, hi, ▁there
    ],
)
def test_tokens_are_those_that_the_model_was_trained_with(name, special, ids):
    tokenizer = models.load(name).tokenizer
    assert {role: getattr(tokenizer, f"{role}_token_id") for role in special} == special
    assert tokenizer("hi there").input_ids == ids
    assert tokenizer.decode(tokenizer(TEXT).input_ids, skip_special_tokens=True) == TEXT
    added = ids[0] == special["bos"]
    assert len(tokenizer(TEXT).input_ids) < len(TEXT) - 5 + added  # words, not letters
    assert tokenizer(tokenizer.eos_token, add_special_tokens=False).input_ids == [special["eos"]]


def test_the_packaged_chat_model_has_its_template(embedded_lm):
    asked = embedded_lm.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert asked.endswith("<|im_start|>user\nHi<|im_end|>\n")
