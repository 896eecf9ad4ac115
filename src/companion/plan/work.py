"""What the chapters do with a model: how many copies of it stand in memory, and how much is read and written.

Copies and counts are read off the chapters; their code changes seldom, and ``tests/test_plan.py`` holds the
memory that follows from them against what chapters took in the committed editions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from companion.profiles import Profile

Kind = Literal["reading", "writing", "pooling", "learning", "comparing", "steering"]
PROMPTS, WINDOWS, PAIR_PROMPTS, COMMENT = 1199, 280, 638, 80  # all public ones; a long comment's tokens
STEERED = 64  # prompts in a batch of PPLM
PROMPT, NEW = 32, 20  # their tokens at most, and new ones, as in all profiles but smoke
# Interventions per chapter, on evaluation and on dev prompts, and of them those on all prompts, as counted on
# a tiny Llama: in a profile that is not complete, and in one that is.
TRIALS = {"ablation": (18, 42), "patching": (15, 45), "editing": (25, 36)}
ON_ALL = 8
ON_DPO = {"dpo", "ablation", "patching", "decomposition", "controls", "editing", "evaluation"}
MARCO = {"experts", "marco", "evaluation"}
SCORING = {
    "setting",
    "dpo",
    "ablation",
    "patching",
    "controls",
    "editing",
    "marco",
    "evaluation",
}  # scorers loaded
# Parameters of the models that MaRCo takes besides the profile's: three BARTs; GPT-2 XL and RoBERTa-large.
EXPERTS, JUDGES = 3 * 139e6, 1558e6 + 355e6
EMBEDDED_JUDGE = 268e6  # Gemma 3 270M


@dataclass(frozen=True)
class Phase:
    """A stretch of a chapter: whole copies of the model on the first card, and the largest piece of work.

    ``more`` copies are those of a process beside the chapter's on that card, if cards share the work;
    ``trained`` says whether gradients and optimiser come on top, ``shared`` whether cards divide them;
    ``rows`` and ``width`` are those of the work, ``others`` the parameters of other models.
    """

    what: str
    copies: int
    kind: Kind
    rows: int
    width: int = 0
    more: int = 0
    trained: bool = False
    shared: bool = False
    others: float = 0.0


@dataclass(frozen=True)
class Amounts:
    """How much of each work a chapter does; what is not divided among cards is ``alone``."""

    written: int | float = 0  # tokens
    read: int | float = 0  # tokens
    learned: int | float = 0  # steps
    steered: int | float = 0  # gradient steps of a batch of 64 prompts
    scored: int | float = 0  # texts
    shared: bool = False  # writing and reading are dealt out


def phases(chapter: str, profile: Profile) -> Iterator[Phase]:
    """The stretches of a chapter in which memory may be fullest; none for what holds no model."""
    width, batch = profile.window_tokens, profile.dpo_batch
    sweep = profile.sweep_window_tokens
    bart = profile.experts == "bart"
    match chapter:
        case "setting":
            yield Phase("reading windows", 1, "reading", 2, width)
            yield Phase("writing", 1, "writing", 64)
        case "probe":
            yield Phase("reading comments", 1, "pooling", 32, COMMENT)
        case "dpo":
            yield Phase("PPLM", 1, "steering", STEERED, more=1)
            yield training(profile)
            yield Phase("base, DPO, noise and a model between", 4, "reading", 2, width)
            if profile.complete:  # of the two runs the first one's model is still there in the second
                yield Phase("DPO with the KL term", 4, "comparing", batch, trained=True, shared=True)
        case "ablation" | "editing":
            yield Phase("base and DPO read", 2, "reading", 8, sweep)
            yield Phase("base and DPO write", 2, "writing", 128, more=2)
        case "patching":
            yield Phase("base and DPO read", 2, "reading", max(1, 1024 // sweep), sweep)
            yield Phase("base and DPO write", 2, "writing", 128, more=2)
        case "decomposition":
            yield Phase("base and DPO write", 2, "writing", 64)
        case "controls":
            yield Phase("base, DPO, and another DPO", 2, "learning", profile.control_batch, 0, 0, True, True)
        case "experts" | "marco":
            yield Phase("the experts write", 0 if bart else 2, "writing", 64, others=EXPERTS if bart else 0.0)
        case "evaluation":
            others = EXPERTS + JUDGES if bart else EMBEDDED_JUDGE
            yield Phase("base, DPO, experts and judges", 2 if bart else 4, "writing", 64, others=others)


def training(profile: Profile) -> Phase:
    """DPO itself: chapters that build on its model train it where the store does not have it."""
    return Phase("DPO", 1, "learning", profile.dpo_batch, trained=True, shared=True)


def amounts(chapter: str, profile: Profile) -> Amounts | None:
    """How much a chapter does, at most; None if nobody has measured the rates of its work (MaRCo's)."""
    prompts = profile.prompts or PROMPTS
    windows = (profile.perplexity_windows or WINDOWS) * profile.window_tokens
    once = (prompts + profile.continuations) * NEW  # a model's measures: texts, and windows beside them
    few = profile.sweep_prompts / 2
    match chapter:
        case "setting":
            drawn = profile.sample_prompts * profile.samples
            return Amounts(once + drawn * NEW, windows, scored=drawn + prompts * len(profile.scorers))
        case "probe":
            return Amounts(read=profile.probe_comments * COMMENT / 2)
        case "dpo":
            models, trainings = (5, 1 + 2 * 2 * 4 / 3) if profile.complete else (3, 1)
            line = 6 * few * NEW, 6 * profile.sweep_windows / 2 * profile.window_tokens
            made = profile.pairs and 1 + -(-profile.pairs // PAIR_PROMPTS)
            rounds = made * -(-min(profile.pairs or 1, PAIR_PROMPTS) // STEERED)
            return Amounts(
                models * once + line[0],
                models * windows + line[1],
                trainings * profile.dpo_steps,
                rounds * NEW * profile.pplm_iterations,
                models * prompts + made * PAIR_PROMPTS,
            )
        case "ablation" | "patching" | "editing":
            trials, rest = TRIALS[chapter][profile.complete], prompts - profile.sweep_prompts
            asked = trials * (profile.sweep_prompts + profile.sweep_sentences)
            scored = trials * profile.sweep_prompts
            if profile.complete:
                asked, scored = asked + ON_ALL * rest, scored + ON_ALL * rest
            read = trials * profile.sweep_windows * profile.sweep_window_tokens
            return Amounts(asked * NEW, read, scored=scored, shared=True)
        case "decomposition":
            return Amounts(2 * prompts * NEW, 4 * prompts * 2 * NEW)
        case "controls":
            runs, each = profile.control_seeds + profile.control_shuffles, profile.control_prompts or prompts
            steps = runs * profile.control_steps
            return Amounts(runs * each * NEW, runs * each * 3 * NEW, steps, scored=runs * each)
        case "scoreboard":
            return Amounts()
    return None


def trainings(chapter: str, profile: Profile) -> int:
    """How many trained models a chapter leaves in the store."""
    if chapter == "dpo":
        return 3 if profile.complete else 1
    return profile.control_seeds + profile.control_shuffles if chapter == "controls" else 0
