"""The profiles; nothing else reads settings."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from typing import Any

from companion.errors import CompanionError
from companion.paths import PACKAGE


@dataclass(frozen=True)
class Profile:
    """Everything a run depends on besides the code."""

    # Sphinx takes what stands before a colon in such a comment for a type, so there is none.
    name: str
    model: str  #: a name for :func:`companion.lm.models.load`
    chapters: list[str]  #: those that can run with it, by name; none named means all
    data: str  #: ``embedded`` (what ``data/`` ships) or ``public`` (the registry)
    scorer: str  #: the scorer that results are given in
    second: str  #: the scorer that stands beside it and chooses nothing
    scorers: list[str]  #: those that chapter 1 compares
    prompts: int  #: evaluation prompts; 0 takes all
    max_prompt_tokens: int  #: their longest length
    new_tokens: int  #: tokens per continuation
    sample_prompts: int  #: prompts for expected maximum toxicity
    samples: int  #: samples per prompt for it
    perplexity_windows: int  #: windows for perplexity; 0 takes all
    window_tokens: int  #: their width
    continuations: int  #: sentences for F1
    probe_comments: int  #: labelled comments for the probe, at most
    pairs: int  #: 0 takes those of ``data/pairs``, n makes them from n steered continuations by PPLM
    pair_margin: float  #: of pairs that are made, those are kept that differ in toxicity by this
    pplm_prompts: int  #: prompts shown live in chapter 3
    pplm_iterations: int  #: gradient steps per token
    dpo_steps: int  #: training settings, see :meth:`companion.mechanism.dpo.DPOConfig.of`
    dpo_batch: int
    dpo_learning_rate: float
    dpo_warmup: int
    dpo_precision: str
    sweep_prompts: int  #: prompts of the smaller exam that chapters 4, 5 and 8 take often; 0 takes all
    sweep_sentences: int  #: its sentences for F1
    sweep_windows: int  #: its windows for perplexity
    sweep_window_tokens: int  #: their width
    complete: bool  #: all rows of the papers' tables, and contrasts on all prompts, not on a sweep's
    control_draws: int  #: random draws of neurons per control, dealt over prompts
    control_seeds: int  #: further DPO runs of chapter 7
    control_shuffles: int  #: and runs on shuffled preferences
    control_steps: int  #: steps of both
    control_batch: int  #: their pairs per step
    control_prompts: int  #: prompts that these runs are measured on; 0 takes all
    experts: (
        str  #: MaRCo's, ``shipped`` (data/adapters), ``small`` (trained on the spot) or ``bart`` (published)
    )
    judge: str  #: the language model that judges the fluency of rewrites; it takes no part in making them
    encoder: str  #: the encoder of BERTScore, the shipped one or one of the Hub
    live_steps: int  #: training steps shown in chapter 9
    infilled_comments: int  #: comments that the experts restore there
    rewrites: int  #: sentences per set for all methods of chapter 11; 0 takes all
    ablated: int  #: the same for its ablations
    meeting_prompts: int  #: prompts on which DPO and MaRCo meet there
    seed: int  #: all randomness descends from it


def names() -> list[str]:
    """Names of all profiles."""
    return list(_tables())


def settings() -> set[str]:
    """Names of all fields that can be overridden."""
    return {field.name for field in fields(Profile)} - {"name"}


def load(name: str, **overrides: Any) -> Profile:
    """Load a profile; keyword arguments that are not None replace its fields.

    Raises
    ------
    CompanionError
        If the profile or a field does not exist, or a value has the wrong type.
    """
    tables = _tables()
    if name not in tables:
        raise CompanionError(f"there is no profile '{name}': choose one of {', '.join(tables)}.")
    values = tables[name]
    while "base" in values:
        base = tables[values.pop("base")]
        values = base | values
    profile = Profile(name=name, **values)
    changes = {key: value for key, value in overrides.items() if value is not None}
    for key, value in changes.items():
        if key not in settings():
            raise CompanionError(f"'{key}' is not a setting: choose one of {', '.join(sorted(settings()))}.")
        kind = type(getattr(profile, key))
        if type(value) is int and kind is float:
            changes[key] = float(value)
        elif type(value) is not kind:  # isinstance would take True for 1
            raise CompanionError(f"the setting '{key}' is of type {kind.__name__}, not {value!r}.")
        if kind in (int, float) and not 0 <= value < float("inf"):
            raise CompanionError(f"the setting '{key}' must be a number of at least 0, not {value!r}.")
    return replace(profile, **changes)


def _tables() -> dict[str, dict[str, Any]]:
    return tomllib.loads((PACKAGE / "profiles.toml").read_text(encoding="utf-8"))
