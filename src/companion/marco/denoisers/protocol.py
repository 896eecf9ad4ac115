"""Denoising language models: score the next token of a text, given a corrupted copy of it.

One interface, two kinds: :class:`companion.marco.denoisers.causal.PrefixDenoiser`, a causal language model
with adapters, and :class:`companion.marco.denoisers.encoder_decoder.Seq2SeqDenoiser`, encoder-decoders as in
the paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

Ids = Sequence[list[int]]  # token ids of some rows
BASE, EXPERT, ANTI_EXPERT = ROLES = ("base", "expert", "anti_expert")


class Encoded(NamedTuple):
    """Token ids of a text and the characters each stands for."""

    ids: list[int]
    spans: list[tuple[int, int]]


@runtime_checkable
class Decoding(Protocol):
    """A batch of targets being written, one token each at a time."""

    def step(self, ids: Int[Tensor, "rows"] | None) -> Float[Tensor, "rows vocab"]:
        """Append a token to each target (None: nothing, the first time) and return the logits of the next."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these targets only."""
        ...


@runtime_checkable
class Denoiser(Protocol):
    """What masking and rewriting need of a denoising model."""

    mask_id: int
    end_id: int
    marks: list[int]  # special tokens, never part of a text

    def encode(self, text: str) -> Encoded:
        """Token ids of plain text, without marks."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without marks."""
        ...

    def next_logits(
        self, roles: Sequence[str], sources: Ids, targets: Ids
    ) -> Iterator[Float[Tensor, "role rows vocab"]]:
        """Logits of the token after each target, given its source; some rows at a time, in order."""
        ...

    def surprise(self, roles: Sequence[str], sources: Ids, targets: Ids) -> Float[Tensor, "rows role"]:
        """Cross-entropy (nats) of each target and its end given its source, summed over tokens; one batch."""
        ...

    def begin(self, roles: Sequence[str], sources: Ids, targets: Ids) -> Decoding:
        """Start writing one target per source, with the model of its role, after what ``targets`` says."""
        ...


class Tokenised:
    """Plain text to token ids and back: the same for every tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.end_id = tokenizer, tokenizer.eos_token_id
        self.marks = list(tokenizer.all_special_ids)

    def encode(self, text: str) -> Encoded:
        """As in :class:`Denoiser`."""
        encoded = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        return Encoded(encoded["input_ids"], encoded["offset_mapping"])

    def decode(self, ids: Sequence[int]) -> str:
        """As in :class:`Denoiser`."""
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return self.tokenizer.decode(list(ids), **plain)  # type: ignore[return-value]  # of one row: one text


def summed(
    logits: Float[Tensor, "rows pos vocab"], ids: Int[Tensor, "rows pos"], real: Bool[Tensor, "rows pos"]
) -> Float[Tensor, "rows"]:
    """Cross-entropy of the real tokens of each row, summed in fp32 (for :meth:`Denoiser.surprise`)."""
    each = torch.zeros(real.shape, device=logits.device)
    each[real] = cross_entropy(logits[real].float(), ids[real], reduction="none")
    return each.sum(-1)
