"""A tokenizer as the metadata of a GGUF file describe it.

Not left to transformers: what 5.15 makes of Gemma's file cuts text into letters, and of SmolLM2's it takes
the token that begins a message for the one that ends it. Both raise nothing and change all later numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

CONTROL, USER_DEFINED = 3, 4  # types of tokens that stay whole in a text
SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def load(file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file with a byte-level (GPT-2) or a SentencePiece vocabulary (Gemma)."""
    fields = gguf.GGUFReader(file).fields
    values: dict[str, Any] = {
        name.removeprefix("tokenizer.ggml."): field.contents()
        for name, field in fields.items()
        if name.startswith("tokenizer.ggml.")
    }
    special = {role: values["tokens"][values[key]] for role, key in SPECIAL.items() if key in values}
    byte_level = values["model"] == "gpt2"
    tokenizer = _byte_level(values) if byte_level else _sentence_piece(values, special["unk_token"])
    types = list(zip(values["tokens"], values["token_type"], strict=True))
    for kind, add in ((CONTROL, tokenizer.add_special_tokens), (USER_DEFINED, tokenizer.add_tokens)):
        whole = [token for token, its in types if its == kind and tokenizer.token_to_id(token) is not None]
        add([AddedToken(token, normalized=False) for token in whole])
    begin = special["bos_token"] if values.get("add_bos_token") else None
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A" if begin else "$A",
        pair=f"{begin} $A {begin}:1 $B:1" if begin else "$A $B:1",
        special_tokens=[(begin, tokenizer.token_to_id(begin))] if begin else [],
    )
    template = fields["tokenizer.chat_template"].contents() if "tokenizer.chat_template" in fields else None
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **special)


def _byte_level(values: dict[str, Any]) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(values["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in values["merges"]]
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(values: dict[str, Any], unknown: str) -> Tokenizer:
    """Spaces are written as ▁. The file lists no merges: each cut of a token in two is one, by id."""
    tokens = ["▁" * len(token) if not token.strip(" ") else token for token in values["tokens"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [
        (token[:cut], token[cut:])
        for token in tokens
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer
