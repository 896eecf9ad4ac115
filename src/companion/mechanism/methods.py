"""The papers' interventions as lists of trials, each with its controls.

Chapters 4, 5 and 8 show how a method works and then examine its list; chapter 8 examines all of
them together, at no cost, because outcomes are in the store. A profile that is not ``complete`` has the
trials that verdicts and text rest on, and leaves out further sizes, factors and sets of the papers' tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import TransformerBridge

from companion.lm import anatomy, recording
from companion.mechanism import costs
from companion.mechanism.interventions import (
    AblateValues,
    Intervention,
    OpenGates,
    Patch,
    Positions,
    RescaleKeys,
    Subtract,
)
from companion.mechanism.neurons import cosines
from companion.mechanism.selection import (
    Neurons,
    directions,
    edited,
    embedding_direction,
    increments,
    matched,
    patch_sets,
    shift,
    top,
    turned,
)
from companion.mechanism.study import Study
from companion.mechanism.trials import Trial
from companion.profiles import Profile

SIZES = (100, 200, 1000, 2000)  # numbers of toxic value vectors that Yang et al. (2024) ablate
FACTORS = (2, 3, 5, 10)  # by which they, and Lee et al. (3, in a gated model), scale toxic keys
NEEDED_SIZES, NEEDED_FACTORS = (200, 2000), (10,)  # what verdicts and text rest on
NEEDED_SETS = ("dampened", "all_down", "all")  # of those that are patched
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


def sizes(profile: Profile) -> list[int]:
    """How many value vectors are ablated."""
    return [n for n in SIZES if profile.complete or n in NEEDED_SIZES]


def ablations(study: Study) -> list[Trial]:
    """The top n value vectors by cosine set to zero, of all neurons and of those positively activated."""
    trials = []
    for kind, (label, in_paper, there) in ABLATED.items():
        for n in sizes(study.profile):
            given = (AblateValues(top(study.cosine, n, _pool(study, kind))),)
            row = (f"ablate top {n} {in_paper}", "yang2024v1") if n in there else None
            trials += [Trial(f"ablate_{kind}_{n}", f"ablate {n} {label}", "ablate", given, published=row)]
    return trials


def ablation_controls(study: Study) -> list[Trial]:
    """For each, as many random neurons of the same norms from the same pool, drawn for each prompt."""
    trials = []
    for kind, (name, _, _) in ABLATED.items():
        among = _pool(study, kind)
        for n in sizes(study.profile):
            drawn = matched(study, top(study.cosine, n, among), study.profile.control_draws, among)
            key, label, of = f"random_{kind}_{n}", f"random for: ablate {n} {name}", (f"ablate_{kind}_{n}",)
            trials += [Trial(key, label, "ablate", (AblateValues(drawn),), control_of=of)]
    return trials


def _pool(study: Study, kind: str) -> Neurons | None:
    """What the neurons of a kind are chosen from; None is all."""
    return study.base.mean > 0 if kind == "positive" else None


def subtractions(
    study: Study, view: TransformerBridge, windows: list[list[int]], cost: float = 1.0
) -> list[Trial]:
    """Each direction subtracted at ``cost`` times the published rise in perplexity; the random one controls.

    At other costs than 1, or if the profile is not complete, only the probe's and the random one; a cost that
    is not listed in :mod:`companion.mechanism.costs` is the DPO model's own. At a cost of 0 the scale is 0.
    ``view`` is the bridge of the base model; scales are found on ``windows``.
    """
    suffix = "" if cost == 1 else f"_{cost:g}" if cost in costs.COSTS else "_own"
    keys = tuple(SUBTRACTED) if cost == 1 and study.profile.complete else ("w", "random")
    trials = []
    for key in keys:
        label, in_paper = SUBTRACTED[key]
        step = costs.calibrated(
            study.base.lm, view, directions(study)[key], windows, cost * costs.PUBLISHED_RISE
        )
        trials += [
            Trial(
                f"subtract_{key}{suffix}",
                f"subtract {label}{costs.COSTS.get(cost, costs.OWN_COST)}",
                "subtract",
                (step,),
                control_of=tuple(f"subtract_{k}{suffix}" for k in keys[:-1]) if key == "random" else (),
                published=(in_paper, "lee2024") if in_paper and cost == 1 else None,
            )
        ]
    return trials


def shifts(study: Study) -> list[Trial]:
    """The base model plus DPO's mean shift of the residual stream, the DPO model minus it, and random shifts.

    The whole shift behind every block would be counted again in every later one, since the stream carries on
    what is added to it. So each adds what the shift grows by there
    (:func:`companion.mechanism.selection.increments`); by block l these add up to the shift behind it. But
    blocks also answer what is added, and the shift contains such answers, so that the stream may move further
    than DPO moves it. Hence two trials at a single layer each, fixed in advance, after which the model does
    the rest by itself: the stream that enters the middle block, and the one that enters the last, where the
    probe reads. These two, and what is taken from the DPO model, are for complete profiles.

    A random control is the same vectors, rotated together at random for each prompt: it has their norms and,
    where there are several, their angles to each other. Everything acts at every position.
    """
    moved = shift(study)
    steps, n = increments(moved), len(moved)
    middle, probed = max(0, n // 2 - 1), max(0, n - 2)
    places = {"": ("shift", dict(enumerate(steps)))}
    if study.profile.complete:
        places["_middle"] = "shift, middle layer", {middle: moved[middle]}
        places["_probe"] = "shift, probe's layer", {probed: moved[probed]}

    def trial(key: str, label: str, at: dict[int, Tensor], sign: int, of: tuple[str, ...] = ()) -> Trial:
        given = tuple(Subtract(direction, -float(sign), layer) for layer, direction in at.items())
        label = f"base + {label}" if sign > 0 else f"DPO − {label}"
        return Trial(key, label, "shift", given, on_tuned=sign < 0, control_of=of)

    trials = []
    for suffix, (label, at) in places.items():
        draws = turned(torch.stack(list(at.values())), study.profile.control_draws, study.profile.seed)
        random = dict(zip(at, draws.unbind(1), strict=True))
        both = study.profile.complete and not suffix
        for key, sign in (("shift", 1), ("unshift", -1)) if both else (("shift", 1),):
            trials.append(trial(f"{key}{suffix}", label, at, sign))
            against = (f"{key}{suffix}",)
            trials.append(trial(f"{key}_random{suffix}", f"random {label}", random, sign, against))
    return trials


def unalignments(study: Study) -> list[Trial]:
    """The DPO model with the keys of the 7 most toxic neurons scaled up, and with those of 7 random ones.

    Complete profiles open the gates of a gated model, too (Lee et al., table 5; W₂ × 3 is keys × 3).
    """
    toxic, complete = top(study.cosine, 7), study.profile.complete
    random = matched(study, toxic, study.profile.control_draws)
    done: dict[str, tuple[str, Callable[[Neurons], Intervention]]] = {
        f"_{factor}": (f"keys × {factor}", partial(RescaleKeys, factor=float(factor)))
        for factor in FACTORS
        if complete or factor in NEEDED_FACTORS
    }
    if complete and anatomy.is_gated(study.tuned.lm):
        done["_open"] = "gates opened", OpenGates
    published = {f"_{factor}": (f"DPO, 7 toxic keys x{factor}", "yang2024v1") for factor in (2, 5, 10)}
    sets = (("keys", "toxic", toxic), ("keys_random", "random", random))
    return [
        Trial(
            f"{key}{suffix}",
            f"DPO, 7 {name} {label}",
            "keys",
            (do(chosen),),
            on_tuned=True,
            control_of=(f"keys{suffix}",) if chosen is random else (),
            published=published.get(suffix) if chosen is toxic else None,
        )
        for key, name, chosen in sets
        for suffix, (label, do) in done.items()
    ]


def patched(study: Study) -> dict[str, tuple[str, Neurons]]:
    """The sets of neurons that are patched, label and mask by key; single groups in complete profiles."""
    sets = patch_sets(study)
    return {key: of for key, of in sets.items() if study.profile.complete or key in NEEDED_SETS}


def patches(study: Study) -> list[Trial]:
    """Base model with mean DPO activations, each set of neurons with its controls, and the reverse.

    Controls of a set: the same neurons held at the base model's own means (clamp), and as many random neurons
    of the same norms with DPO's means; the dampened toxic ones, in complete profiles all sets, at zero, too.
    All act on generated tokens, as published.
    """
    base, tuned, draws = study.base.mean, study.tuned.mean, study.profile.control_draws
    trials: list[Trial] = []
    for key, (label, chosen) in patched(study).items():
        given, published = (Patch(chosen, tuned),), PATCHED.get(key)
        trials += [Trial(f"patch_{key}", f"patch {label}", "patch", given, published=published)]
        controls: list[tuple[str, str, str, Intervention]] = [
            ("clamp", f"clamp {label} to base means", "clamp", Patch(chosen, base)),
        ]
        if study.profile.complete or key == "dampened":
            controls.append(("zero", f"zero {label}", "zero", AblateValues(chosen)))
        if not chosen.all():  # else no neurons are left to draw from
            drawn = Patch(matched(study, chosen, draws), tuned)
            controls += [("random", f"random for: patch {label}", "patch", drawn)]
        trials += [
            Trial(f"{kind}_{key}", name, family, (control,), control_of=(f"patch_{key}",))
            for kind, name, family, control in controls
        ]
    label, chosen = patch_sets(study)["all_down"]
    name = f"clamp {label} to base means of half of the prompts"
    held = Patch(chosen, _half_mean(study))
    trials.append(Trial("clamp_half_all_down", name, "clamp", (held,), control_of=("patch_all_down",)))
    return _on_generated([*trials, *_reverse(study)])


def _half_mean(study: Study) -> Float[Tensor, "layer d_mlp"]:
    """Mean base activations over every second block of prompts: the clamp differs by luck only."""
    _, sums = recording.write(study.base.lm, study.task, through_norm=False)
    return sums.weighted((torch.arange(len(sums.count)) % 2).double())


def _reverse(study: Study) -> list[Trial]:
    """The DPO model with the base model's means, and with its own."""
    sets = patch_sets(study)
    (down_label, down), (all_label, everything) = sets["all_down"], sets["all"]
    base, own = study.base.mean, study.tuned.mean
    trials = [
        ("reverse_down", f"DPO, patch {down_label} to base means", "reverse", Patch(down, base), ()),
        ("reverse_all", f"DPO, patch {all_label} to base means", "reverse", Patch(everything, base), ()),
        (
            "reverse_clamp",
            f"DPO, clamp {all_label} to DPO means",
            "clamp",
            Patch(everything, own),
            ("reverse_all",),
        ),
    ]
    return [
        Trial(key, label, family, (given,), on_tuned=True, control_of=of)
        for key, label, family, given, of in trials
    ]


