"""Who writes what the probe reads: the embedding, every attention head and every MLP.

The probe reads the residual stream that enters the last block: the embedding plus what every attention and
every MLP before it adds. So its projection on a direction d splits exactly (direct attribution; Elhage et
al., 2021, *A mathematical framework for transformer circuits*). Head h adds z_h · (W_O^h d), with z_h its
values and W_O^h its rows of the output projection. Where a norm follows (Gemma 2 and 3), d is multiplied by
its gain and every token by its scale. Before minus after is positive if the change lowers the reading::

    before, after = (attribution.read(lm, d, task, text) for lm in (base, tuned))  # both on one text
    attribution.estimated(before, after)["attention_share"]  # of the change of the reading, an Estimate

It says who writes, not who causes: an MLP may write otherwise because a head before it does.
"""

from __future__ import annotations

import math
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
from companion.mechanism import accounting
from companion.metrics.estimates import Estimate

PARTS = ("embedding", "attention", "mlp", "bias")


@dataclass(frozen=True)
class Reading:
    """Projections on a direction, summed over the counted tokens of each block of prompts, in fp64.

    Layers are those before the last. ``reading`` is the stream's that enters the last one, as measured;
    ``bias`` is what the output projections add whatever the text, attention and MLP together.
    """

    reading: Float[Tensor, "block"]
    embedding: Float[Tensor, "block"]
    heads: Float[Tensor, "block layer head"]
    mlp: Float[Tensor, "block layer"]
    bias: Float[Tensor, "block layer"]
    count: Int[Tensor, "block"]

    def weighted(self, weight: Float[Tensor, "block"] | None = None) -> dict[str, Float[Tensor, "..."]]:
        """Means over tokens, each block counted ``weight`` times (once): the fields without ``block``."""
        weight = torch.ones(len(self.count)).double() if weight is None else weight.double()
        names = ("reading", "embedding", "heads", "mlp", "bias")
        n = weight @ self.count.double()
        return {name: torch.tensordot(weight, getattr(self, name), dims=1) / n for name in names}


def read(
    lm: LanguageModel,
    direction: Float[Tensor, "d_model"],
    task: recording.Task,
    text: Generated,
    *,
    progress: str | None = None,
) -> Reading:
    """Let a model read prompts with the given continuations; split the stream's projection on a direction.

    Counted are the positions that predict the continuation, as in :func:`companion.lm.recording.read`, in
    the same blocks. The direction is used at the length it has. What is kept in the store depends on no
    direction, so a second one costs no forward pass.
    """

    def build(folder: Path) -> None:
        watcher = _Writes(lm, len(task.prompts))
        recording.watch(lm, task, text, watcher, progress)
        save_file(watcher.sums | {"count": watcher.count}, folder / "writes.safetensors")

    folder = store.artifact("attribution", recording.inputs_of(lm, task, text), build)
    return _projected(lm, load_file(folder / "writes.safetensors"), direction)


