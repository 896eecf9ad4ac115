"""Choose threshold and strengths of the shipped adapters on dev rows, by a written rule.

The threshold (on the log odds of words) comes first, at the published strengths for microaggressions; the
strengths follow at that threshold. No evaluation row is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm import tqdm

from companion.data import public
from companion.marco.denoisers.protocol import Denoiser
from companion.marco.evaluation.scores import Judges, Verdict, pooled
from companion.marco.experts import corpus
from companion.marco.rewriting import masking, rewriter, words
from companion.marco.rewriting.settings import Settings
from companion.marco.rewriting.words import Sentence

ROWS, HARMLESS, MOST_WORDS = 32, 64, 20  # sentences of each set, harmless ones, and their words
UNCHANGED, SIMILAR = 0.92, 0.86  # a little above what the evaluation asks for (.90 and .85)
CLOSE = 0.02  # drops this close are not told apart by so few sentences
FIRST = (4.25, 1.5, 2.5)  # expert, anti-expert, temperature: as published for microaggressions
THRESHOLDS = (0.8, 0.9, 1.0, 1.3)  # nats
STRENGTHS = ((2.0, 1.5, 2.5), (3.0, 3.0, 2.5), (4.25, 3.0, 2.5))

RULE = (
    f"Among the settings that keep a mean similarity of at least {SIMILAR} and a perplexity not above the "
    "originals' on toxic dev sentences, take those that lower toxicity most (relative drop, mean of the "
    f"three sets; less than {CLOSE:.0%} of the originals' toxicity apart is chance), and of those the one "
    "with the highest joint score. If none does both, drop the second condition, then the first. The "
    "cautious threshold, for text of any kind, is the lowest that masks no word in "
    f"{UNCHANGED:.0%} of harmless dev sentences."
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
    }
    target.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return winner


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
