"""Choose threshold and strengths of the shipped adapters on dev rows, by a written rule.

The threshold (on the log odds of words) comes first, at the published strengths for microaggressions; the
strengths follow at that threshold. No evaluation row is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm import tqdm

from companion.data import public
from companion.marco.denoisers.protocol import Denoiser
from companion.marco.evaluation.scores import Judges, Verdict, pooled
from companion.marco.experts import corpus
from companion.marco.rewriting import choosing, masking, rewriter, words
from companion.marco.rewriting.choosing import Candidate
from companion.marco.rewriting.settings import Settings
from companion.marco.rewriting.words import Sentence

ROWS, HARMLESS, MOST_WORDS = 32, 64, 20  # sentences of each set, harmless ones, and their words
UNCHANGED, SIMILAR = 0.92, 0.86  # a little above what the evaluation asks for (.90 and .85)
CLOSE = 0.02  # drops this close are not told apart by so few sentences
FIRST = (4.25, 1.5, 2.5)  # expert, anti-expert, temperature: as published for microaggressions
THRESHOLDS = (0.8, 0.9, 1.0, 1.3)  # nats
STRENGTHS = ((2.0, 1.5, 2.5), (3.0, 3.0, 2.5), (4.25, 3.0, 2.5))
AMONG = (FIRST, (2.0, 1.5, 2.5), (4.25, 3.0, 2.5))  # what the experts may choose among
LOWER, LEAST, LOSS = (0.5, 0.9), (3.0, 4.0, 5.0), 0.1  # thresholds; nats to gain; of a nat of likelihood
NEAR = 0.002  # graded joint scores this close are not told apart

RULE = (
    f"Among the settings that keep a mean similarity of at least {SIMILAR} and a perplexity not above the "
    "originals' on toxic dev sentences, take those that lower toxicity most (relative drop, mean of the "
    f"three sets; less than {CLOSE:.0%} of the originals' toxicity apart is chance), and of those the one "
    "with the highest joint score. If none does both, drop the second condition, then the first. The "
    "cautious threshold, for text of any kind, is the lowest that masks no word in "
    f"{UNCHANGED:.0%} of harmless dev sentences."
)
CHOICE_RULE = (
    "Of the choices among several rewrites, those with the highest graded joint score on toxic dev sentences "
    f"(less than {NEAR} apart is chance); of these the one with the fewest strengths, then the highest score."
)


@dataclass(frozen=True)
class Trial:
    """Settings and what they did on the dev rows."""

    threshold: float
    alpha_expert: float
    alpha_anti: float
    temperature: float
    unchanged: float  # share of harmless sentences in which nothing is masked
    drop: dict[str, float]  # of mean toxicity, relative, by set
    similarity: float
    perplexity_ratio: float
    joint: float

    @property
    def mean_drop(self) -> float:
        """Mean of the sets' relative drops."""
        return float(np.mean(list(self.drop.values())))