class _Writes(Watcher):
    """Adds up the stream at both ends, and what output projections are given; last a 1, for their bias."""

    def __init__(self, lm: LanguageModel, n_prompts: int) -> None:
        super().__init__(n_prompts, anatomy.output_norm_eps(lm))
        layers, written = anatomy.layers(lm), _written(lm)
        self.ends = {"embedding": layers[0], "stream": layers[-1]}
        self.sites = {kind: [site for site, _ in outputs[:-1]] for kind, outputs in written.items()}
        shapes: dict[str, tuple[int, ...]] = {end: (lm.model.config.hidden_size,) for end in self.ends}
        shapes |= {kind: (len(of) - 1, len(_vectors(lm, *of[0]))) for kind, of in written.items()}
        self.sums = {
            name: torch.zeros(len(self.count), *shape, dtype=torch.float64) for name, shape in shapes.items()
        }

    def hooks(self) -> Iterator[RemovableHandle]:
        for end, layer in self.ends.items():
            yield layer.register_forward_pre_hook(partial(self._enters, end), with_kwargs=True)
        for kind, sites in self.sites.items():
            for layer, site in enumerate(sites):
                yield site.register_forward_hook(partial(self._writes, kind, layer))

    def _enters(self, end: str, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.add(self.sums[end], args[0] if args else kwargs["hidden_states"], self.weight())

    def _writes(self, kind: str, layer: int, _module: nn.Module, args: tuple, output: Tensor) -> None:
        inputs = torch.cat([args[0], torch.ones_like(args[0][..., :1])], dim=-1)
        self.add(self.sums[kind][:, layer], inputs, self.weight(output))


def _written(lm: LanguageModel) -> dict[str, list[tuple[nn.Module, nn.Module | None]]]:
    """The output projections of all layers, each with the norm behind it."""
    attention = zip(anatomy.attention_sites(lm).values(), anatomy.attention_norms(lm), strict=True)
    mlp = zip(anatomy.neuron_sites(lm).values(), anatomy.mlp_norms(lm), strict=True)
    return {"attention": list(attention), "mlp": list(mlp)}


def _vectors(lm: LanguageModel, site: nn.Module, norm: nn.Module | None) -> Float[Tensor, "inputs d_model"]:
    """What a unit of each input writes, in fp64; last the bias, which an input of 1 writes."""
    vectors = anatomy.output_vectors(lm, site, norm)
    return torch.cat([vectors, anatomy.output_bias(lm, site, norm)[None]]).double().cpu()


def _projected(lm: LanguageModel, sums: dict[str, Tensor], direction: Float[Tensor, "d_model"]) -> Reading:
    """Sums of inputs times what a unit of each writes along the direction."""
    d, pieces = direction.double().cpu(), {"attention": lm.model.config.num_attention_heads, "mlp": 1}
    bias, parts = torch.zeros(sums["mlp"].shape[:2], dtype=torch.float64), {}  # block layer
    for kind, outputs in _written(lm).items():
        along = [_vectors(lm, *output) @ d for output in outputs[:-1]]
        by_input = sums[kind] * torch.stack(along)  # block layer inputs
        parts[kind] = by_input[..., :-1].unflatten(-1, (pieces[kind], -1)).sum(-1)
        bias += by_input[..., -1]
    reading, embedding = (sums[end] @ d for end in ("stream", "embedding"))
    return Reading(reading, embedding, parts["attention"], parts["mlp"][..., 0], bias, sums["count"])


def account(
    before: Reading, after: Reading, weight: Float[Tensor, "block"] | None = None
) -> dict[str, float]:
    """Before minus after, per token, by component; blocks of prompts counted ``weight`` times.

    ``reading`` is the whole; ``embedding``, ``attention``, ``mlp`` and ``bias`` are its parts, and
    ``attention_share`` … their shares of it, without bounds where parts differ in sign. ``attention_3``,
    ``mlp_3`` are those of a layer, ``head_3_0`` is a head's.
    """
    one, other = before.weighted(weight), after.weighted(weight)
    change = {name: one[name] - other[name] for name in one}
    layers = {"attention": change["heads"].sum(-1), "mlp": change["mlp"]}
    sums = {"reading": float(change["reading"]), "embedding": float(change["embedding"])}
    sums |= {kind: float(by_layer.sum()) for kind, by_layer in layers.items()}
    sums |= {"bias": float(change["bias"].sum())}
    sums |= {f"{part}_share": sums[part] / (sums["reading"] or math.nan) for part in PARTS}
    for kind, by_layer in layers.items():
        sums |= {f"{kind}_{layer}": value for layer, value in enumerate(by_layer.tolist())}
    for layer, heads in enumerate(change["heads"].tolist()):
        sums |= {f"head_{layer}_{head}": value for head, value in enumerate(heads)}
    return sums


def estimated(before: Reading, after: Reading, *, seed: int = 0, resamples: int = 300) -> dict[str, Estimate]:
    """:func:`account` with bootstrap intervals over blocks of prompts, those of both drawn together."""
    return accounting.bootstrap_blocks(
        lambda weight: account(before, after, weight), before, seed=seed, resamples=resamples
    )
