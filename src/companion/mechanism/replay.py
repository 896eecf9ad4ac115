"""Token by token: the base model, in which some parts write what they write in the DPO model.

A patch with means holds a neuron at a constant, and much of what it does is the constant. Here nothing is
held: both models read one text, and at every position of it the write of the chosen neurons, the sum of their
m_i v_i, gives way to the DPO model's at the same position, m'_i v'_i (dynamic activation patching; Chen et
al., 2024, who replace m_i only). DPO changed value vectors, too, so activations alone would not do. Where a
norm follows the MLP (Gemma 2 and 3) a write is what reaches the residual stream, with the gain and the scale
of the model that it comes from. What no neuron writes can be replaced as well: the ``OTHERS``. Since the
stream is the sum of all writes, everything replaced *is* the DPO model, logits included::

    parts = {"tp": Part(toxic), "random_tp": Part(drawn), "all": Part(everything, OTHERS)}
    replayed = replay.read(base, tuned, direction, task, text, parts)
    replay.estimated(replayed)["kl_tp"]  # share of DPO's change in next-token distributions, an Estimate
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from companion import store
from companion.errors import CompanionError
from companion.lm import activations, anatomy, recording, tokens
from companion.lm.generation import Generated
from companion.lm.models import LanguageModel
from companion.mechanism import accounting, neurons
from companion.metrics.estimates import Estimate

OTHERS = ("embedding", "attention", "bias", "head")  # bias: of the MLPs; head: final norm and unembedding
BATCH = 16  # prompts; of so many all activations of a model are kept at a time, some 150 MB of SmolLM2
Kept = dict[tuple[str, int], Tensor]  # what a model writes in one batch, by kind and layer


@dataclass(frozen=True)
class Part:
    """What is replaced: neurons, and some of ``OTHERS`` in all layers.

    One mask per draw gives prompt i draw i, counted round. With ``own`` the base model's own writes are put
    in: a control that must change nothing.
    """

    neurons: Bool[Tensor, "*draw layer d_mlp"]
    others: tuple[str, ...] = ()
    own: bool = field(default=False, kw_only=True)

    def chosen(self, layer: int, items: Sequence[int]) -> Bool[Tensor, "#batch #pos d_mlp"]:
        """The neurons of a layer in each row of a batch of prompts."""
        of = self.neurons[..., layer, :]
        return of[None, None] if of.ndim == 1 else of[torch.tensor(items) % len(of)][:, None]

    @property
    def fingerprint(self) -> str:
        return f"{_digest(self.neurons)} {sorted(self.others)} {self.own}"


@dataclass(frozen=True)
class Replay:
    """Sums over the counted tokens of each block of prompts, in fp64; first of the DPO model, then of base.

    ``reading`` is the projection of the stream that enters the last layer, ``divergence`` KL(DPO ‖ this) of
    the next token in nats.
    """

    names: tuple[str, ...]
    reading: Float[Tensor, "name block"]
    divergence: Float[Tensor, "name block"]
    count: Int[Tensor, "block"]


def read(
    base: LanguageModel,
    tuned: LanguageModel,
    direction: Float[Tensor, "d_model"],
    task: recording.Task,
    text: Generated,
    parts: Mapping[str, Part],
    *,
    progress: str | None = None,
) -> Replay:
    """Let both models read prompts with the given continuations, and the base model once more with each part.

    Parts are replaced at all positions, the prompt's included; counted are those that predict the
    continuation, as in :func:`companion.lm.recording.read`, in the same blocks. The direction is used at the
    length it has. Kept in the store.

    Raises
    ------
    CompanionError
        If a part does not fit the model.
    """

    def sums() -> list:
        return _summed(_Sites(base), _Sites(tuned), direction, task, text, parts, progress).tolist()

    for name, part in parts.items():
        _require_fits(base, name, part)
    models = recording.inputs_of(base, task, text) | {"tuned": tuned.fingerprint}
    given = {"direction": _digest(direction), "parts": [[n, part.fingerprint] for n, part in parts.items()]}
    reading, divergence = torch.tensor(store.kept("replays", models | given, sums), dtype=torch.float64)
    block = activations.blocks_of(len(task.prompts))
    count = torch.zeros(reading.shape[1], dtype=torch.long).index_add_(0, block, text.mask.sum(-1))
    return Replay(("tuned", "base", *parts), reading, divergence, count)


def account(
    replayed: Replay, weight: Float[Tensor, "block"] | None = None, against: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Shares of DPO's change, blocks of prompts counted ``weight`` times (once).

    ``change`` is the base model's reading minus the DPO model's, ``divergence`` KL(DPO ‖ base), per token.
    ``reading_tp`` is the share of the first that part ``tp`` brings, ``kl_tp`` 1 − KL(DPO ‖ patched) /
    KL(DPO ‖ base): 0 is the base model, 1 the DPO model. Shares of parts need not add up. Of a part that is
    held ``against`` another, ``reading_tp_beyond`` and ``kl_tp_beyond`` are the differences.
    """
    weight = torch.ones(len(replayed.count)).double() if weight is None else weight.double()
    n = weight @ replayed.count.double()
    (tuned, base, *reading), (_, whole, *divergence) = (
        (sums @ weight / n).tolist() for sums in (replayed.reading, replayed.divergence)
    )
    found = {"change": base - tuned, "divergence": whole}
    for name, here, left in zip(replayed.names[2:], reading, divergence, strict=True):
        found[f"reading_{name}"] = (base - here) / (base - tuned or math.nan)
        found[f"kl_{name}"] = 1 - left / (whole or math.nan)
    for name, other in (against or {}).items():
        for kind in ("reading", "kl"):
            found[f"{kind}_{name}_beyond"] = found[f"{kind}_{name}"] - found[f"{kind}_{other}"]
    return found


