"""Which neurons write into the toxic direction, and what changes between two models.

Notation of Yang et al. (section 3): m_i is the activation of neuron i and v_i its value vector;
d is the toxic direction at unit length. The projection of a neuron is p_i = mean(m_i) · (v_i · d),
its reduction Δp_i = p_i(before) − p_i(after): positive if the change lowers toxicity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion import models
from companion.activations import Sums
from companion.metrics import Estimate
from companion.models import LanguageModel

HALVES = 20  # random ways to cut the prompts in two


class Group(IntEnum):
    """Sign of the cosine (toxic, anti-toxic) and sign of the mean base activation (positive, negative)."""

    TP = 0
    TN = 1
    AP = 2
    AN = 3


class Role(IntEnum):
    """A group crossed with the direction of change; the value is the group's, plus 4 if toxicity goes up."""

    TP_REDUCES = 0
    TN_REDUCES = 1
    AP_REDUCES = 2
    AN_REDUCES = 3
    TP_RAISES = 4
    TN_RAISES = 5
    AP_RAISES = 6
    AN_RAISES = 7

    @property
    def group(self) -> Group:
        return Group(self % 4)

    @property
    def reduces(self) -> bool:
        return self < 4

    @property
    def arrow(self) -> str:
        """Name in the EMNLP version, where ``TP↓`` reduces the projection."""
        return f"{self.group.name}{'↓' if self.reduces else '↑'}"

    @property
    def magnitude(self) -> str:
        """Name in version 1 of the paper, where ``TP−`` shrinks towards 0 and ``TN+`` grows away from it.

        It is defined there by the change of the activation. The two namings agree unless the change of
        the value vector outweighs it.
        """
        shrinks = self.reduces == (self.group in (Group.TP, Group.AN))
        return f"{self.group.name}{'−' if shrinks else '+'}"


@dataclass(frozen=True)
class Side:
    """A model on a text: its activation sums, and its value vectors projected on the direction."""

    sums: Sums
    projected: Float[Tensor, "layer d_mlp"]

    def part(self, weight: Float[Tensor, "block"]) -> Float[Tensor, "layer d_mlp"]:
        """Projections p_i with each block of prompts counted ``weight`` times."""
        return self.sums.weighted(weight) * self.projected

    @property
    def projections(self) -> Float[Tensor, "layer d_mlp"]:
        return self.sums.mean * self.projected


def value_vectors(lm: LanguageModel, *, through_norm: bool = True) -> Iterator[Float[Tensor, "d_mlp d_model"]]:
    """Value vectors layer by layer: what one unit of activation writes (rows of ``c_proj``, columns of ``down_proj``).

    ``through_norm`` multiplies by the gain of the norm behind the MLP where there is one (Gemma);
    the other half of that norm, its scale, is in the activations (:class:`companion.activations.Recorder`).
    """
    norms = models.mlp_norms(lm) if through_norm else None
    for layer, site in enumerate(models.neuron_sites(lm).values()):
        weight = site.weight.detach()
        vectors = weight if lm.model.config.model_type == "gpt2" else weight.T
        yield vectors * (1 + norms[layer].weight.detach()) if norms else vectors


def projected(lm: LanguageModel, direction: Float[Tensor, "*n d_model"], *, through_norm: bool = True) -> Float[Tensor, "*n layer d_mlp"]:
    """v_i · d for every neuron and each direction, in fp64; directions are used as they are, unit length or not."""
    d = direction.double().to(lm.device)
    width = next(value_vectors(lm)).shape[0]
    found = torch.empty(*d.shape[:-1], lm.n_layers, width, dtype=torch.float64)  # in one piece: small results would keep the fp64 copies' pages
    for layer, vectors in enumerate(value_vectors(lm, through_norm=through_norm)):
        found[..., layer, :] = (d @ vectors.double().T).cpu()
    return found


