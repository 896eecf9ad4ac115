"""The encoders of the fine-tuned scorers, from PyPI packages: MiniLM, and halves of two language models.

All give the states that enter the first layer, run some of their layers, and pool: so that what stays
frozen in training is computed once (:mod:`companion.toxicity.training`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from companion.lm import models, tokens
from companion.lm.sentence_encoder import load_encoder

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Mask = Bool[Tensor, "batch pos"]
States = Float[Tensor, "batch pos d_model"]


class Encoder(nn.Module, ABC):
    """Embeddings and layers of a language model, and how its states are pooled."""

    n_frozen: ClassVar[int]  # layers that training leaves as they are
    width: ClassVar[int]  # of the pooled states
    adapted: ClassVar[list[str]]  # linear maps that get a LoRA adapter
    source: ClassVar[str]
    epochs: ClassVar[int]
    embeddings: nn.Module
    layers: nn.ModuleList
    tokenizer: PreTrainedTokenizerBase

    def encode(self, texts: Iterable[str], max_tokens: int) -> list[list[int]]:
        """Token ids of each text."""
        return tokens.encode(self.tokenizer, texts, max_tokens)

    def embed(self, batch: tokens.Batch) -> States:
        """What enters the first layer."""
        return self.embeddings(batch.ids)

    @abstractmethod
    def run(self, states: States, mask: Mask, layers: slice) -> States:
        """The states after some of the layers; padding is on the right."""

    @abstractmethod
    def pool(self, states: States, mask: Mask) -> Float[Tensor, "batch width"]:
        """One row of features per text."""


def masked_mean(states: States, mask: Mask) -> Float[Tensor, "batch d_model"]:
    """The mean over real tokens, in fp32: padding changes nothing."""
    weight = mask.unsqueeze(-1).float()
    return (states.float() * weight).sum(1) / weight.sum(1)


class Half(Encoder):
    """The lower layers of a causal language model. Read out: the mean state, and the last one.

    The middle of a model knows most of what a head needs (``data/scorer/README.md``), at half the price.
    Each text begins with one token that is the same for all: its state holds what attention has no use for.
    """

    first: int

    def encode(self, texts: Iterable[str], max_tokens: int) -> list[list[int]]:
        rows = tokens.encode(self.tokenizer, texts, max_tokens)
        return [row if row[0] == self.first else [self.first, *row[: max_tokens - 1]] for row in rows]

    @abstractmethod
    def rotations(self, states: States) -> list[Any]:
        """Each layer's rotary embedding of the positions."""

    def run(self, states: States, mask: Mask, layers: slice) -> States:
        """Attention is causal and padding is on the right: no token sees it, so no mask is needed."""
        for layer, rotation in list(zip(self.layers, self.rotations(states), strict=True))[layers]:
            states = layer(states, position_embeddings=rotation, attention_mask=None)
        return states

    def pool(self, states: States, mask: Mask) -> Float[Tensor, "batch width"]:
        """The mean over all tokens but the first, and the last token's state."""
        words = mask.clone()
        words[:, 0] &= mask.sum(1) == 1
        last = states[torch.arange(len(states)), mask.sum(1) - 1]
        return torch.cat([masked_mean(states, words), last.float()], dim=-1)


class HalfGemma(Half):
    """Nine of Gemma 3 270M's eighteen layers. Texts are shorter than the window of the sliding ones."""

    n_frozen: ClassVar[int] = 4
    epochs: ClassVar[int] = 3
    width: ClassVar[int] = 2 * 640
    adapted: ClassVar[list[str]] = LINEAR
    source: ClassVar[str] = "google/gemma-3-270m"
    rotary: nn.Module
    kinds: list[str]  # of attention, by layer

    def __init__(self) -> None:
        super().__init__()
        lm = models.load(models.JUDGE)
        inner: Any = lm.model.model
        self.embeddings, self.rotary, self.layers = inner.embed_tokens, inner.rotary_emb, inner.layers[:9]
        self.kinds, self.tokenizer = inner.config.layer_types[:9], lm.tokenizer
        self.first = inner.config.bos_token_id

    def rotations(self, states: States) -> list[Any]:
        positions = torch.arange(states.shape[1], device=states.device)[None]
        rotation = {kind: self.rotary(states, positions, kind) for kind in set(self.kinds)}
        return [rotation[kind] for kind in self.kinds]


class HalfSmolLM(Half):
    """Fourteen of SmolLM2-135M-Instruct's thirty layers."""

    n_frozen: ClassVar[int] = 6
    epochs: ClassVar[int] = 4
    width: ClassVar[int] = 2 * 576
    adapted: ClassVar[list[str]] = LINEAR
    source: ClassVar[str] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    rotary: nn.Module

    def __init__(self) -> None:
        super().__init__()
        lm = models.load(models.EMBEDDED)
        inner: Any = lm.model.model
        self.embeddings, self.rotary, self.layers = inner.embed_tokens, inner.rotary_emb, inner.layers[:14]
        self.tokenizer = lm.tokenizer
        self.first = lm.tokenizer.get_vocab()["<|endoftext|>"]

    def rotations(self, states: States) -> list[Any]:
        positions = torch.arange(states.shape[1], device=states.device)[None]
        return [self.rotary(states, positions)] * len(self.layers)


class MiniLM(Encoder):
    """all-MiniLM-L6-v2 (384 dimensions, 6 layers). Read out: the mean of the last states."""

    n_frozen: ClassVar[int] = 0
    epochs: ClassVar[int] = 5
    width: ClassVar[int] = 384
    adapted: ClassVar[list[str]] = [
        *("query", "key", "value"),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    ]
    source: ClassVar[str] = "sentence-transformers/all-MiniLM-L6-v2"

    def __init__(self) -> None:
        super().__init__()
        loaded, self.tokenizer = load_encoder()
        encoder: Any = loaded
        self.embeddings, self.layers = encoder.embeddings, encoder.encoder.layer

    def embed(self, batch: tokens.Batch) -> States:
        return self.embeddings(input_ids=batch.ids)

    def run(self, states: States, mask: Mask, layers: slice) -> States:
        seen = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
        for layer in self.layers[layers]:
            states = layer(states, seen)
        return states

    def pool(self, states: States, mask: Mask) -> Float[Tensor, "batch width"]:
        return masked_mean(states, mask)