def _on_generated(trials: Iterable[Trial]) -> list[Trial]:
    """Acting where tokens are generated; for perplexity where they would be, behind a clean context."""
    return [replace(t, writing=Positions.GENERATED, reading=Positions.CONTINUATION) for t in trials]


def edits(study: Study) -> list[Trial]:
    """The published editing rule, one with a strong factor and a small clamp, and for each its controls."""
    cosine, embedding = study.cosine, cosines(study.base.lm, embedding_direction(study))
    trials, complete = [], study.profile.complete
    for rule, suffix, alpha, beta in (("published", "", 0.01, 0.55), ("strong", "_strong", 1.0, 0.02)):
        setting = f"α = {alpha:g}, β = {beta:g}"
        by_embedding = edited(study, embedding, alpha, beta)
        at_random = edited(study, cosine, alpha, beta, random=True)
        clamp, swapped = edited(study, cosine, 0.0, beta), edited(study, cosine, -alpha, beta)
        against = (f"edit_{rule}",)
        trials += [
            Trial(f"edit_{rule}", f"edit, {setting}", "edit", (edited(study, cosine, alpha, beta),)),
        ]
        if complete or rule == "published":
            key, label = f"edit_embedding{suffix}", f"edit by embedding, {setting}"
            trials += [Trial(key, label, "edit", (by_embedding,))]
        for key, label, family, patch in (
            ("clamp", f"clamp only, α = 0, β = {beta:g}", "clamp", clamp),
            ("swapped", f"swapped signs, {setting}", "swap", swapped),
            ("random", f"random neurons, {setting}", "edit", at_random),
        ):
            if complete or rule == "published" or key != "swapped":
                trials += [Trial(f"edit_{key}{suffix}", label, family, (patch,), control_of=against)]
    held = Patch(edited(study, cosine, 0.0, 0.55).neurons, _half_mean(study))
    label = "clamp only, β = 0.55, means of half of the prompts"
    trials.append(Trial("edit_clamp_half", label, "clamp", (held,), control_of=("edit_published",)))
    return _on_generated(trials)
