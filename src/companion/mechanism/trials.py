"""A sweep: named interventions, each examined on the base model or on the DPO model.

What the trials of the papers are, :mod:`companion.mechanism.methods` lists.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tqdm import tqdm
from transformer_lens import TransformerBridge

from companion.lm import processes
from companion.mechanism.exam import Candidate, Exam, Outcome, Writing, examine
from companion.mechanism.interventions import Intervention, Positions
from companion.mechanism.study import Study, begin
from companion.profiles import Profile


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
    writing: Writing = field(default=Positions.ALL, kw_only=True)
    reading: Positions = field(default=Positions.ALL, kw_only=True)
    control_of: tuple[str, ...] = field(default=(), kw_only=True)
    published: tuple[str, str] | None = field(default=None, kw_only=True)


BASE = Trial("base", "base", "reference", published=("none", "yang2024v1"))
DPO = Trial("dpo", "DPO", "reference", on_tuned=True, published=("DPO", "yang2024v1"))


@dataclass(frozen=True)
class Sweep:
    """Both models of a study, ready for the exam. It wraps them in place: begin it last."""

    study: Study
    base: Candidate
    tuned: Candidate

    @classmethod
    def of(cls, study: Study) -> Sweep:
        """Both models through TransformerLens, with the exam of the study's profile."""
        return cls(study, *_candidates(study, Exam.of(study.profile, study.base.lm), study.views()))

    def run(self, trials: Iterable[Trial]) -> dict[str, Outcome]:
        """Outcomes by key, one trial after the other; an interrupted list goes on where it stopped.

        Several processes (:mod:`companion.lm.processes`) deal the trials out.
        """
        outcomes, chosen = {}, list(trials)
        for failure in processes.spread(_examiner, (self.study.profile, self.base.exam), chosen):
            warnings.warn(failure, stacklevel=2)
        for trial in (bar := tqdm(chosen, unit="trial")):
            bar.set_postfix_str(trial.label)
            outcomes[trial.key] = self.examined(trial)
        return outcomes

    def examined(self, trial: Trial) -> Outcome:
        """The outcome of one trial."""
        candidate = self.tuned if trial.on_tuned else self.base
        return examine(
            candidate, self.study.scorers, *trial.given, writing=trial.writing, reading=trial.reading
        )

    def run_on_more_prompts(self, trials: Iterable[Trial]) -> dict[str, Outcome]:
        """The same with toxicity on all evaluation prompts, the sweep's first; the rest is the sweep's.

        Verdicts of editions rest on them. A profile that is not ``complete`` has the sweep's only.
        """
        chosen = list(trials)
        outcomes, rest = self.run(chosen), self.base.exam.rest(self.study.profile)
        if not self.study.profile.complete or not rest.task.prompts:
            return outcomes
        views = self.base.view, self.tuned.view
        more = Sweep(self.study, *_candidates(self.study, rest, views)).run(chosen)
        return {key: outcome.with_more_prompts(more[key]) for key, outcome in outcomes.items()}


def _examiner(profile: Profile, exam: Exam) -> Callable[[Trial], Outcome]:
    """In a process of its own: both models from the store, for the same exam."""
    study = begin(profile)
    return Sweep(study, *_candidates(study, exam, study.views())).examined


def _candidates(
    study: Study, exam: Exam, views: tuple[TransformerBridge, TransformerBridge]
) -> list[Candidate]:
    """Both models; what they write by themselves after evaluation prompts is known."""
    row = {prompt: i for i, prompt in enumerate(study.task.prompts)}
    rows = [row[prompt] for prompt in exam.task.prompts if prompt in row]
    known = len(rows) == len(exam.task.prompts)  # not so of dev prompts
    return [
        Candidate(subject.lm, view, exam, subject.text.of(rows) if known else None)
        for subject, view in zip((study.base, study.tuned), views, strict=True)
    ]


def control(trial: Trial, trials: Iterable[Trial], outcomes: Mapping[str, Outcome]) -> Outcome | None:
    """The same done to other neurons or along another direction; None if nobody tried."""
    keys = [t.key for t in trials if trial.key in t.control_of and t.family == trial.family]
    return outcomes[keys[0]] if keys else None
