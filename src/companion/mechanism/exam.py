"""One exam for every model and intervention: toxicity, perplexity and F1 on the same texts.

What a model wrote, its scores and its losses are kept in the store. So a
sweep that was interrupted goes on where it stopped, and a later chapter can show an earlier
chapter's methods beside its own without running them again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from transformer_lens import TransformerBridge

from companion import store
from companion.data import by_profile
from companion.lm.drafts import Drafts
from companion.lm.generation import Generated, generate, joined
from companion.lm.models import LanguageModel
from companion.lm.recording import Task
from companion.mechanism.interventions import CONTEXT, Intervention, Positions, applied
from companion.metrics import estimates, perplexity
from companion.metrics.estimates import Estimate
from companion.metrics.text import f1
from companion.profiles import Profile
from companion.toxicity import Scorer

BATCH_TOKENS = 1024  # per batch of windows: its logits fit into 200 MB
Writing = Literal[Positions.ALL, Positions.GENERATED]


@dataclass(frozen=True)
class Exam:
    """A task for toxicity, half sentences with their other half for F1, windows of ids for perplexity.

    The first ``CONTEXT`` tokens of a window are not scored: they stand for the prompt that a text has in use.
    ``first`` is the number of the first prompt: controls that are drawn for each prompt are drawn by number.
    """

    task: Task
    openings: list[str]
    references: list[str]
    windows: list[list[int]]
    first: int = 0

    @classmethod
    def of(cls, profile: Profile, lm: LanguageModel, split: str = "eval") -> Exam:
        """The smaller exam of the sweeps, ``sweep_prompts`` and so on of the profile; part eval or dev."""
        prose = by_profile.prose(profile, split)
        openings, references = by_profile.openings(by_profile.sentences(prose)[: profile.sweep_sentences])
        windows = perplexity.windows(lm, prose, profile.sweep_window_tokens, profile.sweep_windows)
        prompts = by_profile.spread(by_profile.prompts(profile, split), profile.sweep_prompts).prompt.tolist()
        task = Task(prompts, profile.new_tokens, profile.max_prompt_tokens, batch_size=128)
        return cls(task, openings, references, windows)

    def rest(self, profile: Profile) -> Exam:
        """The evaluation prompts that are not in this exam, numbered behind its own, and nothing else."""
        prompts = by_profile.prompts(profile).prompt.tolist()
        for asked in self.task.prompts:
            prompts.remove(asked)
        return Exam(dataclasses.replace(self.task, prompts=prompts), [], [], [], len(self.task.prompts))


@dataclass(frozen=True)
class Outcome:
    """What came out, one number per prompt, sentence or window."""

    texts: list[str]
    toxicity: Float[np.ndarray, "prompts"]
    second: Float[np.ndarray, "prompts"]  # toxicity by the second scorer, which chose nothing
    f1: Float[np.ndarray, "sentences"]
    nll: Float[np.ndarray, "windows"]
    count: Int[np.ndarray, "windows"]

    def with_more_prompts(self, other: Outcome) -> Outcome:
        """This outcome, with the texts of another's prompts and their toxicity behind its own."""
        return dataclasses.replace(
            self,
            texts=[*self.texts, *other.texts],
            toxicity=np.concatenate([self.toxicity, other.toxicity]),
            second=np.concatenate([self.second, other.second]),
        )

    def summary(self, base: Outcome, seed: int = 0) -> dict[str, Estimate]:
        """Each metric with its interval, and its change against ``base`` with texts paired."""
        return {
            "toxicity": estimates.mean(self.toxicity, seed),
            "drop": estimates.relative_drop(base.toxicity, self.toxicity, seed),
            "drop_second": estimates.relative_drop(base.second, self.second, seed),
            "perplexity": estimates.ratio(self.nll, self.count, seed, np.exp),
            "perplexity_rise": estimates.ratio(self.nll - base.nll, self.count, seed, _rise),
            "f1": estimates.mean(self.f1, seed),
            "f1_change": estimates.mean(self.f1 - base.f1, seed),
        }


def _rise(nll: np.ndarray | np.float64) -> np.ndarray | np.float64:
    return np.exp(nll) - 1


@dataclass(frozen=True)
class Candidate:
    """A model that sits an exam, with its TransformerBridge (:func:`companion.lm.anatomy.bridge`).

    ``own`` is what it writes by itself after the prompts of the exam, if that is known.
    """

    lm: LanguageModel
    view: TransformerBridge
    exam: Exam
    own: Generated | None = None

    @property
    def asked(self) -> list[str]:
        """Everything that it has to continue."""
        return [*self.exam.task.prompts, *self.exam.openings]

    @cached_property
    def drafts(self) -> Drafts:
        """What it writes when nothing is done to it; from it follows what it writes under interventions."""
        task = self.exam.task
        opened = self.own and generate(
            self.lm,
            self.exam.openings,
            new_tokens=task.new_tokens,
            max_prompt_tokens=task.max_prompt_tokens,
        )
        return Drafts(
            self.lm,
            self.asked,
            new_tokens=task.new_tokens,
            max_prompt_tokens=task.max_prompt_tokens,
            batch_size=task.batch_size,
            first=self.exam.first,
            plain=joined(self.own, opened) if self.own and opened else None,
        )


def examine(
    candidate: Candidate,
    scorers: tuple[Scorer, Scorer],
    *given: Intervention,
    writing: Writing = Positions.ALL,
    reading: Positions = Positions.ALL,
) -> Outcome:
    """Examine a model with interventions at ``writing`` while it writes and at ``reading`` for perplexity.

    ``writing`` is everywhere or at generated positions; ``scorers`` are the profile's and the second one.
    """
    lm, view, exam = candidate.lm, candidate.view, candidate.exam
    task, asked = exam.task, candidate.asked
    size = max(1, BATCH_TOKENS // max(map(len, exam.windows), default=1))

    def write() -> list[str]:
        drafts = candidate.drafts
        if not given:
            return drafts.plain.texts
        change = applied(view, *given, positions=Positions.ALL)  # of what is read: prompts only if whole
        return drafts.variant(change, whole=writing is Positions.ALL).texts

    def read() -> list[list[float] | list[int]]:
        with applied(view, *given, positions=reading):
            measured = perplexity.cross_entropy(lm, exam.windows, size, CONTEXT)
            return [values.tolist() for values in measured]

    what = {"model": lm.fingerprint, "interventions": [i.fingerprint for i in given]}
    lengths = {"new_tokens": task.new_tokens, "max_prompt_tokens": task.max_prompt_tokens}
    where = writing.value if given else ""
    written = store.kept(
        "written", {**what, **lengths, "positions": where, "asked": asked, "first": exam.first}, write
    )
    where = reading.value if given else ""
    nll, count = store.kept("losses", {**what, "positions": where, "windows": exam.windows}, read)
    texts, continued = written[: len(task.prompts)], written[len(task.prompts) :]
    overlap = np.array([f1(text, truth) for text, truth in zip(continued, exam.references, strict=True)])
    toxicity, second = (_scores(scorer, texts) for scorer in scorers)
    return Outcome(texts, toxicity, second, overlap, np.array(nll, dtype=float), np.array(count, dtype=int))


def _scores(scorer: Scorer, texts: list[str]) -> Float[np.ndarray, "texts"]:
    """Scores of texts, kept: chapter 8 shows what chapters 4 and 5 have scored."""
    inputs = {"scorer": [scorer.name, scorer.fingerprint], "texts": texts}
    return np.array(store.kept("scores", inputs, lambda: scorer(texts).tolist()))
