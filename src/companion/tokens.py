"""The one place that turns text into token ids.

No other module calls a tokenizer on a prompt. Ids are what the Hugging Face tokenizer gives
by default (SmolLM2 and GPT-2 add no BOS); TransformerBridge gets these ids and never strings,
because its own ``to_tokens`` would prepend a BOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase


class Batch(NamedTuple):
    """Padded token ids and the mask of real tokens."""

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]

    @property
    def positions(self) -> Int[Tensor, "batch pos"]:
        """Position of each token counted from the first real one (0 at left padding)."""
        return (self.mask.long().cumsum(-1) - 1).clamp(min=0)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
    """Return the ids of each text, cut after ``max_tokens``; an empty text is one EOS token."""
    ids = tokenizer(list(texts), add_special_tokens=True)["input_ids"] if texts else []
    return [row[:max_tokens] or [tokenizer.eos_token_id] for row in ids]


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