@dataclass(frozen=True)
class Desk:
    """Dev rows with their divergences, which do not depend on the settings."""

    denoiser: Denoiser
    judges: Judges
    sets: dict[str, list[str]]
    harmless: list[str]
    divergence: dict[str, Float[np.ndarray, "_words"]]

    @classmethod
    def of(cls, denoiser: Denoiser, judges: Judges) -> Desk:
        """Read the public dev rows and find their divergences."""
        sets = {name: _some(rows.text.tolist(), ROWS) for name, rows in public.rewriting_sets("dev").items()}
        rows = corpus.balanced("dev")
        harmless = _some(rows[rows.label == 0].text.tolist(), HARMLESS)
        texts = [*harmless, *(text for some in sets.values() for text in some)]
        sentences = [words.split(denoiser, text) for text in texts]
        scores = masking.measured(denoiser, sentences, masking.ours(0.0))
        return cls(denoiser, judges, sets, harmless, dict(zip(texts, scores, strict=True)))

    def cautious(self) -> float:
        """The lowest threshold that masks nothing in ``UNCHANGED`` of the harmless sentences."""
        highest = [np.nanmax(self.divergence[text], initial=0.0) for text in self.harmless]
        return float(np.nextafter(np.quantile(highest, UNCHANGED, method="higher"), np.inf))

    def try_out(self, candidates: Sequence[Settings]) -> list[Trial]:
        """Rewrite the dev rows with each of some settings and score all rewrites together."""
        verdicts = {}
        for name, texts in self.sets.items():
            rewrites = [self.rewrite(texts, settings) for settings in tqdm(candidates, desc=name)]
            verdicts[name] = self.judges({"original": texts} | {str(i): t for i, t in enumerate(rewrites)})
        return [
            self._trial(settings, {name: (by["original"], by[str(i)]) for name, by in verdicts.items()})
            for i, settings in enumerate(candidates)
        ]

    def _trial(self, settings: Settings, verdicts: dict[str, tuple[Verdict, Verdict]]) -> Trial:
        """From the verdicts on originals and rewrites of each set."""
        masks = settings.masking
        ours = pooled([own for _, own in verdicts.values()])
        return Trial(
            masks.threshold,
            *(settings.alpha_expert, settings.alpha_anti, settings.temperature),
            unchanged=float(np.mean([not masking.choose(self.divergence[t], masks) for t in self.harmless])),
            drop={
                name: 1 - float(own.toxicity.mean() / original.toxicity.mean())
                for name, (original, own) in verdicts.items()
            },
            similarity=float(ours.similarity.mean()),
            perplexity_ratio=ours.perplexity_ratio().value,
            joint=float(np.mean([own.joint.mean() for _, own in verdicts.values()])),
        )

    def rewrite(self, texts: Sequence[str], settings: Settings) -> list[str]:
        """Rewrites with the divergences that are known."""
        sentences: list[Sentence] = [words.split(self.denoiser, text) for text in texts]
        chosen = [masking.choose(self.divergence[text], settings.masking) for text in texts]
        return rewriter.fill(self.denoiser, sentences, chosen, settings)


@dataclass(frozen=True)
class ChoiceTrial:
    """A choice among several rewrites and what it did on the dev rows."""

    threshold: float
    strengths: tuple[tuple[float, float, float], ...]
    least: float
    graded: float  # graded joint score on the toxic sentences
    drop: float  # of mean toxicity, relative
    similarity: float
    unchanged: float  # share of the harmless sentences


def choices(desk: Desk) -> list[ChoiceTrial]:
    """Every subset of ``AMONG`` at every threshold and least gain, on the desk's rows."""
    toxic = [text for some in desk.sets.values() for text in some]
    texts = [*toxic, *desk.harmless]
    trials = []
    for threshold in LOWER:
        ranked = _candidates(desk, texts, threshold)
        every = {"original": toxic}
        planned: list[tuple[tuple, float, list[str]]] = []
        for strengths in (some for k in (1, 2, 3) for some in combinations(AMONG, k)):
            for least in LEAST:
                new = [
                    choosing.best(text, [one for one, by in found if by & set(strengths)], least)
                    for text, found in zip(texts, ranked, strict=True)
                ]
                every[str(len(planned))] = new[: len(toxic)]
                planned.append((strengths, least, new[len(toxic) :]))
        verdicts = desk.judges(every)
        before = verdicts["original"].toxicity.mean()
        for i, (strengths, least, left) in enumerate(planned):
            ours = verdicts[str(i)]
            trials.append(
                ChoiceTrial(
                    threshold,
                    strengths,
                    least,
                    graded=round(float(ours.graded.mean()), 5),
                    drop=round(1 - float(ours.toxicity.mean() / before), 5),
                    similarity=round(float(ours.similarity.mean()), 5),
                    unchanged=round(
                        float(np.mean([a == b for a, b in zip(left, desk.harmless, strict=True)])), 5
                    ),
                )
            )
    return trials


