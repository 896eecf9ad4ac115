"""What an intervention acts on: sets of neurons, directions, and the values that neurons are held at.

A set of neurons is a boolean mask, a direction a vector of the residual stream.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.lm import tokens
from companion.lm.generation import generator_of
from companion.mechanism import neurons, probe, stream
from companion.mechanism.interventions import Patch
from companion.mechanism.neurons import Group
from companion.mechanism.study import Study

Neurons = Bool[Tensor, "layer d_mlp"]
QUANTILES = 50  # of the norm of value vectors, for matched controls
TOXIC_WORDS = ("fuck", "shit", "crap", "damn", "asshole")  # Yang et al.: the "toxic embedding" is their mean
CIVIL_WORDS = ("hello", "thanks", "friend", "peace", "welcome")  # minus the mean of these


def top(score: Float[Tensor, "layer d_mlp"], n: int, among: Neurons | None = None) -> Neurons:
    """The ``n`` neurons with the highest score, of all or of some (all of these if there are fewer)."""
    score = score if among is None else score.masked_fill(~among, -torch.inf)
    n = min(n, score.numel() if among is None else int(among.sum()))
    chosen = torch.zeros(score.numel(), dtype=torch.bool)
    chosen[score.flatten().argsort(descending=True, stable=True)[:n]] = True
    return chosen.view(score.shape)


def matched(
    study: Study, chosen: Neurons, draws: int, among: Neurons | None = None
) -> Bool[Tensor, "draw layer d_mlp"]:
    """Draws of random neurons other than the chosen ones, as many and with the same norms of value vectors.

    Within each of 50 quantiles of the norm as many are drawn as chosen (fewer only where too few are left).
    """
    vectors = neurons.value_vectors(study.base.lm)
    norm = torch.stack([v.norm(dim=-1) for v in vectors]).cpu().flatten()
    quantile = (norm.argsort().argsort() * QUANTILES) // norm.numel()
    taken, free = chosen.flatten(), (~chosen if among is None else among & ~chosen).flatten()
    pools = [
        ((free & (quantile == q)).nonzero()[:, 0], int((taken & (quantile == q)).sum()))
        for q in range(QUANTILES)
    ]
    drawn = torch.zeros(draws, norm.numel(), dtype=torch.bool)
    for draw in range(draws):
        generator = generator_of(draw, study.profile.seed)
        for left, wanted in pools:
            drawn[draw, left[torch.randperm(len(left), generator=generator)[:wanted]]] = True
    return drawn.view(draws, *chosen.shape)


def patch_sets(study: Study) -> dict[str, tuple[str, Neurons]]:
    """The sets of neurons that the papers patch: label and mask by key; ↓ are neurons whose Δp > 0.

    Unions of two or three groups are for complete profiles.
    """
    down, group = study.reduction > 0, study.members
    dampened = group(Group.TP) & (study.base.mean > study.tuned.mean)
    unions = {
        "tp_an": ("TP↓ + AN↓", group(Group.TP, Group.AN) & down),
        "tn_ap": ("TN↓ + AP↓", group(Group.TN, Group.AP) & down),
        "tp_tn_an": ("TP↓ + TN↓ + AN↓", group(Group.TP, Group.TN, Group.AN) & down),
    }
    return {
        "dampened": ("dampened toxic (TP−)", dampened),
        **{g.name.lower(): (f"{g.name}↓", group(g) & down) for g in Group},
        **(unions if study.profile.complete else {}),
        "all_down": ("all ↓", down),
        "all": ("all neurons", torch.ones_like(down)),
    }


def directions(study: Study) -> dict[str, Float[Tensor, "*draw d_model"]]:
    """Unit directions by key: probe, most toxic value vector, first SVD direction, draws of random ones."""
    stacked = torch.stack(list(neurons.value_vectors(study.base.lm))).flatten(0, 1).cpu()
    order = study.cosine.flatten().argsort(descending=True)
    shape = study.profile.control_draws, len(study.direction)
    random = torch.randn(shape, generator=torch.Generator().manual_seed(study.profile.seed))
    by_key = {
        "w": study.direction,
        "value": stacked[order[0]],
        "svd": probe.svd_directions(stacked[order[:128]], 1)[0],
        "random": random,
    }
    return {key: d / d.norm(dim=-1, keepdim=True) for key, d in by_key.items()}


def shift(study: Study) -> Float[Tensor, "layer d_model"]:
    """How far DPO moves the mean stream behind every block, while both models read the base model's text."""
    text = study.base.text
    before, after = (stream.read(s.lm, study.task, text).mean for s in (study.base, study.tuned))
    return (after - before).float()


def increments(moved: Float[Tensor, "layer d_model"]) -> Float[Tensor, "layer d_model"]:
    """What each block adds to a shift: its own minus the one before, so that the first l + 1 add up to it."""
    return torch.cat([moved[:1], moved.diff(dim=0)])


def turned(vectors: Float[Tensor, "n d_model"], draws: int, seed: int) -> Float[Tensor, "draw n d_model"]:
    """Draws of the same vectors after a random rotation of all together: norms and angles are kept."""
    basis, coordinates = torch.linalg.qr(vectors.double().T)  # d_model k, k n
    noise = torch.randn(draws, *basis.shape, generator=torch.Generator().manual_seed(seed)).double()
    frames = torch.linalg.qr(noise).Q  # draw d_model k
    return (frames @ coordinates).mT.float()


def embedding_direction(study: Study) -> Float[Tensor, "d_model"]:
    """EMNLP version, without a probe: mean unembedding of five swear words minus that of five friendly."""

    def mean(words: tuple[str, ...]) -> Tensor:
        rows = [unembedding[ids].mean(0) for ids in tokens.bare(study.base.lm.tokenizer, words)]
        return torch.stack(rows).mean(0)

    unembedding = study.base.lm.model.get_output_embeddings().get_parameter("weight").detach().float().cpu()
    return mean(TOXIC_WORDS) - mean(CIVIL_WORDS)


def edited(
    study: Study, cosine: Float[Tensor, "layer d_mlp"], alpha: float, beta: float, *, random: bool = False
) -> Patch:
    """Tuning-free editing (EMNLP version): clamp a share β of each group to its base mean times 1 ± α.

    TP and AN, those with the highest absolute cosine, are turned down to 1 − α; AP and TN, those with the
    lowest, up to 1 + α. A negative α swaps the signs; ``random`` draws the neurons of each group, as often as
    the profile says.
    """
    mean = study.base.mean
    group = neurons.groups(cosine, mean)
    down = (group == Group.TP) | (group == Group.AN)

    def chosen(score: Float[Tensor, "layer d_mlp"]) -> Neurons:
        members = (group == g for g in Group)
        return torch.stack([top(score, round(beta * int(m.sum())), m) for m in members]).any(0)

    if random:
        noise = torch.Generator().manual_seed(study.profile.seed)
        draws = range(study.profile.control_draws)
        held = torch.stack([chosen(torch.rand(cosine.shape, generator=noise)) for _ in draws])
    else:
        held = chosen(torch.where(down, cosine.abs(), -cosine.abs()))
    return Patch(held, torch.where(down, mean * (1 - alpha), mean * (1 + alpha)))
