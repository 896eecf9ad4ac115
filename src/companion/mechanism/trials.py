"""The papers' interventions as lists of trials, each with its controls.

Chapters 4, 5 and 8 show how a method works and then examine its list; chapter 8 examines all of
them together, at no cost, because outcomes are in the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm
from transformer_lens import TransformerBridge

from companion import store
from companion.lm import tokens
from companion.lm.generation import generator_of
from companion.lm.models import LanguageModel
from companion.mechanism import neurons, probe
from companion.mechanism.exam import Exam, Outcome, examine
from companion.mechanism.interventions import (
    AblateValues,
    Intervention,
    Patch,
    Positions,
    RescaleKeys,
    Subtract,
    applied,
)
from companion.mechanism.neurons import Group
from companion.mechanism.study import Study
from companion.metrics import perplexity

Neurons = Bool[Tensor, "layer d_mlp"]
SIZES = (7, 36, 100, 200, 1000, 2000)  # numbers of toxic value vectors in the two papers
PUBLISHED_RISE = 23.56 / 21.70 - 1  # perplexity that subtracting W costs in Lee et al. (2024), table 2
TOXIC_WORDS = (
    "fuck",
    "shit",
    "crap",
    "damn",
    "asshole",
)  # the "toxic embedding" of Yang et al. is their mean
CIVIL_WORDS = ("hello", "thanks", "friend", "peace", "welcome")  # minus the mean of these


@dataclass(frozen=True)
class Trial:
    """A named intervention on the base model or on the DPO model, and where it acts."""

    name: str
    given: tuple[Intervention, ...]
    on_tuned: bool = False
    writing: Positions = Positions.ALL
    reading: Positions = Positions.ALL


def run(
    study: Study, exam: Exam, views: tuple[TransformerBridge, TransformerBridge], trials: list[Trial]
) -> dict[str, Outcome]:
    """Examine trials one after the other; an interrupted list goes on where it stopped."""
    found = {}
    for trial in (bar := tqdm(trials, unit="trial")):
        bar.set_postfix_str(trial.name)
        lm, view = (study.tuned, views[1]) if trial.on_tuned else (study.lm, views[0])
        found[trial.name] = examine(
            lm, view, exam, study.scorer, *trial.given, writing=trial.writing, reading=trial.reading
        )
    return found


def top(score: Float[Tensor, "layer d_mlp"], n: int, among: Neurons | None = None) -> Neurons:
    """The ``n`` neurons with the highest score, of all or of some (all of these if there are fewer)."""
    score = score if among is None else score.masked_fill(~among, -torch.inf)
    n = min(n, score.numel() if among is None else int(among.sum()))
    chosen = torch.zeros(score.numel(), dtype=torch.bool)
    chosen[score.flatten().argsort(descending=True, stable=True)[:n]] = True
    return chosen.view(score.shape)


def matched(study: Study, chosen: Neurons, draw: int, among: Neurons | None = None) -> Neurons:
    """Random neurons, as many as chosen and with the same norms of value vectors; the chosen ones are left out.

    Within each of 50 quantiles of the norm as many are drawn as chosen (fewer only where too few are left).
    """
    norm = torch.stack([vectors.norm(dim=-1) for vectors in neurons.value_vectors(study.lm)]).cpu().flatten()
    quantile = (norm.argsort().argsort() * 50) // norm.numel()
    free = ~chosen.flatten() if among is None else (among & ~chosen).flatten()
    generator = generator_of(draw, study.profile.seed)
    found = torch.zeros(norm.numel(), dtype=torch.bool)
    for q in range(50):
        wanted, left = (
            int((chosen.flatten() & (quantile == q)).sum()),
            (free & (quantile == q)).nonzero()[:, 0],
        )
        found[left[torch.randperm(len(left), generator=generator)[:wanted]]] = True
    return found.view(chosen.shape)


def ablations(study: Study) -> list[Trial]:
    """Toxic value vectors set to zero: the top n by cosine, of all neurons and of the positively activated ones."""
    positive = study.base_mean > 0
    trials = []
    for among, name in ((None, "toxic"), (positive, "toxic, positive")):
        trials += [Trial(f"ablate {n} {name}", (AblateValues(top(study.cosine, n, among)),)) for n in SIZES]
    return trials


def ablation_controls(study: Study) -> dict[str, list[Trial]]:
    """For some sizes, random neurons matched in number and norm: lists of draws, by the name of the trial they control."""
    positive = study.base_mean > 0
    draws = range(study.profile.control_draws)
    found = {}
    for n, among, name in (
        (200, None, "toxic"),
        (2000, None, "toxic"),
        (200, positive, "toxic, positive"),
        (2000, positive, "toxic, positive"),
    ):
        sets = [matched(study, top(study.cosine, n, among), draw, among) for draw in draws]
        found[f"ablate {n} {name}"] = [
            Trial(f"random for: ablate {n} {name}, {i}", (AblateValues(s),)) for i, s in enumerate(sets)
        ]
    return found


def directions(study: Study) -> dict[str, Float[Tensor, "d_model"]]:
    """Directions to subtract: the probe, the most toxic value vector, the first SVD direction, and a random control."""
    stacked = torch.stack(list(neurons.value_vectors(study.lm))).flatten(0, 1).cpu()
    order = study.cosine.flatten().argsort(descending=True)
    random = torch.randn(len(study.direction), generator=torch.Generator().manual_seed(study.profile.seed))
    found = {
        "W": study.direction,
        "value vector": stacked[order[0]],
        "SVD U0": probe.svd_directions(stacked[order[:128]], 1)[0],
        "random direction": random,
    }
    return {name: d / d.norm() for name, d in found.items()}


def calibrated(
    lm: LanguageModel,
    view: TransformerBridge,
    direction: Float[Tensor, "d_model"],
    windows: list[list[int]],
    rise: float,
) -> Subtract:
    """Subtraction with the scale at which perplexity on (dev) windows rises by ``rise``; kept in the store.

    Lee et al. chose the scale so that perplexity equals that of the DPO model. Small steps cost
    about the square of their size, which gives the next guess from the last.
    """
    layer = lm.n_layers - 2  # the stream that enters the last block, where the probe reads

    def build(folder: Path) -> None:
        nll, count = perplexity.cross_entropy(lm, windows, 8)
        scale = 1.0
        for _ in range(5):
            with applied(view, Subtract(direction, scale, layer), positions=Positions.ALL):
                risen = np.exp((perplexity.cross_entropy(lm, windows, 8)[0] - nll).sum() / count.sum()) - 1
            scale *= np.clip((rise / max(risen, 1e-9)) ** 0.5, 0.1, 10)
        (folder / "scale.json").write_text(json.dumps(float(scale)), encoding="utf-8")

    inputs = {
        "model": lm.fingerprint,
        "direction": Subtract(direction, 1.0, layer).fingerprint,
        "windows": store.key_of({"ids": windows}),
        "rise": rise,
    }
    folder = store.artifact("scales", inputs, build)
    return Subtract(direction, json.loads((folder / "scale.json").read_text(encoding="utf-8")), layer)


def unalignments(study: Study) -> list[Trial]:
    """The DPO model with the keys of the 7 most toxic neurons scaled up, and with 7 random ones."""
    toxic = top(study.cosine, 7)
    trials = [Trial(f"DPO, 7 toxic keys × {f}", (RescaleKeys(toxic, f),), on_tuned=True) for f in (2, 5, 10)]
    return [
        *trials,
        Trial("DPO, 7 random keys × 10", (RescaleKeys(matched(study, toxic, 0), 10),), on_tuned=True),
    ]


def patch_sets(study: Study) -> dict[str, Neurons]:
    """The sets of neurons that the papers patch, by name; ↓ are neurons whose Δp > 0."""
    down, group = study.reduction > 0, study.members
    dampened = group(Group.TP) & (study.base_mean > study.tuned_mean)
    sets = {"dampened toxic (TP−)": dampened, **{f"{g.name}↓": group(g) & down for g in Group}}
    return {
        **sets,
        "TP↓ + AN↓": group(Group.TP, Group.AN) & down,
        "TN↓ + AP↓": group(Group.TN, Group.AP) & down,
        "TP↓ + TN↓ + AN↓": group(Group.TP, Group.TN, Group.AN) & down,
        "all ↓": down,
        "all neurons": torch.ones_like(down),
    }


def patches(study: Study) -> list[Trial]:
    """Base model with mean DPO activations, its controls, and the reverse; acting where tokens are generated, as published.

    For perplexity they act at all positions but the first, the attention sink, which no patch
    meets while generating.
    """
    sets, where = patch_sets(study), {"writing": Positions.GENERATED, "reading": Positions.AFTER_FIRST}
    base, tuned = study.base_mean, study.tuned_mean
    trials = [Trial(f"patch {name}", (Patch(chosen, tuned),), **where) for name, chosen in sets.items()]
    for name in ("all ↓", "all neurons"):
        trials += [Trial(f"clamp {name} to base means", (Patch(sets[name], base),), **where)]
    share = sets["all ↓"].double().mean().item()
    for draw in range(study.profile.control_draws):
        generator = torch.Generator().manual_seed(draw)
        some = torch.rand(sets["all ↓"].shape, generator=generator) < share
        trials += [Trial(f"patch random neurons, {draw}", (Patch(some, tuned),), **where)]
    for name in ("all ↓", "all neurons"):
        trials += [
            Trial(f"DPO, patch {name} to base means", (Patch(sets[name], base),), on_tuned=True, **where)
        ]
    return [
        *trials,
        Trial(
            "DPO, clamp all neurons to DPO means",
            (Patch(sets["all neurons"], tuned),),
            on_tuned=True,
            **where,
        ),
    ]


def embedding_direction(study: Study) -> Float[Tensor, "d_model"]:
    """The probe-free direction of the EMNLP version: mean unembedding of five swear words minus that of five friendly words."""

    def mean(words: tuple[str, ...]) -> Tensor:
        rows = [unembedding[ids].mean(0) for ids in tokens.encode(study.lm.tokenizer, words)]
        return torch.stack(rows).mean(0)

    unembedding = study.lm.model.get_output_embeddings().weight.detach().float().cpu()
    return mean(TOXIC_WORDS) - mean(CIVIL_WORDS)


def edited(
    study: Study, cosine: Float[Tensor, "layer d_mlp"], alpha: float, beta: float, *, random: bool = False
) -> Patch:
    """Tuning-free editing (EMNLP version): clamp a share β of each group to its base mean times 1 ± α.

    TP and AN, those with the highest absolute cosine, are turned down to 1 − α; AP and TN, those with the
    lowest, up to 1 + α. A negative α swaps the signs; ``random`` draws the neurons of each group.
    """
    mean = study.base_mean
    group = neurons.groups(cosine, mean)
    chosen, factor = torch.zeros_like(group, dtype=torch.bool), torch.ones_like(mean)
    noise = torch.rand(cosine.shape, generator=torch.Generator().manual_seed(study.profile.seed))
    for g in Group:
        down, members = g in (Group.TP, Group.AN), group == g
        score = noise if random else cosine.abs() * (1 if down else -1)
        chosen |= top(score, round(beta * int(members.sum())), members)
        factor[members] = 1 - alpha if down else 1 + alpha
    return Patch(chosen, mean * factor)


def edits(study: Study) -> list[Trial]:
    """The published editing rule, one with a strong factor and a small clamp, and for each its controls."""
    cosine, embedding = study.cosine, neurons.cosines(study.lm, embedding_direction(study))

    def trials() -> Iterator[tuple[str, Patch]]:
        for alpha, beta in ((0.01, 0.55), (1.0, 0.02)):
            label = f"α = {alpha:g}, β = {beta:g}"
            yield f"edit, {label}", edited(study, cosine, alpha, beta)
            yield f"edit by embedding, {label}", edited(study, embedding, alpha, beta)
            yield f"clamp only, α = 0, β = {beta:g}", edited(study, cosine, 0.0, beta)
            yield f"swapped signs, {label}", edited(study, cosine, -alpha, beta)
            yield f"random neurons, {label}", edited(study, cosine, alpha, beta, random=True)

    return [
        Trial(name, (patch,), writing=Positions.GENERATED, reading=Positions.AFTER_FIRST)
        for name, patch in trials()
    ]
