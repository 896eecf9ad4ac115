"""Gross, net and shares of a reduction over groups of neurons, with intervals over prompts.

Yang et al. (2024), section 5. The two sides of a comparison are :class:`companion.mechanism.neurons.Side`::

    shares(before, after, cosine)["gross_share_TP"]  # an Estimate
    split_half(before, after, cosine)["gross"]  # without what chance adds
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.lm.activations import Sums
from companion.mechanism.neurons import Group, Role, Side, groups, parts, roles
from companion.metrics.estimates import INTERVAL, Estimate

HALVES, DRAWN_HALVES = 20, 2  # random ways to cut the prompts in two; of each bootstrap sample
TOGETHER = 16  # of them, whose means are taken in one pass over the sums
Means = Sequence[Tensor]  # mean activations, layer d_mlp, of each side


def account(
    reduction: Float[Tensor, "layer d_mlp"], group: Int[Tensor, "layer d_mlp"], reduces: Tensor | None = None
) -> dict[str, float]:
    """Gross and net reduction, whole and by group.

    ``gross`` adds up the neurons that reduce, ``raise`` those that push the other way, ``net`` all.
    ``reduces`` says which neurons count as reducing where that was settled on other prompts.
    """
    reduces = reduction > 0 if reduces is None else reduces
    down = torch.where(reduces, reduction, 0.0)
    sums = {
        "gross": down.sum().item(),
        "net": reduction.sum().item(),
        "raise": (down - reduction).sum().item(),
        "reducing": reduces.double().mean().item(),
    }
    by_kind = {"gross": down, "net": reduction, "raise": down - reduction}
    for name, values in by_kind.items():
        of = torch.bincount(group.flatten(), values.flatten().double(), minlength=4)
        sums |= {f"{name}_{g.name}": of[g].item() for g in Group}
        if name != "raise":
            sums |= {f"{name}_share_{g.name}": (of[g] / sums[name]).item() for g in Group}
    return sums


def shares(
    before: Side, after: Side, cosine: Float[Tensor, "layer d_mlp"], *, seed: int = 0, resamples: int = 300
) -> dict[str, Estimate]:
    """:func:`account` of the change from ``before`` to ``after``, with bootstrap intervals over prompts.

    The blocks of both sides hold the same prompts and are drawn together. A gross sum has a floor
    of noise that the interval does not show: hold it against :func:`split_half`.
    """

    def once(weight: Tensor) -> dict[str, float]:
        base = before.sums.weighted(weight)
        return account(base * before.projected - after.part(weight), groups(cosine, base))

    return bootstrap_blocks(once, before.sums, seed=seed, resamples=resamples)


@runtime_checkable
class Blocks(Protocol):
    """Sums by block of prompts; ``count`` says of how many tokens."""

    @property
    def count(self) -> Tensor: ...


def bootstrap_blocks(
    once: Callable[[Tensor], dict[str, float]], sums: Blocks, *, seed: int = 0, resamples: int = 300
) -> dict[str, Estimate]:
    """Intervals of a statistic that is given how often each block of prompts counts; n is blocks."""
    generator, ones = torch.Generator().manual_seed(seed), torch.ones(len(sums.count))
    return _estimates(once(ones), [once(_resample(ones, generator)) for _ in range(resamples)], len(ones))


def text_share(
    before: Side, after: Side, before_reads: Side, after_reads: Side, *, seed: int = 0
) -> dict[str, Estimate]:
    """Part of the net between two models on their own texts that comes with the text, not with the weights.

    ``before_reads`` is the first model on the second one's text, ``after_reads`` the second on the first
    one's. The two changes do not simply add up, so there are two answers: ``text_first``, what the first
    model shows when it reads the other text; and ``text_last``, what the text adds once the weights have
    changed.
    """

    def once(weight: Tensor) -> dict[str, float]:
        own, tuned = before.part(weight), after.part(weight)
        changes = {
            "text_first": own - before_reads.part(weight),
            "text_last": after_reads.part(weight) - tuned,
        }
        return {name: float(by_text.sum() / (own - tuned).sum()) for name, by_text in changes.items()}

    return bootstrap_blocks(once, before.sums, seed=seed)


def apart(one: Estimate, other: Estimate) -> bool:
    """Whether two intervals do not overlap."""
    return one.low > other.high or other.low > one.high


def split_half(
    before: Side, after: Side, cosine: Float[Tensor, "layer d_mlp"], *, seed: int = 0, resamples: int = 300
) -> dict[str, Estimate]:
    """:func:`account`, groups and directions settled on one half of the prompts, measured on the other.

    Free of regression to the mean: chance cannot choose a neuron and count it, too.
    """
    u, v = before.projected, after.projected

    def once(first: Means, second: Means) -> dict[str, float]:
        chosen = groups(cosine, first[0]), first[0] * u - first[1] * v > 0
        return account(second[0] * u - second[1] * v, *chosen)

    return _over_halves(once, (before.sums, after.sums), seed, resamples)


def beyond_other_prompts(
    before: Side, after: Side, cosine: Float[Tensor, "layer d_mlp"], *, seed: int = 0, resamples: int = 300
) -> dict[str, Estimate]:
    """:func:`account` of ``after``, as published, minus that of ``before`` itself on other prompts.

    Both begin with ``before`` on the same half of the prompts, so that the same groups lose by the same luck.
    What is left is not regression to the mean.
    """
    u, v = before.projected, after.projected

    def once(first: Means, second: Means) -> dict[str, float]:
        group, part = groups(cosine, first[0]), first[0] * u
        found, null = (account(part - other, group) for other in (first[1] * v, second[0] * u))
        return {name: value - null[name] for name, value in found.items()}

    return _over_halves(once, (before.sums, after.sums), seed, resamples)


def other_prompts(
    side: Side, cosine: Float[Tensor, "layer d_mlp"], *, seed: int = 0, resamples: int = 300
) -> dict[str, Estimate]:
    """The null: :func:`account` of one model on one half of the prompts against itself on the other half."""

    def once(first: Means, second: Means) -> dict[str, float]:
        return account((first[0] - second[0]) * side.projected, groups(cosine, first[0]))

    return _over_halves(once, (side.sums,), seed, resamples)


def _over_halves(
    once: Callable[[Means, Means], dict[str, float]], sides: Sequence[Sums], seed: int, resamples: int
) -> dict[str, Estimate]:
    """Mean of a statistic of two halves over random halves, each taken both ways; blocks are drawn anew.

    ``once`` is given the mean activations of every side on either half. A block that is drawn twice stays in
    its half: halves share nothing, in the data and when drawn.
    """
    generator, n = torch.Generator().manual_seed(seed), len(sides[0].count)

    def drawn() -> Tensor:
        weight = _resample(torch.ones(n), generator)
        return weight if (weight > 0).sum() > 1 else drawn()  # one block has no halves

    def halved(weight: Tensor, times: int) -> list[tuple[Tensor, Tensor]]:
        firsts = (_half(weight, generator) for _ in range(times))
        return [(first, weight - first) for first in firsts]

    pairs = halved(torch.ones(n).double(), HALVES)
    pairs += [pair for _ in range(resamples) for pair in halved(drawn(), DRAWN_HALVES)]
    found: list[dict[str, float]] = []
    for start in range(0, len(pairs), TOGETHER):
        weights = (torch.stack(half) for half in zip(*pairs[start : start + TOGETHER], strict=True))
        first, second = ([sums.weighted(weight) for sums in sides] for weight in weights)
        for one, other in zip(zip(*first, strict=True), zip(*second, strict=True), strict=True):
            both = once(one, other), once(other, one)
            found.append({name: (both[0][name] + both[1][name]) / 2 for name in both[0]})

    def mean(some: list[dict[str, float]]) -> dict[str, float]:
        return {name: float(np.mean([one[name] for one in some])) for name in some[0]}

    of_draws = range(HALVES, len(found), DRAWN_HALVES)
    return _estimates(mean(found[:HALVES]), [mean(found[i : i + DRAWN_HALVES]) for i in of_draws], n)


def _half(weight: Float[Tensor, "block"], generator: torch.Generator) -> Float[Tensor, "block"]:
    """The weights of a random half of the blocks that count; 0 for the others."""
    inside = weight.nonzero()[:, 0]
    chosen = inside[torch.randperm(len(inside), generator=generator)[: len(inside) // 2]]
    return torch.zeros_like(weight).index_copy_(0, chosen, weight[chosen])


def _resample(weight: Float[Tensor, "block"], generator: torch.Generator) -> Float[Tensor, "block"]:
    """How often each block is drawn, drawing as many as there are with weight 1."""
    inside = weight.nonzero()[:, 0]
    drawn = inside[torch.randint(len(inside), (len(inside),), generator=generator)]
    return torch.bincount(drawn, minlength=len(weight)).double()


def _estimates(value: dict[str, float], drawn: list[dict[str, float]], n: int) -> dict[str, Estimate]:
    """Bias-corrected intervals: quantiles of what was drawn, moved as far as its median is off the value.

    A sum of absolute values, such as gross, grows with noise, and resampled data are noisier than
    the data; without the move the interval of gross may miss its own value.
    """
    estimates = {}
    for name, v in value.items():
        low, middle, high = np.quantile([d[name] for d in drawn], [INTERVAL[0], 0.5, INTERVAL[1]])
        estimates[name] = Estimate(v, float(v + low - middle), float(v + high - middle), n)
    return estimates


def table(
    before: Side, after: Side, cosine: Float[Tensor, "layer d_mlp"], *, seed: int = 0, resamples: int = 200
) -> pd.DataFrame:
    """A row per neuron: projections, reduction with interval over prompts and its parts, group and role."""
    reduction = before.projections - after.projections
    group = groups(cosine, before.sums.mean)
    generator, ones = torch.Generator().manual_seed(seed), torch.ones(len(before.sums.count))
    weights = (_resample(ones, generator) for _ in range(resamples))
    drawn = torch.stack([(before.part(w) - after.part(w)).float() for w in weights])  # resample, layer, d_mlp
    low, high = (drawn.kthvalue(max(1, round(q * resamples)), dim=0).values for q in INTERVAL)
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
    role = [Role(code) for code in roles(group, reduction).flatten().tolist()]
    return rows.assign(group=[r.group.name for r in role], role=[r.arrow for r in role])