def cosines(lm: LanguageModel, direction: Float[Tensor, "d_model"], *, through_norm: bool = True) -> Float[Tensor, "layer d_mlp"]:
    """Cosine of every value vector with the direction."""
    d = direction.to(lm.device)
    vectors_by_layer = value_vectors(lm, through_norm=through_norm)
    return torch.stack([torch.nn.functional.cosine_similarity(vectors, d, dim=-1) for vectors in vectors_by_layer]).cpu()


def groups(cosine: Float[Tensor, "layer d_mlp"], base_mean: Float[Tensor, "layer d_mlp"]) -> Int[Tensor, "layer d_mlp"]:
    """:class:`Group` of every neuron; cosine 0 counts as anti-toxic, mean 0 as positive."""
    return (cosine <= 0).long() * 2 + (base_mean < 0).long()


def roles(group: Int[Tensor, "layer d_mlp"], reduction: Float[Tensor, "layer d_mlp"]) -> Int[Tensor, "layer d_mlp"]:
    """:class:`Role` of every neuron; no change at all counts as raising."""
    return group + 4 * (reduction <= 0).long()


def parts(before: Side, after: Side) -> dict[str, Float[Tensor, "layer d_mlp"]]:
    """Δp split exactly: changed activation, changed value vector, and both at once (of opposite sign)."""
    m0, m1 = before.sums.mean, after.sums.mean
    u0, u1 = before.projected, after.projected
    return {"activation": (m0 - m1) * u0, "value": m0 * (u0 - u1), "interaction": -(m0 - m1) * (u0 - u1)}


def account(reduction: Float[Tensor, "layer d_mlp"], group: Int[Tensor, "layer d_mlp"], reduces: Tensor | None = None) -> dict[str, float]:
    """Gross and net reduction, whole and by group.

    ``gross`` adds up the neurons that reduce, ``raise`` those that push the other way, ``net`` all.
    ``reduces`` says which neurons count as reducing where that was settled on other prompts.
    """
    reduces = reduction > 0 if reduces is None else reduces
    down = torch.where(reduces, reduction, 0.0)
    found = {"gross": down.sum().item(), "net": reduction.sum().item(), "reducing": reduces.double().mean().item()}
    by = {"gross": down, "net": reduction, "raise": down - reduction}
    for name, values in by.items():
        sums = torch.zeros(4, dtype=torch.float64).index_add_(0, group.flatten(), values.flatten().double())
        found |= {f"{name}_{g.name}": sums[g].item() for g in Group}
        if name != "raise":
            found |= {f"{name}_share_{g.name}": (sums[g] / found[name]).item() for g in Group}
    return found


def shares(before: Side, after: Side, cosine: Float[Tensor, "layer d_mlp"], *, seed: int = 0, resamples: int = 300) -> dict[str, Estimate]:
    """:func:`account` of the change from ``before`` to ``after``, with bootstrap intervals over prompts.

    The blocks of both sides hold the same prompts and are drawn together. A gross sum has a floor
    of noise that the interval does not show: hold it against :func:`split_half`.
    """

    def once(weight: Tensor) -> dict[str, float]:
        base = before.sums.weighted(weight)
        return account(base * before.projected - after.part(weight), groups(cosine, base))

    return bootstrap_blocks(once, before.sums, seed=seed, resamples=resamples)


def bootstrap_blocks(once: Callable[[Tensor], dict[str, float]], sums: Sums, *, seed: int = 0, resamples: int = 300) -> dict[str, Estimate]:
    """Intervals of any statistic of the prompts; it is given how often each block of prompts is counted."""
    generator, ones = torch.Generator().manual_seed(seed), torch.ones(len(sums.count))
    return _estimates(once(ones), [once(_resample(ones, generator)) for _ in range(resamples)], sums.prompts)


def split_half(before: Side, after: Side, cosine: Float[Tensor, "layer d_mlp"], *, seed: int = 0, resamples: int = 300) -> dict[str, Estimate]:
    """:func:`account` with groups and directions settled on one half of the prompts and measured on the other.

    Free of regression to the mean: chance cannot choose a neuron and count it, too.
    """

    def once(first: Tensor, second: Tensor) -> dict[str, float]:
        base = before.sums.weighted(first)
        chosen = groups(cosine, base), base * before.projected - after.part(first) > 0
        return account(before.part(second) - after.part(second), *chosen)

    return _over_halves(once, before.sums, seed, resamples)


