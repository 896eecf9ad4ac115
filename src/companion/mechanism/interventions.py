"""Interventions on a running model, through TransformerLens hook points.

Each intervention says what to do to a tensor at a hook point; :func:`applied` does it within a
``with`` block and leaves hooks and weights as they were. No weight is ever written: an ablated
value vector is a zeroed activation, a rescaled key a rescaled pre-activation.

Sets of neurons are boolean masks of shape [layer, d_mlp] and values have the same shape, so that
what does not fit is refused. A set to ablate may also have one mask per draw, [draw, layer, d_mlp]:
item i of a run (prompt, window) then gets draw i, counted round, so that a random control is as many
draws as there are prompts, for the price of one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from transformer_lens import TransformerBridge

from companion.errors import CompanionError
from companion.lm import rows

Edit = Callable[[Tensor], Tensor]
CONTEXT = 32  # tokens of a text that stand for a prompt
_SPARED = {"AFTER_FIRST": 1, "CONTINUATION": CONTEXT - 1}  # tokens at the beginning of a text


class Positions(Enum):
    """Where an intervention acts in each forward pass.

    ``GENERATED`` are the positions that predict a generated token: the last one of every pass
    while decoding with a cache. Without a cache nothing tells what was generated; it is refused,
    give a mask instead. ``FIRST`` is position 0 of any pass, where the papers' code patches for
    perplexity. ``AFTER_FIRST`` spares only the first token of a text, the attention sink, whose
    activations are unlike all others. ``CONTINUATION`` spares the first ``CONTEXT`` tokens but for the last
    of them, which predicts: a text is read as if the model had written it behind a clean prompt. Both are
    for passes over whole texts without padding on the left.
    """

    ALL = "all"
    GENERATED = "generated"
    FIRST = "first"
    AFTER_FIRST = "after first"
    CONTINUATION = "continuation"


@runtime_checkable
class Intervention(Protocol):
    """What :func:`applied` needs: edits by hook point, and a fingerprint for the store."""

    def edits(self, model: TransformerBridge) -> dict[str, Edit]: ...

    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Subtract:
    """x ← x − scale · direction in the residual stream behind block ``layer`` (Lee et al., 3.3)."""

    direction: Float[Tensor, "*draw d_model"]
    scale: float
    layer: int

    def edits(self, model: TransformerBridge) -> dict[str, Edit]:
        _require(
            self.direction.ndim in (1, 2) and self.direction.shape[-1] == model.cfg.d_model,
            f"the direction needs {model.cfg.d_model} numbers, not {tuple(self.direction.shape)}",
        )
        n = model.cfg.n_layers
        _require(0 <= self.layer < n, f"there is no layer {self.layer}: the model has {n}")
        step = _of_rows((self.scale * self.direction).to(model.cfg.device))
        return {f"blocks.{self.layer}.hook_out": lambda x: x - step().to(x.dtype)}

    @property
    def fingerprint(self) -> str:
        scale_and_layer = torch.tensor([self.scale, self.layer], dtype=torch.float64)
        return _digest("subtract", self.direction, scale_and_layer)


@dataclass(frozen=True)
class AblateValues:
    """Zero the value vectors of some neurons: the same as zeroing their activations."""

    neurons: Bool[Tensor, "*draw layer d_mlp"]

    def edits(self, model: TransformerBridge) -> dict[str, Edit]:
        def edit(_layer: int, chosen: Callable[[], Tensor]) -> Edit:
            return lambda x: x.masked_fill(chosen(), 0)

        return _by_layer(model, self.neurons, "hook_post", edit)

    @property
    def fingerprint(self) -> str:
        return _digest("ablate", self.neurons)


@dataclass(frozen=True)
class RescaleKeys:
    """Multiply the key vectors of some neurons by ``factor``; 0 ablates them.

    Un-aligning: Lee et al. (2024), section 6. The key is the weight that reads the residual stream:
    in GPT-2 the only one (its bias stays, so factor 0 leaves σ(b)), in gated MLPs the linear branch,
    W2 in Lee et al., table 5.
    """

    neurons: Bool[Tensor, "*draw layer d_mlp"]
    factor: float

    def edits(self, model: TransformerBridge) -> dict[str, Edit]:
        def edit(layer: int, chosen: Callable[[], Tensor]) -> Edit:
            bias = 0.0 if gated else model.blocks[layer].mlp.b_in
            return lambda x: torch.where(chosen(), self.factor * (x - bias) + bias, x)

        gated = model.cfg.gated_mlp
        return _by_layer(model, self.neurons, "hook_pre_linear" if gated else "hook_pre", edit)

    @property
    def fingerprint(self) -> str:
        return _digest("keys", self.neurons, torch.tensor(self.factor, dtype=torch.float64))


@dataclass(frozen=True)
class OpenGates:
    """Set the gates σ(W₁x) of some neurons to 1: the linear branch passes as it is (Lee et al., table 5)."""

    neurons: Bool[Tensor, "*draw layer d_mlp"]

    def edits(self, model: TransformerBridge) -> dict[str, Edit]:
        _require(model.cfg.gated_mlp, "its MLPs have no gates")

        def edit(layer: int, chosen: Callable[[], Tensor]) -> Edit:
            opened = _where_one(model.blocks[layer].mlp.original_component.act_fn)
            return lambda x: x.masked_fill(chosen(), opened)

        return _by_layer(model, self.neurons, "hook_pre", edit)

    @property
    def fingerprint(self) -> str:
        return _digest("gates", self.neurons)


@dataclass(frozen=True)
class Patch:
    """Set the activations of some neurons to values, the same everywhere (Yang et al., section 3)."""

    neurons: Bool[Tensor, "*draw layer d_mlp"]
    values: Float[Tensor, "layer d_mlp"]

    def edits(self, model: TransformerBridge) -> dict[str, Edit]:
        _require(
            self.values.shape == self.neurons.shape[-2:],
            f"{tuple(self.values.shape)} values for {tuple(self.neurons.shape)} neurons",
        )

        def edit(layer: int, chosen: Callable[[], Tensor]) -> Edit:
            given = self.values[layer].to(model.cfg.device, torch.float32)
            return lambda x: torch.where(chosen(), given.to(x.dtype), x)

        return _by_layer(model, self.neurons, "hook_post", edit)

    @property
    def fingerprint(self) -> str:
        held = self.neurons.flatten(0, -3).any(0) if self.neurons.ndim == 3 else self.neurons
        return _digest("patch", self.neurons, torch.where(held, self.values, 0))


@contextmanager
def applied(
    model: TransformerBridge, *interventions: Intervention, positions: Positions | Bool[Tensor, "batch pos"]
) -> Iterator[None]:
    """Apply interventions, in the order given, to every forward pass within the block.

    Blocks may be nested. On the way out, also after an exception, hooks are as they were::

        view = anatomy.bridge(lm)  # wraps lm.model in place
        with applied(view, AblateValues(cosine > 0.1), positions=Positions.ALL):
            texts = generate(lm, prompts, new_tokens=20).texts

    Raises
    ------
    CompanionError
        If an intervention does not fit the model, or a pass has no such positions.
    """

    def check(_module, _args: tuple, kwargs: dict) -> None:
        decoding = kwargs.get("past_key_values") is not None
        _require(
            positions is not Positions.GENERATED or decoding,
            "generated positions are known only while decoding with a cache: give a mask",
        )
        _require(
            positions not in (Positions.AFTER_FIRST, Positions.CONTINUATION) or not decoding,
            "with a cache a pass does not begin with the first token",
        )

    def hook(edit: Edit) -> Callable[..., Tensor]:
        return lambda tensor, hook: _at(tensor, edit, positions)

    mask = isinstance(positions, Tensor) and positions.dtype == torch.bool and positions.ndim == 2
    _require(
        mask or isinstance(positions, Positions),
        "positions are one of Positions or a boolean mask of shape [batch, pos]",
    )
    hooks = [(name, hook(edit)) for given in interventions for name, edit in given.edits(model).items()]
    handle = model.original_model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        with model.hooks(fwd_hooks=hooks):
            yield
    finally:
        handle.remove()


def _at(tensor: Tensor, edit: Edit, positions: Positions | Tensor) -> Tensor:
    """The tensor with the edit at some positions only."""
    if isinstance(positions, Tensor):
        _require(
            positions.shape == tensor.shape[:2],
            f"the mask of positions is {tuple(positions.shape)}, the pass {tuple(tensor.shape[:2])}",
        )
        return torch.where(positions.to(tensor.device)[..., None], edit(tensor), tensor)
    if positions is Positions.ALL:
        return edit(tensor)
    if positions is Positions.FIRST:
        return torch.cat([edit(tensor[:, :1]), tensor[:, 1:]], 1)
    if spared := _SPARED.get(positions.name):
        return torch.cat([tensor[:, :spared], edit(tensor[:, spared:])], 1)
    return torch.cat([tensor[:, :-1], edit(tensor[:, -1:])], 1)


def _by_layer(
    model: TransformerBridge,
    neurons: Bool[Tensor, "*draw layer d_mlp"],
    site: str,
    edit: Callable[[int, Callable[[], Tensor]], Edit],
) -> dict[str, Edit]:
    """``edit`` at ``site`` of each layer in which neurons are chosen; it asks at each pass which they are."""
    shape = (model.cfg.n_layers, model.cfg.d_mlp)
    _require(
        neurons.dtype == torch.bool and neurons.ndim in (2, 3) and tuple(neurons.shape[-2:]) == shape,
        f"neurons must be a boolean mask of shape {shape}, or one for each draw, not {tuple(neurons.shape)}",
    )
    layers = neurons.flatten(0, -3).any(0) if neurons.ndim == 3 else neurons
    return {
        f"blocks.{layer}.mlp.{site}": edit(layer, _of_rows(neurons[..., layer, :].to(model.cfg.device)))
        for layer in layers.any(-1).nonzero()[:, 0].tolist()
    }


def _of_rows(given: Shaped[Tensor, "*draw n"]) -> Callable[[], Tensor]:
    """What holds in a pass: the same in each row, or in each row its draw."""

    def drawn() -> Tensor:
        items = rows.current()
        _require(items is not None, "which prompt a row is must be said (lm.rows) where each has a draw")
        assert items is not None
        return given[items.to(given.device) % len(given)][:, None]  # row 1 n

    return (lambda: given) if given.ndim == 1 else drawn


def _where_one(gate: Callable[[Tensor], Tensor]) -> float:
    """Where a rising gate (SiLU, GELU) is 1, by bisection."""
    low, high = 0.0, 4.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gate(torch.tensor(middle).double()) < 1 else (low, middle)
    return low


def _require(fits: bool, sentence: str) -> None:
    if not fits:
        raise CompanionError(f"the intervention does not fit: {sentence}.")


def _digest(kind: str, *tensors: Tensor) -> str:
    digest = hashlib.sha256(kind.encode())
    for tensor in tensors:
        digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