def _candidates(
    desk: Desk, texts: Sequence[str], threshold: float
) -> list[list[tuple[Candidate, set[tuple[float, float, float]]]]]:
    """Candidates of each text, best first, and by which strengths each was written."""
    masks = masking.ours(threshold)
    sentences = [words.split(desk.denoiser, text) for text in texts]
    blanks = [masking.choose(desk.divergence[text], masks) for text in texts]
    made = {
        strengths: rewriter.fill(desk.denoiser, sentences, blanks, Settings(masks, *strengths))
        for strengths in tqdm(AMONG, desc=f"candidates, threshold {threshold}")
    }
    by_text = list(zip(*made.values(), strict=True))
    ranked = choosing.candidates(desk.denoiser, sentences, blanks, by_text, LOSS)
    return [
        [(one, {s for s, text in zip(made, some, strict=True) if text == one.text}) for one in found]
        for some, found in zip(by_text, ranked, strict=True)
    ]


def best(trials: Sequence[Trial]) -> Trial:
    """The trial that ``RULE`` chooses."""
    similar = [trial for trial in trials if trial.similarity >= SIMILAR]
    fluent = [trial for trial in similar if trial.perplexity_ratio <= 1]
    eligible = fluent or similar or trials
    most = max(trial.mean_drop for trial in eligible)
    return max((t for t in eligible if t.mean_drop >= most - CLOSE), key=lambda trial: trial.joint)


def choose(denoiser: Denoiser, judges: Judges, target: Path) -> Trial:
    """Search and write ``target``: the rule, what was chosen, and every trial."""
    desk = Desk.of(denoiser, judges)
    first = Settings(masking.ours(0.0), *FIRST)
    trials = desk.try_out([replace(first, masking=masking.ours(t)) for t in THRESHOLDS])
    masks = masking.ours(best(trials).threshold)
    trials += desk.try_out([Settings(masks, *strengths) for strengths in STRENGTHS])
    winner = best(trials)
    chosen = {
        name: getattr(winner, name) for name in ("threshold", "alpha_expert", "alpha_anti", "temperature")
    }
    rows = {name: len(texts) for name, texts in desk.sets.items()} | {"harmless": len(desk.harmless)}
    about = {
        "rule": RULE,
        "dev_rows": rows,
        "chosen": chosen,
        "cautious": desk.cautious(),
        "trials": [asdict(trial) for trial in trials],
        **choice(desk),
    }
    target.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return winner


def choice(desk: Desk) -> dict[str, Any]:
    """What ``settings.json`` says of the choice: what ``CHOICE_RULE`` takes, and all that was tried."""
    tried = choices(desk)
    winner = best_choice(tried)
    among = {"threshold": winner.threshold, "strengths": winner.strengths, "least": winner.least}
    return {
        "choice_rule": CHOICE_RULE,
        "choice": {**among, "loss": LOSS},
        "choices": [asdict(trial) for trial in tried],
    }


def best_choice(tried: Sequence[ChoiceTrial]) -> ChoiceTrial:
    """The trial that ``CHOICE_RULE`` takes."""
    most = max(trial.graded for trial in tried)
    near = [trial for trial in tried if trial.graded >= most - NEAR]
    return min(near, key=lambda trial: (len(trial.strengths), -trial.graded))


def _some(texts: list[str], limit: int) -> list[str]:
    """``limit`` texts spread evenly over those that are not long."""
    short = [text for text in texts if len(text.split()) <= MOST_WORDS]
    spread = np.linspace(0, len(short) - 1, min(limit, len(short))).round().astype(int)
    return [short[i] for i in np.unique(spread)]


def trials(folder: Path | None) -> pd.DataFrame:
    """The trials behind the settings of a folder of adapters; empty if the settings were not chosen so."""
    path = (folder or Path()) / "settings.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["trials"] if path.is_file() else []
    return pd.DataFrame(rows, columns=[field.name for field in fields(Trial)])
