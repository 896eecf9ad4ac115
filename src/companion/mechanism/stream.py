"""Mean residual streams behind every layer, and how far two models' streams are apart on one text.

Differences of means between contexts give directions that steer (Arditi et al., 2024, *Refusal in language
models is mediated by a single direction*). Here the contexts are the same and the models differ::

    before, after = (stream.read(lm, task, text) for lm in (base, tuned))  # both on one text
    after.mean - before.mean  # layer d_model
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from companion import store
from companion.lm import anatomy, recording
from companion.lm.activations import Watcher
from companion.lm.generation import Generated
from companion.lm.models import LanguageModel


@dataclass(frozen=True)
class Stream:
    """The stream behind every layer, summed over the counted tokens of each block of prompts, in fp64."""

    total: Float[Tensor, "block layer d_model"]
    count: Int[Tensor, "block"]

    @property
    def mean(self) -> Float[Tensor, "layer d_model"]:
        """Mean over all tokens."""
        return self.total.sum(0) / self.count.sum()

    def paired(self, layer: int) -> Float[Tensor, "2 pair d_model"]:
        """Means of blocks of prompts behind one layer, two by two: the first of each pair, and the second."""
        means = self.total[:, layer] / self.count[:, None]
        return torch.stack([means[: len(means) // 2], means[len(means) // 2 :][: len(means) // 2]])


def read(lm: LanguageModel, task: recording.Task, text: Generated, *, progress: str | None = None) -> Stream:
    """Let a model read prompts with the given continuations; the stream where it predicts these."""

    def build(folder: Path) -> None:
        watcher = _Leaving(lm, len(task.prompts))
        recording.watch(lm, task, text, watcher, progress)
        save_file({"total": watcher.total, "count": watcher.count}, folder / "stream.safetensors")

    folder = store.artifact("stream", recording.inputs_of(lm, task, text), build)
    stored = load_file(folder / "stream.safetensors")
    return Stream(stored["total"], stored["count"])


class _Leaving(Watcher):
    """Adds up what leaves every layer."""

    def __init__(self, lm: LanguageModel, n_prompts: int) -> None:
        super().__init__(n_prompts, None)
        self.layers = anatomy.layers(lm)
        shape = len(self.count), len(self.layers), lm.model.config.hidden_size
        self.total = torch.zeros(shape, dtype=torch.float64)

    def hooks(self) -> Iterator[RemovableHandle]:
        for layer, block in enumerate(self.layers):
            yield block.register_forward_hook(partial(self._leaves, layer))

    def _leaves(self, layer: int, _module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        self.add(self.total[:, layer], stream, self.weight())


def spectrum(differences: Float[Tensor, "n d_model"]) -> Float[Tensor, "component"]:
    """Shares of the sum of squares of some vectors along their principal directions, the mean left in.

    A share of 1 for the first says that all are multiples of one vector.
    """
    squares = torch.linalg.svdvals(differences.double()) ** 2
    return squares / squares.sum()
