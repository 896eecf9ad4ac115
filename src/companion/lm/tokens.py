"""The one place that turns text into token ids.

No other module calls a tokenizer on a prompt. Ids are what the Hugging Face tokenizer gives
by default (SmolLM2 and GPT-2 add no BOS); TransformerBridge gets these ids and never strings,
because its own ``to_tokens`` would prepend a BOS.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from companion.errors import CompanionError


class Batch(NamedTuple):
    """Padded token ids and the mask of real tokens."""

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]

    @property
    def positions(self) -> Int[Tensor, "batch pos"]:
        """Position of each token counted from the first real one (0 at left padding)."""
        return (self.mask.long().cumsum(-1) - 1).clamp(min=0)


def checked(texts: Iterable[str]) -> list[str]:
    """The texts as a list; of other things a library would complain obscurely, or take letters for texts.

    Raises
    ------
    CompanionError
        For a single string, for an item that is no string, and for one that UTF-8 cannot write.
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        kind = type(texts).__name__
        raise CompanionError(
            f"a list of texts is needed, not one object of type {kind}: write [text] for one text."
        )
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise CompanionError(f"texts[{i}] is of type {type(text).__name__}: every text must be a string.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            wrong = f"texts[{i}] is not UTF-8 text, {text[error.start]!a} in it is no character"
            raise CompanionError(f"{wrong}: decode it with the encoding that it has.") from error
    return texts


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], max_tokens: int | None = None
) -> list[list[int]]:
    """Return the ids of each text, ``max_tokens`` at most; an empty text is one EOS token.

    What a tokenizer puts at the end of every text (BERT's ``[SEP]``) stays at the end of one that is cut.
    """
    if not (texts := checked(texts)):
        return []
    encoded = tokenizer(texts, add_special_tokens=True, return_special_tokens_mask=True, verbose=False)
    rows = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    return [_cut(ids, added, max_tokens) or [tokenizer.eos_token_id] for ids, added in rows]


def bare(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[list[int]]:
    """The ids of each text without what a tokenizer puts around one: of completions and of single words."""
    texts = checked(texts)
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of one row of ids, without special tokens."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    assert isinstance(text, str)  # a list only for a list of rows
    return text


def _cut(ids: list[int], added: Sequence[int], limit: int | None) -> list[int]:
    """At most ``limit`` ids: the first ones, and those that were added at the end.

    Not left to the tokenizer: the limit would stay in it, be saved with it, and cut on the side it prefers.
    """
    if limit is None or len(ids) <= limit:
        return ids
    end = sum(1 for _ in itertools.takewhile(bool, reversed(added)))
    return (ids[: max(limit - end, 0)] + ids[len(ids) - end :])[:limit]


def by_length(rows: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Indices of rows in batches of ``size``, those of similar length together: little is padded."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def pad(rows: Sequence[Sequence[int]], side: Literal["left", "right"], pad_id: int = 0) -> Batch:
    """Pad rows of ids to one length. The mask, not the pad id, says what is padding."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = True
    return Batch(ids, mask)


def batches(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], max_tokens: int, size: int
) -> Iterator[tuple[list[int], Batch]]:
    """Encode texts; yield indices and a batch padded on the right, texts of similar length together."""
    rows = encode(tokenizer, texts, max_tokens)
    for chosen in by_length(rows, size):
        yield chosen, pad([rows[i] for i in chosen], "right")
