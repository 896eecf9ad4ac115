"""Scores of rewrites: one number per sentence and quantity, so that methods compare sentence by sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float

from companion import toxicity
from companion.lm import models
from companion.lm.models import LanguageModel
from companion.marco.evaluation import quality
from companion.metrics import estimates, perplexity
from companion.metrics.estimates import Estimate
from companion.profiles import Profile
from companion.toxicity import Scorer

ALLOWED = 1.25  # a rewrite counts as fluent if it is at most this much more perplexing than its original


@dataclass(frozen=True)
class Verdict:
    """Scores of some rewrites, one number per sentence; ``base_nll`` and ``base_count`` are their originals'."""

    texts: list[str]
    toxicity: Float[np.ndarray, "texts"]
    lexical: Float[np.ndarray, "texts"]
    similarity: Float[np.ndarray, "texts"]
    bertscore: Float[np.ndarray, "texts"]
    bleu: Float[np.ndarray, "texts"]
    nll: Float[np.ndarray, "texts"]
    count: Float[np.ndarray, "texts"]
    base_nll: Float[np.ndarray, "texts"]
    base_count: Float[np.ndarray, "texts"]

    @property
    def fluent(self) -> Float[np.ndarray, "texts"]:
        """1 where the judge finds the text at most ``ALLOWED`` times as perplexing as its original; 0 for an empty one."""
        some = self.count > 0
        own = np.divide(self.nll, self.count, out=np.full(len(some), np.inf), where=some)
        base = np.divide(
            self.base_nll, self.base_count, out=np.full(len(some), np.inf), where=self.base_count > 0
        )
        return (own <= base + np.log(ALLOWED)).astype(float) * some

    @property
    def joint(self) -> Float[np.ndarray, "texts"]:
        """Joint score per sentence (:func:`companion.marco.evaluation.quality.joint`)."""
        return quality.joint(self.toxicity, self.similarity, self.fluent)

    def summary(self, original: Verdict, seed: int = 0) -> dict[str, Estimate]:
        """Each score with its interval, and toxicity and perplexity against the originals, sentences paired."""
        return {
            "toxicity": estimates.mean(self.toxicity, seed),
            "drop": estimates.relative_drop(original.toxicity, self.toxicity, seed),
            "lexical": estimates.mean(self.lexical, seed),
            "lexical_drop": estimates.relative_drop(original.lexical, self.lexical, seed),
            "similarity": estimates.mean(self.similarity, seed),
            "bertscore": estimates.mean(self.bertscore, seed),
            "bleu": estimates.mean(self.bleu, seed),
            "perplexity": estimates.ratio(self.nll, self.count, seed, np.exp),
            "perplexity_ratio": self.perplexity_ratio(seed),
            "fluent": estimates.mean(self.fluent, seed),
            "joint": estimates.mean(self.joint, seed),
            "changed": estimates.mean(
                [a != b for a, b in zip(self.texts, original.texts, strict=True)], seed
            ),
        }

    def perplexity_ratio(self, seed: int = 0) -> Estimate:
        """Perplexity relative to that of the same sentences' originals. Empty rewrites have none; ``fluent`` counts them."""
        some = self.count > 0
        own, count, base, base_count = (
            values[some] for values in (self.nll, self.count, self.base_nll, self.base_count)
        )
        if not some.any():
            return Estimate(np.nan, np.nan, np.nan, 0)
        return estimates.bootstrap(
            lambda rows: float(
                np.exp(own[rows].sum() / count[rows].sum() - base[rows].sum() / base_count[rows].sum())
            ),
            len(own),
            seed,
        )


@dataclass(frozen=True)
class Judges:
    """Who scores: the profile's toxicity scorer, the lexical one, the sentence encoder and the language model for fluency."""

    scorer: Scorer
    lexical: Scorer
    similarity: quality.Similarity
    bertscore: quality.TokenSimilarity
    fluency: LanguageModel

    @classmethod
    def of(cls, profile: Profile) -> Judges:
        """The judges of a profile."""
        scorers = toxicity.load(profile.scorer), toxicity.load("lexical")
        return cls(
            *scorers,
            quality.Similarity(),
            quality.TokenSimilarity(profile.encoder),
            models.load(profile.judge),
        )

    def __call__(self, found: dict[str, list[str]]) -> dict[str, Verdict]:
        """Score what each way made of the texts under ``original``; a text that several ways share is read once."""
        originals, n = found["original"], len(found["original"])
        texts = [text for some in found.values() for text in some]
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        score, lexical = (
            scorer(list(place))[[place[text] for text in texts]] for scorer in (self.scorer, self.lexical)
        )
        similarity, bertscore = (
            measure(texts, originals * len(found)) for measure in (self.similarity, self.bertscore)
        )
        nll, count = perplexity.nll(self.fluency, texts)
        first = n * list(found).index("original")
        base = {"base_nll": nll[first : first + n], "base_count": count[first : first + n]}
        verdicts = {}
        for i, (name, some) in enumerate(found.items()):
            rows = slice(i * n, (i + 1) * n)
            own = {
                "toxicity": score[rows],
                "lexical": lexical[rows],
                "similarity": similarity[rows],
                "bertscore": bertscore[rows],
                "nll": nll[rows],
                "count": count[rows],
            }
            verdicts[name] = Verdict(some, **own, **base, bleu=quality.bleu(some, originals))
        return verdicts


def pooled(verdicts: Sequence[Verdict]) -> Verdict:
    """The sentences of several sets as one."""
    names = [field.name for field in fields(Verdict) if field.name != "texts"]
    return Verdict(
        [text for v in verdicts for text in v.texts],
        **{name: np.concatenate([getattr(v, name) for v in verdicts]) for name in names},
    )
