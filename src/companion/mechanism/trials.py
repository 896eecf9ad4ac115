"""The papers' interventions as lists of trials, each with its controls.

Chapters 4, 5 and 8 show how a method works and then examine its list; chapter 8 examines all of
them together, at no cost, because outcomes are in the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

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
from companion.mechanism.exam import Exam, Outcome, examine, mean_over_draws
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
# Sizes with random controls, and the published sizes that each is the nearest control of.
CONTROLLED = {200: (100, 200), 2000: (1000, 2000)}
# Kinds of value vectors to ablate: label here, label in Yang et al. (2024), and the sizes published there.
ABLATED = {
    "toxic": ("toxic", "toxic vectors", (100, 200, 1000)),
    "positive": ("toxic, positive", "positively activated", (100, 200, 1000, 2000)),
}
# Directions to subtract: label here, label in Lee et al. (2024).
SUBTRACTED = {
    "w": ("W", "subtract probe"),
    "value": ("value vector", "subtract value vector 19/770"),
    "svd": ("SVD U0", "subtract SVD U0"),
    "random": ("random direction", None),
}
PATCHED = {"dampened": ("patch all dampened toxic neurons", "yang2024v1")}  # published row of a set
PUBLISHED_RISE = 23.56 / 21.70 - 1  # perplexity that subtracting W costs in Lee et al. (2024), table 2
COSTS = {1.0: "", 0.25: ", a quarter of the cost", 4.0: ", four times the cost"}  # in units of that
QUANTILES = 50  # of the norm of value vectors, for matched controls
TOXIC_WORDS = ("fuck", "shit", "crap", "damn", "asshole")  # Yang et al.: the "toxic embedding" is their mean
CIVIL_WORDS = ("hello", "thanks", "friend", "peace", "welcome")  # minus the mean of these


@dataclass(frozen=True)
class Trial:
    """A named intervention on the base model or on the DPO model, and where it acts.

    ``key`` names its outcome, ``label`` is what tables show, ``family`` says what is done. ``control_of``
    has the keys of the trials that it is held against: in the same family it differs in the choice of
    neurons or direction only. ``published`` is its row of ``data/published.csv``: intervention and source.
    """

    key: str
    label: str
    family: str
    given: tuple[Intervention, ...] = ()
    on_tuned: bool = field(default=False, kw_only=True)
    writing: Positions = field(default=Positions.ALL, kw_only=True)
    reading: Positions = field(default=Positions.ALL, kw_only=True)
    control_of: tuple[str, ...] = field(default=(), kw_only=True)
    published: tuple[str, str] | None = field(default=None, kw_only=True)


BASE = Trial("base", "base", "reference", published=("none", "yang2024v1"))
DPO = Trial("dpo", "DPO", "reference", on_tuned=True, published=("DPO", "yang2024v1"))


def run(
    study: Study, exam: Exam, views: tuple[TransformerBridge, TransformerBridge], trials: Iterable[Trial]
) -> dict[str, Outcome]:
    """Outcomes by key, one trial after the other; an interrupted list goes on where it stopped."""
    outcomes = {}
    for trial in (bar := tqdm(list(trials), unit="trial")):
        bar.set_postfix_str(trial.label)
        lm, view = (study.tuned.lm, views[1]) if trial.on_tuned else (study.base.lm, views[0])
        where = {"writing": trial.writing, "reading": trial.reading}
        outcomes[trial.key] = examine(lm, view, exam, study.scorer, *trial.given, **where)
    return outcomes


def control(trial: Trial, trials: Iterable[Trial], outcomes: Mapping[str, Outcome]) -> Outcome | None:
    """The same done to other neurons or along another direction, draws averaged; None if nobody tried."""
    drawn = [t.key for t in trials if trial.key in t.control_of and t.family == trial.family]
    return mean_over_draws([outcomes[key] for key in drawn]) if drawn else None


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
    vectors = neurons.value_vectors(study.base.lm)
    norm = torch.stack([v.norm(dim=-1) for v in vectors]).cpu().flatten()
    quantile = (norm.argsort().argsort() * QUANTILES) // norm.numel()
    taken, free = chosen.flatten(), (~chosen if among is None else among & ~chosen).flatten()
    generator = generator_of(draw, study.profile.seed)
    drawn = torch.zeros(norm.numel(), dtype=torch.bool)
    for q in range(QUANTILES):
        wanted, left = int((taken & (quantile == q)).sum()), (free & (quantile == q)).nonzero()[:, 0]
        drawn[left[torch.randperm(len(left), generator=generator)[:wanted]]] = True
    return drawn.view(chosen.shape)


def ablations(study: Study) -> list[Trial]:
    """Toxic value vectors set to zero: the top n by cosine, of all neurons and of those positively activated."""
    trials = []
    for kind, (label, in_paper, sizes) in ABLATED.items():
        for n in SIZES:
            given = (AblateValues(top(study.cosine, n, _pool(study, kind))),)
            row = (f"ablate top {n} {in_paper}", "yang2024v1") if n in sizes else None
            trials += [Trial(f"ablate_{kind}_{n}", f"ablate {n} {label}", "ablate", given, published=row)]
    return trials


def ablation_controls(study: Study) -> list[Trial]:
    """For some sizes, draws of random neurons matched in number and norm, from the same pool."""
    trials = []
    for kind, (name, _, _) in ABLATED.items():
        among = _pool(study, kind)
        for n, controlled in CONTROLLED.items():
            chosen, against = top(study.cosine, n, among), tuple(f"ablate_{kind}_{m}" for m in controlled)
            for draw in range(study.profile.control_draws):
                given = (AblateValues(matched(study, chosen, draw, among)),)
                label = f"random for: ablate {n} {name}, {draw}"
                key = f"random_{kind}_{n}_{draw}"
                trials += [Trial(key, label, "ablate", given, control_of=against)]
    return trials


def _pool(study: Study, kind: str) -> Neurons | None:
    """What the neurons of a kind are chosen from; None is all."""
    return study.base.mean > 0 if kind == "positive" else None


def directions(study: Study) -> dict[str, Float[Tensor, "d_model"]]:
    """Unit directions by key: the probe, the most toxic value vector, the first SVD direction, a random one."""
    stacked = torch.stack(list(neurons.value_vectors(study.base.lm))).flatten(0, 1).cpu()
    order = study.cosine.flatten().argsort(descending=True)
    random = torch.randn(len(study.direction), generator=torch.Generator().manual_seed(study.profile.seed))
    by_key = {
        "w": study.direction,
        "value": stacked[order[0]],
        "svd": probe.svd_directions(stacked[order[:128]], 1)[0],
        "random": random,
    }
    return {key: d / d.norm() for key, d in by_key.items()}


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

    def search() -> float:
        nll, count = perplexity.cross_entropy(lm, windows, 8)
        scale = 1.0
        for _ in range(5):
            with applied(view, Subtract(direction, scale, layer), positions=Positions.ALL):
                risen = np.exp((perplexity.cross_entropy(lm, windows, 8)[0] - nll).sum() / count.sum()) - 1
            scale *= np.clip((rise / max(risen, 1e-9)) ** 0.5, 0.1, 10)
        return float(scale)

    unscaled = Subtract(direction, 1.0, layer).fingerprint
    inputs = {"model": lm.fingerprint, "direction": unscaled, "windows": windows, "rise": rise}
    return Subtract(direction, store.kept("scales", inputs, search), layer)


def subtractions(
    study: Study, view: TransformerBridge, windows: list[list[int]], cost: float = 1.0
) -> list[Trial]:
    """Each direction subtracted at ``cost`` times the published rise in perplexity; the random one is the control.

    At other costs than 1 only the probe's and the random one. ``view`` is the bridge of the base model;
    scales are found on ``windows``.
    """
    suffix = "" if cost == 1 else f"_{cost:g}"
    keys = tuple(SUBTRACTED) if cost == 1 else ("w", "random")
    trials = []
    for key in keys:
        label, in_paper = SUBTRACTED[key]
        step = calibrated(study.base.lm, view, directions(study)[key], windows, cost * PUBLISHED_RISE)
        trials += [
            Trial(
                f"subtract_{key}{suffix}",
                f"subtract {label}{COSTS[cost]}",
                "subtract",
                (step,),
                control_of=tuple(f"subtract_{k}{suffix}" for k in keys[:-1]) if key == "random" else (),
                published=(in_paper, "lee2024") if in_paper and cost == 1 else None,
            )
        ]
    return trials


def unalignments(study: Study) -> list[Trial]:
    """The DPO model with the keys of the 7 most toxic neurons scaled up, and with 7 random ones."""
    toxic = top(study.cosine, 7)
    trials = [
        Trial(
            f"keys_{factor}",
            f"DPO, 7 toxic keys × {factor}",
            "keys",
            (RescaleKeys(toxic, float(factor)),),
            on_tuned=True,
            published=(f"DPO, 7 toxic keys x{factor}", "yang2024v1"),
        )
        for factor in (2, 5, 10)
    ]
    random, against = (RescaleKeys(matched(study, toxic, 0), 10.0),), tuple(t.key for t in trials)
    label = "DPO, 7 random keys × 10"
    return [*trials, Trial("keys_random", label, "keys", random, on_tuned=True, control_of=against)]


def patch_sets(study: Study) -> dict[str, tuple[str, Neurons]]:
    """The sets of neurons that the papers patch: label and mask by key; ↓ are neurons whose Δp > 0."""
    down, group = study.reduction > 0, study.members
    dampened = group(Group.TP) & (study.base.mean > study.tuned.mean)
    return {
        "dampened": ("dampened toxic (TP−)", dampened),
        **{g.name.lower(): (f"{g.name}↓", group(g) & down) for g in Group},
        "tp_an": ("TP↓ + AN↓", group(Group.TP, Group.AN) & down),
        "tn_ap": ("TN↓ + AP↓", group(Group.TN, Group.AP) & down),
        "tp_tn_an": ("TP↓ + TN↓ + AN↓", group(Group.TP, Group.TN, Group.AN) & down),
        "all_down": ("all ↓", down),
        "all": ("all neurons", torch.ones_like(down)),
    }


def patches(study: Study) -> list[Trial]:
    """Base model with mean DPO activations, its controls, and the reverse; acting on generated tokens, as published.

    For perplexity they act at all positions but the first, the attention sink, which no patch
    meets while generating.
    """
    base, tuned, sets = study.base.mean, study.tuned.mean, patch_sets(study)
    trials = [
        Trial(f"patch_{key}", f"patch {label}", "patch", (Patch(chosen, tuned),), published=PATCHED.get(key))
        for key, (label, chosen) in sets.items()
    ]
    (down_label, down), (all_label, everything) = sets["all_down"], sets["all"]
    hold_down, hold_all = (Patch(down, base),), (Patch(everything, base),)
    trials += [
        Trial(
            "clamp_down",
            f"clamp {down_label} to base means",
            "clamp",
            hold_down,
            control_of=("patch_all_down",),
        ),
        Trial("clamp_all", f"clamp {all_label} to base means", "clamp", hold_all, control_of=("patch_all",)),
    ]
    for draw in range(study.profile.control_draws):
        generator = torch.Generator().manual_seed(draw)
        some = torch.rand(down.shape, generator=generator) < down.double().mean().item()
        label, given = f"patch random neurons, {draw}", (Patch(some, tuned),)
        # As many as reduce. Chapter 8 holds the first draw against the (fewer) dampened neurons, too.
        of = ("patch_all_down", "patch_dampened") if draw == 0 else ("patch_all_down",)
        trials += [Trial(f"patch_random_{draw}", label, "patch", given, control_of=of)]
    own_means = (Patch(everything, tuned),)
    trials += [
        Trial("reverse_down", f"DPO, patch {down_label} to base means", "reverse", hold_down, on_tuned=True),
        Trial("reverse_all", f"DPO, patch {all_label} to base means", "reverse", hold_all, on_tuned=True),
        Trial(
            "reverse_clamp",
            f"DPO, clamp {all_label} to DPO means",
            "clamp",
            own_means,
            on_tuned=True,
            control_of=("reverse_all",),
        ),
    ]
    return _on_generated(trials)


def _on_generated(trials: Iterable[Trial]) -> list[Trial]:
    """Acting where tokens are generated; for perplexity at all positions but the first."""
    return [replace(t, writing=Positions.GENERATED, reading=Positions.AFTER_FIRST) for t in trials]


def embedding_direction(study: Study) -> Float[Tensor, "d_model"]:
    """The direction of the EMNLP version: mean unembedding of five swear words minus that of five friendly ones."""

    def mean(words: tuple[str, ...]) -> Tensor:
        rows = [unembedding[ids].mean(0) for ids in tokens.encode(study.base.lm.tokenizer, words)]
        return torch.stack(rows).mean(0)

    unembedding = study.base.lm.model.get_output_embeddings().get_parameter("weight").detach().float().cpu()
    return mean(TOXIC_WORDS) - mean(CIVIL_WORDS)


def edited(
    study: Study, cosine: Float[Tensor, "layer d_mlp"], alpha: float, beta: float, *, random: bool = False
) -> Patch:
    """Tuning-free editing (EMNLP version): clamp a share β of each group to its base mean times 1 ± α.

    TP and AN, those with the highest absolute cosine, are turned down to 1 − α; AP and TN, those with the
    lowest, up to 1 + α. A negative α swaps the signs; ``random`` draws the neurons of each group.
    """
    mean = study.base.mean
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
    cosine, embedding = study.cosine, neurons.cosines(study.base.lm, embedding_direction(study))
    trials = []
    for rule, suffix, alpha, beta in (("published", "", 0.01, 0.55), ("strong", "_strong", 1.0, 0.02)):
        setting = f"α = {alpha:g}, β = {beta:g}"
        for key, label, family, patch in (
            (rule, f"edit, {setting}", "edit", edited(study, cosine, alpha, beta)),
            (
                "embedding" + suffix,
                f"edit by embedding, {setting}",
                "edit",
                edited(study, embedding, alpha, beta),
            ),
            ("clamp" + suffix, f"clamp only, α = 0, β = {beta:g}", "clamp", edited(study, cosine, 0.0, beta)),
            ("swapped" + suffix, f"swapped signs, {setting}", "swap", edited(study, cosine, -alpha, beta)),
            (
                "random" + suffix,
                f"random neurons, {setting}",
                "edit",
                edited(study, cosine, alpha, beta, random=True),
            ),
        ):
            against = () if key in (rule, "embedding" + suffix) else (f"edit_{rule}",)
            trials += [Trial(f"edit_{key}", label, family, (patch,), control_of=against)]
    return _on_generated(trials)
