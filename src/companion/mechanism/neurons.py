"""Which neurons write into the toxic direction, and what changes between two models.

Notation of Yang et al. (section 3): m_i is the activation of neuron i and v_i its value vector;
d is the toxic direction at unit length. The projection of a neuron is p_i = mean(m_i) · (v_i · d),
its reduction Δp_i = p_i(before) − p_i(after): positive if the change lowers toxicity::

    before, after = (Side(sums, projected(lm, d)) for lm, sums in ((base, base_sums), (tuned, tuned_sums)))
    reduction = before.projections - after.projections  # layer, d_mlp
    accounting.shares(before, after, cosines(base, d))  # gross, net and shares of the four groups
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from companion.lm import anatomy
from companion.lm.activations import Sums
from companion.lm.models import LanguageModel


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
        """Projections p_i with every prompt counted once."""
        return self.sums.mean * self.projected

    def within(self, chosen: Bool[Tensor, "#layer #d_mlp"]) -> Side:
        """The same side with all other neurons writing nothing, for example those of a late layer."""
        return replace(self, projected=self.projected * chosen)


def value_vectors(
    lm: LanguageModel, *, through_norm: bool = True
) -> Iterator[Float[Tensor, "d_mlp d_model"]]:
    """Value vectors by layer, what a unit of activation writes: rows of ``c_proj``, columns of ``down_proj``.

    Where a norm follows the MLP (Gemma) they are multiplied by its gain; the other half of that norm, its
    scale, is in the activations (:class:`companion.lm.activations.Recorder`). Without ``through_norm`` they
    are what the MLP gives to that norm, which is what the published code projects.
    """
    for site, norm in zip(anatomy.neuron_sites(lm).values(), anatomy.mlp_norms(lm), strict=True):
        yield anatomy.output_vectors(lm, site, norm if through_norm else None)


def projected(
    lm: LanguageModel, direction: Float[Tensor, "*n d_model"], *, through_norm: bool = True
) -> Float[Tensor, "*n layer d_mlp"]:
    """v_i · d for every neuron and each direction, in fp64; directions are used at the length they have."""
    d = direction.double().to(lm.device)
    width = next(value_vectors(lm)).shape[0]
    # In one piece: small results would keep the fp64 copies' pages.
    products = torch.empty(*d.shape[:-1], lm.n_layers, width, dtype=torch.float64)
    for layer, vectors in enumerate(value_vectors(lm, through_norm=through_norm)):
        products[..., layer, :] = (d @ vectors.double().T).cpu()
    return products


def cosines(
    lm: LanguageModel, direction: Float[Tensor, "d_model"], *, through_norm: bool = True
) -> Float[Tensor, "layer d_mlp"]:
    """Cosine of every value vector with the direction."""
    d = direction.to(lm.device)
    by_layer = value_vectors(lm, through_norm=through_norm)
    return torch.stack([cosine_similarity(vectors, d, dim=-1) for vectors in by_layer]).cpu()


def groups(
    cosine: Float[Tensor, "layer d_mlp"], base_mean: Float[Tensor, "layer d_mlp"]
) -> Int[Tensor, "layer d_mlp"]:
    """:class:`Group` of every neuron; cosine 0 counts as anti-toxic, mean 0 as positive."""
    return (cosine <= 0).long() * 2 + (base_mean < 0).long()


def roles(
    group: Int[Tensor, "layer d_mlp"], reduction: Float[Tensor, "layer d_mlp"]
) -> Int[Tensor, "layer d_mlp"]:
    """:class:`Role` of every neuron; no change at all counts as raising."""
    return group + 4 * (reduction <= 0).long()


def parts(before: Side, after: Side) -> dict[str, Float[Tensor, "layer d_mlp"]]:
    """Δp split exactly: changed activation, changed value vector, and both at once (of opposite sign)."""
    m0, m1 = before.sums.mean, after.sums.mean
    u0, u1 = before.projected, after.projected
    return {"activation": (m0 - m1) * u0, "value": m0 * (u0 - u1), "interaction": -(m0 - m1) * (u0 - u1)}