def estimated(
    replayed: Replay, against: Mapping[str, str] | None = None, *, seed: int = 0, resamples: int = 300
) -> dict[str, Estimate]:
    """:func:`account` with bootstrap intervals over blocks of prompts, those of all models drawn together."""
    return accounting.bootstrap_blocks(
        lambda weight: account(replayed, weight, against), replayed, seed=seed, resamples=resamples
    )


class _Sites:
    """A model and the modules through which it writes: by layer attention, and MLP with its norm."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm, self.layers, self.eps = lm, anatomy.layers(lm), anatomy.output_norm_eps(lm)
        attention = zip(anatomy.attention_sites(lm).values(), anatomy.attention_norms(lm), strict=True)
        self.attention = [site if norm is None else norm for site, norm in attention]
        self.mlp = list(zip(anatomy.neuron_sites(lm).values(), anatomy.mlp_norms(lm), strict=True))
        children = lm.model.get_decoder().children()
        norms = [child for child in children if {p.ndim for p in child.parameters()} == {1}]
        self.head = [*norms, lm.model.get_output_embeddings()]  # only the final norm has but vectors

    def scale(self, output: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "#batch #pos 1"]:
        """By what the norm behind an MLP multiplies its output, its gain aside; 1 without one."""
        if self.eps is None:
            return output.new_ones(1, 1, 1)
        return (output.float().square().mean(-1, keepdim=True) + self.eps).rsqrt()

    def write(self, layer: int, m: Tensor, scale: Tensor, bias: bool) -> Float[Tensor, "batch pos d_model"]:
        """What activations of a layer add to the residual stream, with the MLP's bias or without."""
        written = m @ anatomy.output_vectors(self.lm, *self.mlp[layer])
        return (written + anatomy.output_bias(self.lm, *self.mlp[layer]) if bias else written) * scale


@torch.inference_mode()
def _summed(
    host: _Sites,
    donor: _Sites,
    direction: Float[Tensor, "d_model"],
    task: recording.Task,
    text: Generated,
    parts: Mapping[str, Part],
    progress: str | None,
) -> Float[Tensor, "both name block"]:
    """Readings and divergences, batch after batch: nothing else outlives a batch."""
    block, d = activations.blocks_of(len(task.prompts)), direction.double().to(host.lm.device)
    sums = torch.zeros(2, 2 + len(parts), int(block.max()) + 1, dtype=torch.float64)
    rows = tokens.encode(host.lm.tokenizer, task.prompts, task.max_prompt_tokens)
    batches = tokens.by_length(rows, min(BATCH, task.batch_size))
    for items in tqdm(batches, desc=progress, disable=progress is None):
        mask = text.mask[items].to(host.lm.device)
        batch = recording.teacher_forced([rows[i] for i in items], text.ids[items], text.mask[items])
        for name, (stream, divergence) in enumerate(_passes(host, donor, batch, items, mask, parts)):
            reading = ((stream.double() @ d) * mask).sum(-1)
            for total, by_row in zip(sums[:, name], (reading, divergence), strict=True):
                total.index_add_(0, block[items], by_row.cpu())
    return sums


def _passes(
    host: _Sites,
    donor: _Sites,
    batch: tokens.Batch,
    items: Sequence[int],
    mask: Bool[Tensor, "batch new"],
    parts: Mapping[str, Part],
) -> Iterator[tuple[Float[Tensor, "batch new d_model"], Float[Tensor, "batch"]]]:
    """Of DPO, base and each part: what enters the last layer, and KL(DPO ‖ this) of each row."""
    theirs: Kept = {}
    own: Kept = {}
    stream, target = _forward(donor, batch, mask.shape[1], _keep(donor, theirs))
    yield stream, _divergence(target, target, mask)
    keep = _keep(host, own) if any(part.own for part in parts.values()) else ()
    stream, logits = _forward(host, batch, mask.shape[1], keep)
    yield stream, _divergence(target, logits, mask)
    for part in parts.values():
        given = (host, own) if part.own else (donor, theirs)
        stream, logits = _forward(host, batch, mask.shape[1], _replace(host, *given, part, items))
        yield stream, _divergence(target, logits, mask)