def other_prompts(side: Side, cosine: Float[Tensor, "layer d_mlp"], *, seed: int = 0, resamples: int = 300) -> dict[str, Estimate]:
    """The null: :func:`account` of one model on one half of the prompts against itself on the other half."""

    def once(first: Tensor, second: Tensor) -> dict[str, float]:
        return account(side.part(first) - side.part(second), groups(cosine, side.sums.weighted(first)))

    return _over_halves(once, side.sums, seed, resamples)


def _over_halves(once: Callable[[Tensor, Tensor], dict[str, float]], sums: Sums, seed: int, resamples: int) -> dict[str, Estimate]:
    """Mean of a statistic of two halves over random halves; the interval draws halves and, within them, blocks."""
    generator, n = torch.Generator().manual_seed(seed), len(sums.count)
    firsts = [(torch.randperm(n, generator=generator) < n // 2).double() for _ in range(HALVES)]
    found = [once(*pair) for first in firsts for pair in ((first, 1 - first), (1 - first, first))]
    value = {name: float(np.mean([f[name] for f in found])) for name in found[0]}
    drawn = [once(_resample(first, generator), _resample(1 - first, generator)) for first in (firsts[i % HALVES] for i in range(resamples))]
    return _estimates(value, drawn, sums.prompts)


def _resample(weight: Float[Tensor, "block"], generator: torch.Generator) -> Float[Tensor, "block"]:
    """How often each block is drawn, drawing as many as there are with weight 1."""
    inside = weight.nonzero()[:, 0]
    drawn = inside[torch.randint(len(inside), (len(inside),), generator=generator)]
    return torch.bincount(drawn, minlength=len(weight)).double()


def _estimates(value: dict[str, float], drawn: list[dict[str, float]], n: int) -> dict[str, Estimate]:
    """Intervals around the values: quantiles of what was drawn, moved by the distance of its median from the value.

    A sum of absolute values, such as gross, grows with noise, and resampled data are noisier than
    the data; without the move the interval of gross may miss its own value.
    """
    found = {}
    for name in value:
        low, middle, high = np.quantile([d[name] for d in drawn], [0.025, 0.5, 0.975])
        found[name] = Estimate(value[name], float(value[name] + low - middle), float(value[name] + high - middle), n)
    return found


def table(before: Side, after: Side, cosine: Float[Tensor, "layer d_mlp"], *, seed: int = 0, resamples: int = 200) -> pd.DataFrame:
    """One row per neuron: projections, reduction with its interval over prompts and its three parts, group and role."""
    reduction = before.projections - after.projections
    group = groups(cosine, before.sums.mean)
    generator = torch.Generator().manual_seed(seed)
    ones = torch.ones(len(before.sums.count))
    drawn = torch.stack([(before.part(w) - after.part(w)).float() for w in (_resample(ones, generator) for _ in range(resamples))])
    low, high = (drawn.kthvalue(max(1, round(q * resamples)), dim=0).values for q in (0.025, 0.975))
    layer, index = torch.meshgrid(*(torch.arange(n) for n in reduction.shape), indexing="ij")
    columns = {
        "layer": layer,
        "index": index,
        "cosine": cosine,
        "before": before.sums.mean,
        "after": after.sums.mean,
        "p_before": before.projections,
        "p_after": after.projections,
        "reduction": reduction,
        "low": low,
        "high": high,
        **parts(before, after),
    }
    rows = pd.DataFrame({name: values.flatten().numpy() for name, values in columns.items()})
    code = roles(group, reduction).flatten().tolist()
    names = {role.value: role for role in Role}
    return rows.assign(group=[names[c].group.name for c in code], role=[names[c].arrow for c in code])
