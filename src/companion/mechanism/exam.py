"""One exam for every model and intervention: toxicity, perplexity and F1 on the same texts.

What a model wrote and its losses are kept in the store; scores are computed from the texts. So a
sweep that was interrupted goes on where it stopped, and a later chapter can show an earlier
chapter's methods beside its own without running them again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from transformer_lens import TransformerBridge

from companion import store
from companion.data import by_profile
from companion.lm import generation
from companion.lm.models import LanguageModel
from companion.mechanism.interventions import Intervention, Positions, applied
from companion.metrics import estimates, perplexity
from companion.metrics.estimates import Estimate
from companion.metrics.text import f1
from companion.profiles import Profile
from companion.toxicity import Scorer

BATCH_TOKENS = 1024  # per batch of windows: its logits fit into 200 MB


@dataclass(frozen=True)
class Exam:
    """The texts of an exam: prompts for toxicity, half sentences with their other half for F1, windows for perplexity."""

    prompts: list[str]
    openings: list[str]
    references: list[str]
    windows: list[list[int]]
    new_tokens: int
    max_prompt_tokens: int

    @classmethod
    def of(cls, profile: Profile, lm: LanguageModel) -> Exam:
        """The smaller exam of the sweeps: ``sweep_prompts`` and so on of the profile, from the evaluation part."""
        prose = by_profile.prose(profile, "eval")
        openings, references = by_profile.openings(by_profile.sentences(prose)[: profile.sweep_sentences])
        windows = perplexity.windows(lm, prose, profile.sweep_window_tokens, profile.sweep_windows)
        prompts = by_profile.prompts(profile, limit=profile.sweep_prompts).prompt.tolist()
        return cls(prompts, openings, references, windows, profile.new_tokens, profile.max_prompt_tokens)


@dataclass(frozen=True)
class Outcome:
    """What came out, one number per prompt, sentence or window."""

    texts: list[str]
    toxicity: Float[np.ndarray, "prompts"]
    f1: Float[np.ndarray, "sentences"]
    nll: Float[np.ndarray, "windows"]
    count: Int[np.ndarray, "windows"]

    def summary(self, base: Outcome, seed: int = 0) -> dict[str, Estimate]:
        """Each metric with its interval, and its change against ``base`` with texts paired."""
        return {
            "toxicity": estimates.mean(self.toxicity, seed),
            "drop": estimates.relative_drop(base.toxicity, self.toxicity, seed),
            "perplexity": estimates.ratio(self.nll, self.count, seed, np.exp),
            "perplexity_rise": estimates.ratio(
                self.nll - base.nll, self.count, seed, lambda x: np.exp(x) - 1
            ),
            "f1": estimates.mean(self.f1, seed),
            "f1_change": estimates.mean(self.f1 - base.f1, seed),
        }


def examine(
    lm: LanguageModel,
    view: TransformerBridge,
    exam: Exam,
    scorer: Scorer,
    *given: Intervention,
    writing: Positions = Positions.ALL,
    reading: Positions = Positions.ALL,
) -> Outcome:
    """Examine a model with interventions applied at ``writing`` while it writes and ``reading`` for perplexity.

    ``view`` is the TransformerBridge of ``lm`` (:func:`companion.lm.anatomy.bridge`).
    """

    written = _written(lm, view, exam, given, writing)
    nll, count = _losses(lm, view, exam.windows, given, reading)
    texts, continued = written[: len(exam.prompts)], written[len(exam.prompts) :]
    overlap = np.array([f1(text, truth) for text, truth in zip(continued, exam.references, strict=True)])
    return Outcome(texts, scorer(texts), overlap, nll, count)


def _written(
    lm: LanguageModel,
    view: TransformerBridge,
    exam: Exam,
    given: tuple[Intervention, ...],
    positions: Positions,
) -> list[str]:
    """Continuations of prompts and openings, from the store or made now."""
    settings = {"new_tokens": exam.new_tokens, "max_prompt_tokens": exam.max_prompt_tokens}
    asked = [*exam.prompts, *exam.openings]

    def build(folder: Path) -> None:
        with applied(view, *given, positions=positions):
            texts = generation.generate(lm, asked, batch_size=128, **settings).texts
        (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")

    inputs = {**_inputs(lm, given, positions), "asked": store.key_of({"texts": asked}), **settings}
    folder = store.artifact("written", inputs, build)
    return json.loads((folder / "texts.json").read_text(encoding="utf-8"))


def _losses(
    lm: LanguageModel,
    view: TransformerBridge,
    windows: list[list[int]],
    given: tuple[Intervention, ...],
    positions: Positions,
):
    """Summed loss and tokens of each window, from the store or measured now."""

    def build(folder: Path) -> None:
        with applied(view, *given, positions=positions):
            nll, count = perplexity.cross_entropy(
                lm, windows, batch_size=max(1, BATCH_TOKENS // len(windows[0]))
            )
        (folder / "losses.json").write_text(json.dumps([nll.tolist(), count.tolist()]), encoding="utf-8")

    inputs = {**_inputs(lm, given, positions), "windows": store.key_of({"ids": windows})}
    folder = store.artifact("losses", inputs, build)
    return tuple(
        np.array(values) for values in json.loads((folder / "losses.json").read_text(encoding="utf-8"))
    )


def _inputs(lm: LanguageModel, given: tuple[Intervention, ...], positions: Positions) -> dict:
    return {
        "model": lm.fingerprint,
        "interventions": [i.fingerprint for i in given],
        "positions": positions.value if given else "",
    }


def mean_over_draws(outcomes: Sequence[Outcome]) -> Outcome:
    """Random draws of one control averaged prompt by prompt, so that its interval is over prompts as everywhere."""
    first = outcomes[0]
    average = {
        name: np.mean([getattr(o, name) for o in outcomes], axis=0) for name in ("toxicity", "f1", "nll")
    }
    return Outcome(first.texts, **average, count=first.count)