def _forward(
    sites: _Sites, batch: tokens.Batch, new: int, hooks: Iterable[RemovableHandle]
) -> tuple[Float[Tensor, "batch new d_model"], Float[Tensor, "batch new vocab"]]:
    """One pass with hooks, which are gone afterwards: what enters the last layer, and logits."""
    device, seen = sites.lm.device, {}

    def enters(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen["stream"] = _hidden(args, kwargs)[:, -new:]

    with ExitStack() as stack:
        for handle in hooks:
            stack.callback(handle.remove)
        stack.callback(sites.layers[-1].register_forward_pre_hook(enters, with_kwargs=True).remove)
        ids, mask, positions = (x.to(device) for x in (batch.ids, batch.mask.long(), batch.positions))
        logits = sites.lm.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=new
        ).logits
    return seen["stream"], logits


def _divergence(
    target: Float[Tensor, "batch new vocab"],
    logits: Float[Tensor, "batch new vocab"],
    mask: Bool[Tensor, "batch new"],
) -> Float[Tensor, "batch"]:
    """KL(target ‖ logits) in nats, summed over the counted positions of each row; prompt by prompt."""

    def of(p: Tensor, q: Tensor) -> Tensor:
        p, q = p.float().log_softmax(-1), q.float().log_softmax(-1)
        return (p.exp() * (p - q)).sum(dtype=torch.float64)

    return torch.stack([of(p[kept], q[kept]) for p, q, kept in zip(target, logits, mask, strict=True)])


def _keep(sites: _Sites, kept: Kept) -> Iterator[RemovableHandle]:
    """Hooks that keep what a model writes, and by what its norms scale it."""

    def embedded(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        kept["embedding", 0] = _hidden(args, kwargs)

    def attended(layer: int, _module: nn.Module, _args: tuple, output: Tensor) -> None:
        kept["attention", layer] = output

    def fired(layer: int, _module: nn.Module, args: tuple, output: Tensor) -> None:
        kept["neurons", layer], kept["scale", layer] = args[0], sites.scale(output)

    yield sites.layers[0].register_forward_pre_hook(embedded, with_kwargs=True)
    for layer, (outlet, (site, _)) in enumerate(zip(sites.attention, sites.mlp, strict=True)):
        yield outlet.register_forward_hook(partial(attended, layer))
        yield site.register_forward_hook(partial(fired, layer))


def _replace(
    host: _Sites, donor: _Sites, kept: Kept, part: Part, items: Sequence[int]
) -> Iterator[RemovableHandle]:
    """Hooks that put a part of what the donor has written in the place of what the host writes."""

    def embed(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        new = kept["embedding", 0]
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

    def attend(layer: int, *_given: Any) -> Tensor:
        return kept["attention", layer]

    def read_out(module: nn.Module, _module: nn.Module, args: tuple, _output: Tensor) -> Tensor:
        return module.forward(*args)  # without hooks: it may be the host's own

    if "embedding" in part.others:
        yield host.layers[0].register_forward_pre_hook(embed, with_kwargs=True)
    if "attention" in part.others:
        for layer, outlet in enumerate(host.attention):
            yield outlet.register_forward_hook(partial(attend, layer))
    for layer in range(len(host.layers)):
        yield from _exchange(host, donor, kept, part, layer, items)
    if "head" in part.others:
        for module, other in zip(host.head, donor.head, strict=True):
            yield module.register_forward_hook(partial(read_out, other))


def _exchange(
    host: _Sites, donor: _Sites, kept: Kept, part: Part, layer: int, items: Sequence[int]
) -> Iterator[RemovableHandle]:
    """Hooks that take the write of a layer's chosen neurons away and add the donor's, behind any norm."""
    chosen, bias = part.chosen(layer, items).to(host.lm.device), "bias" in part.others
    if not (bias or chosen.any()):
        return
    site, norm = host.mlp[layer]
    differences: list[Tensor] = []

    def fire(_module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        theirs = donor.write(layer, kept["neurons", layer] * chosen, kept["scale", layer], bias)
        differences.append(theirs - host.write(layer, args[0] * chosen, host.scale(output), bias))
        return output + differences.pop() if norm is None else None

    def scaled(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
        return output + differences.pop()

    yield site.register_forward_hook(fire)
    if norm is not None:
        yield norm.register_forward_hook(scaled)


def _hidden(args: tuple, kwargs: dict) -> Tensor:
    """The residual stream that a layer is called with."""
    return args[0] if args else kwargs["hidden_states"]


def _digest(tensor: Tensor) -> str:
    given = tensor.detach().cpu().contiguous()
    about = f"{given.dtype} {tuple(given.shape)}"
    return hashlib.sha256(about.encode() + given.numpy().tobytes()).hexdigest()[:16]


def _require_fits(lm: LanguageModel, name: str, part: Part) -> None:
    shape = lm.n_layers, len(next(neurons.value_vectors(lm)))
    if part.neurons.ndim not in (2, 3) or part.neurons.shape[-2:] != shape:
        wrong = f"a mask of shape {shape}, or one for each draw, not {tuple(part.neurons.shape)}"
        raise CompanionError(f"part '{name}' does not fit the model: its neurons must be {wrong}.")
    if unknown := set(part.others) - set(OTHERS):
        raise CompanionError(f"part '{name}' asks for {sorted(unknown)}: besides neurons there are {OTHERS}.")
