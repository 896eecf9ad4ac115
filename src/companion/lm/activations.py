"""Neuron activations, summed in fp64 as they pass; nothing is kept per token.

Sums are kept by block of prompts, so that intervals can resample prompts and halves can be held
against each other, at the cost of one number per block and neuron.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from companion.lm import anatomy
from companion.lm.models import LanguageModel

BLOCKS = 50


@dataclass(frozen=True)
class Sums:
    """Activation sums over the tokens of each block of prompts, their number, and that of prompts in all."""

    total: Float[Tensor, "block layer d_mlp"]
    count: Int[Tensor, "block"]
    prompts: int

    @property
    def mean(self) -> Float[Tensor, "layer d_mlp"]:
        """Mean activation over all tokens, in fp64."""
        return self.weighted(torch.ones(len(self.count)))

    def weighted(self, weight: Float[Tensor, "*draw block"]) -> Float[Tensor, "*draw layer d_mlp"]:
        """Mean over tokens, each block counted ``weight`` times (0, 1 pick blocks, counts resample them).

        Several draws of weights together read the sums once.
        """
        weight = weight.double()
        n = weight @ self.count.double()
        return torch.tensordot(weight, self.total, dims=1) / n[..., None, None]


def blocks_of(n_prompts: int) -> Int[Tensor, "prompts"]:
    """The block of each prompt: random, but the same for every model."""
    return torch.randperm(n_prompts, generator=torch.Generator().manual_seed(0)) % min(BLOCKS, n_prompts)


class Watcher(ABC):
    """Sums by block of prompts while a model writes or reads; what is summed, a subclass's hooks say.

    ``eps`` is that of the norm behind attention and MLP, None without one.
    """

    def __init__(self, n_prompts: int, eps: float | None) -> None:
        self.eps = eps
        self.block = blocks_of(n_prompts)
        self.count = torch.zeros(min(BLOCKS, n_prompts), dtype=torch.long)
        self.rows = torch.zeros(0, dtype=torch.long)  # the block of each row of the batch
        self.mask = torch.zeros(0, 0, dtype=torch.bool)  # batch last

    @abstractmethod
    def hooks(self) -> Iterator[RemovableHandle]:
        """Hook what is to be summed, one module after the other."""

    @contextmanager
    def watching(self, prompts: Sequence[int]) -> Iterator[None]:
        """Record the forward passes of one batch, whose rows are these prompts.

        Set the tokens that count with :meth:`count_last` before each pass.
        """
        self.rows = self.block[list(prompts)]
        with ExitStack() as stack:
            try:
                for handle in self.hooks():
                    stack.callback(handle.remove)
                yield
            finally:
                self.rows, self.mask = self.rows[:0], self.mask[:0]

    def count_last(self, mask: Bool[Tensor, "batch last"]) -> None:
        """Say which of the last positions of the next pass count."""
        self.mask = mask
        self.count.index_add_(0, self.rows, mask.sum(-1).cpu())

    def leave(self, ended: Bool[Tensor, "batch"]) -> None:
        """Rows of the batch that further passes will not hold."""
        self.rows = self.rows[~ended.cpu()]

    def weight(self, output: Float[Tensor, "batch pos d_model"] | None = None) -> Float[Tensor, "batch last"]:
        """1 where a position counts; of an output that a norm follows, that norm's scale."""
        weight = self.mask.double()
        if self.eps is None or output is None:
            return weight
        return weight * (output[:, -self.mask.shape[1] :].double().square().mean(-1) + self.eps).rsqrt()

    def add(
        self,
        total: Float[Tensor, "block n"],
        values: Float[Tensor, "batch pos n"],
        weight: Float[Tensor, "batch last"],
    ) -> None:
        """Add up the last positions of each row, in fp64, in place."""
        by_row = torch.einsum("bp,bpn->bn", weight, values[:, -weight.shape[1] :].double())
        total.index_add_(0, self.rows, by_row.cpu())


class Recorder(Watcher):
    """Collects the activations of every layer while a model writes or reads.

    Parameters
    ----------
    n_prompts
        Prompts of the run; each belongs to a fixed random block.
    through_norm
        Divide activations by the scale of the norm that follows the MLP (Gemma), token by token,
        so that with :func:`companion.mechanism.neurons.value_vectors` they add up to what is written into
        the residual stream. Without effect on models that have no such norm. False takes them as
        published.

    Examples
    --------
    >>> from companion.lm import generation, models
    >>> lm = models.load("tiny-llama")
    >>> recorder = Recorder(lm, n_prompts=1)
    >>> text = generation.generate(lm, ["I think that"], new_tokens=5, recorder=recorder)
    >>> recorder.sums.mean.shape  # layer d_mlp
    torch.Size([3, 48])
    """

    def __init__(self, lm: LanguageModel, n_prompts: int, *, through_norm: bool = True) -> None:
        super().__init__(n_prompts, anatomy.output_norm_eps(lm) if through_norm else None)
        self.sites = list(anatomy.neuron_sites(lm).values())
        width = len(anatomy.output_vectors(lm, self.sites[0], None))
        self.total = torch.zeros(len(self.count), len(self.sites), width, dtype=torch.float64)

    @property
    def sums(self) -> Sums:
        return Sums(self.total, self.count, len(self.block))

    def hooks(self) -> Iterator[RemovableHandle]:
        for layer, module in enumerate(self.sites):
            yield module.register_forward_hook(self._hook(layer))

    def _hook(self, layer: int):
        def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.add(self.total[:, layer], args[0], self.weight(output))

        return add
