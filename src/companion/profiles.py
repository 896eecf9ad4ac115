"""The four profiles; nothing else reads settings."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace

from companion.errors import CompanionError
from companion.paths import PACKAGE


@dataclass(frozen=True)
class Profile:
    """Everything a run depends on besides the code.

    Attributes
    ----------
    model
        A name for :func:`companion.lm.models.load`.
    data
        ``embedded`` (what ``data/`` ships) or ``public`` (the registry).
    scorer, scorers
        The scorer that results are given in; those that chapter 1 compares.
    prompts, max_prompt_tokens, new_tokens
        Evaluation prompts (0: all), their longest length, and tokens per continuation.
    sample_prompts, samples
        Prompts and samples per prompt for expected maximum toxicity.
    perplexity_windows, window_tokens, continuations
        Windows (0: all) and their width for perplexity; sentences for F1.
    probe_comments
        Labelled comments for the probe, at most.
    pairs, pair_margin
        0 takes the pairs of ``data/pairs``; n makes pairs from n steered continuations by PPLM, of
        which those are kept that differ in toxicity by the margin.
    pplm_prompts, pplm_iterations
        Prompts shown live in chapter 3; gradient steps per token.
    dpo_steps, dpo_batch, dpo_learning_rate, dpo_warmup, dpo_precision
        Training settings (:meth:`companion.mechanism.dpo.DPOConfig.of`).
    sweep_prompts, sweep_sentences, sweep_windows, sweep_window_tokens
        The smaller exam of chapters 4, 5 and 8, which examine dozens of interventions: prompts for
        toxicity (0: all), sentences for F1, windows and their width for perplexity.
    control_draws
        Random draws of neurons per control.
    control_seeds, control_steps, control_batch
        Further DPO runs of chapter 7, their steps and pairs per step.
    experts
        MaRCo's: ``shipped`` (data/adapters), ``small`` (trained on the spot, for tests) or ``bart`` (published).
    judge
        The language model that fluency of rewrites is measured with; it takes no part in making them.
    encoder
        The encoder of BERTScore: the shipped one, or one of the Hub.
    live_steps, infilled_comments
        Training steps shown in chapter 9; comments that the experts restore there.
    rewrites, ablated, meeting_prompts
        Chapter 11: sentences per set for all methods, for ablations (0: all), and prompts on which DPO and MaRCo meet.
    seed
        All randomness descends from it.
    """

    name: str
    model: str
    data: str
    scorer: str
    scorers: list[str]
    prompts: int
    max_prompt_tokens: int
    new_tokens: int
    sample_prompts: int
    samples: int
    perplexity_windows: int
    window_tokens: int
    continuations: int
    probe_comments: int
    pairs: int
    pair_margin: float
    pplm_prompts: int
    pplm_iterations: int
    dpo_steps: int
    dpo_batch: int
    dpo_learning_rate: float
    dpo_warmup: int
    dpo_precision: str
    sweep_prompts: int
    sweep_sentences: int
    sweep_windows: int
    sweep_window_tokens: int
    control_draws: int
    control_seeds: int
    control_steps: int
    control_batch: int
    experts: str
    judge: str
    encoder: str
    live_steps: int
    infilled_comments: int
    rewrites: int
    ablated: int
    meeting_prompts: int
    seed: int


def names() -> list[str]:
    """Names of all profiles."""
    return list(_tables())


def settings() -> set[str]:
    """Names of all fields that can be overridden."""
    return {field.name for field in fields(Profile)} - {"name"}


def load(name: str, **overrides: object) -> Profile:
    """Load a profile; keyword arguments that are not None replace its fields.

    Raises
    ------
    CompanionError
        If the profile or a field does not exist, or a value has the wrong type.
    """
    tables = _tables()
    if name not in tables:
        raise CompanionError(f"there is no profile '{name}': choose one of {', '.join(tables)}.")
    values, base = dict(tables[name]), tables[name].get("base")
    while base:
        values = {**tables[base], **values, "base": tables[base].get("base")}
        base = values["base"]
    values.pop("base", None)
    profile = Profile(name=name, **values)
    changes = {key: value for key, value in overrides.items() if value is not None}
    known = {field.name: type(getattr(profile, field.name)) for field in fields(Profile)}
    for key, value in changes.items():
        if key not in settings():
            raise CompanionError(f"'{key}' is not a setting: choose one of {', '.join(sorted(settings()))}.")
        if type(value) is int and known[key] is float:
            changes[key] = float(value)
        elif type(value) is not known[key]:  # isinstance would take True for 1
            raise CompanionError(f"the setting '{key}' is of type {known[key].__name__}, not {value!r}.")
        if known[key] in (int, float) and not 0 <= value < float("inf"):
            raise CompanionError(f"the setting '{key}' must be a number of at least 0, not {value!r}.")
    return replace(profile, **changes)


def _tables() -> dict[str, dict]:
    return tomllib.loads((PACKAGE / "profiles.toml").read_text(encoding="utf-8"))
