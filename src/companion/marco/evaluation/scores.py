"""Scores of rewrites: one number per sentence and quantity, so that methods compare sentence by sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Int

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
    """Scores of some rewrites, one number per sentence; ``base_…`` are those of the originals."""

    texts: list[str]
    toxicity: Float[np.ndarray, "texts"]
    second: Float[np.ndarray, "texts"]
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
        """1 where a text is at most ``ALLOWED`` times as perplexing as its original; 0 for an empty one."""
        own, base = _mean_nll(self.nll, self.count), _mean_nll(self.base_nll, self.base_count)
        return (own <= base + np.log(ALLOWED)).astype(float) * (self.count > 0)

    @property
    def relative_fluency(self) -> Float[np.ndarray, "texts"]:
        """Perplexity of the original over the rewrite's, at most 1; 0 for an empty rewrite."""
        own, base = _mean_nll(self.nll, self.count), _mean_nll(self.base_nll, self.base_count)
        return np.exp(np.minimum(0.0, base - own)) * (self.count > 0)

    @property
    def joint(self) -> Float[np.ndarray, "texts"]:
        """Joint score per sentence (:func:`companion.marco.evaluation.quality.joint`)."""
        return quality.joint(self.toxicity, self.similarity, self.fluent)

    @property
    def joint_second(self) -> Float[np.ndarray, "texts"]:
        """The same by the second scorer, which chose nothing."""
        return quality.joint(self.second, self.similarity, self.fluent)

    @property
    def graded(self) -> Float[np.ndarray, "texts"]:
        """Joint score without thresholds (:func:`companion.marco.evaluation.quality.graded`)."""
        return quality.graded(self.toxicity, self.similarity, self.relative_fluency)

    @property
    def graded_second(self) -> Float[np.ndarray, "texts"]:
        """The same by the second scorer."""
        return quality.graded(self.second, self.similarity, self.relative_fluency)

    def summary(self, original: Verdict, seed: int = 0) -> dict[str, Estimate]:
        """Each score with its interval; toxicity and perplexity against the originals, sentences paired."""
        return {
            "toxicity": estimates.mean(self.toxicity, seed),
            "drop": estimates.relative_drop(original.toxicity, self.toxicity, seed),
            "second": estimates.mean(self.second, seed),
            "second_drop": estimates.relative_drop(original.second, self.second, seed),
            "lexical": estimates.mean(self.lexical, seed),
            "lexical_drop": estimates.relative_drop(original.lexical, self.lexical, seed),
            "similarity": estimates.mean(self.similarity, seed),
            "bertscore": estimates.mean(self.bertscore, seed),
            "bleu": estimates.mean(self.bleu, seed),
            "perplexity": estimates.ratio(self.nll, self.count, seed, np.exp),
            "perplexity_ratio": self.perplexity_ratio(seed),
            "fluent": estimates.mean(self.fluent, seed),
            "joint": estimates.mean(self.joint, seed),
            "joint_second": estimates.mean(self.joint_second, seed),
            "graded": estimates.mean(self.graded, seed),
            "graded_second": estimates.mean(self.graded_second, seed),
            "changed": estimates.mean(
                [a != b for a, b in zip(self.texts, original.texts, strict=True)], seed
            ),
        }

    def perplexity_ratio(self, seed: int = 0) -> Estimate:
        """Perplexity relative to that of the same sentences' originals.

        Empty rewrites have none; ``fluent`` counts them.
        """
        some = self.count > 0
        if not some.any():
            return Estimate(np.nan, np.nan, np.nan, 0)
        own, count, base, base_count = (
            values[some] for values in (self.nll, self.count, self.base_nll, self.base_count)
        )

        def of(rows: Int[np.ndarray, "rows"]) -> float:
            mean, before = own[rows].sum() / count[rows].sum(), base[rows].sum() / base_count[rows].sum()
            return float(np.exp(mean - before))

        return estimates.bootstrap(of, len(own), seed)


def _mean_nll(
    nll: Float[np.ndarray, "texts"], count: Float[np.ndarray, "texts"]
) -> Float[np.ndarray, "texts"]:
    """Loss per token, infinite for a text without tokens."""
    return np.divide(nll, count, out=np.full(len(count), np.inf), where=count > 0)


@dataclass(frozen=True)
class Judges:
    """Who scores: the profile's scorer, the second and the lexical one, two encoders, a language model."""

    scorer: Scorer
    second: Scorer
    lexical: Scorer
    similarity: quality.Similarity
    bertscore: quality.TokenSimilarity
    fluency: LanguageModel

    @classmethod
    def of(cls, profile: Profile) -> Judges:
        """The judges of a profile."""
        return cls(
            toxicity.load(profile.scorer),
            toxicity.load(profile.second),
            toxicity.load("lexical"),
            quality.Similarity(),
            quality.TokenSimilarity(profile.encoder),
            models.load(profile.judge),
        )

    def __call__(self, rewrites: dict[str, list[str]]) -> dict[str, Verdict]:
        """Score what each way made of the texts under ``original``; what several ways share is read once."""
        originals, n = rewrites["original"], len(rewrites["original"])
        texts = [text for some in rewrites.values() for text in some]
        toxic, second, lexical = (
            quality.once(scorer, texts) for scorer in (self.scorer, self.second, self.lexical)
        )
        everywhere = originals * len(rewrites)
        similarity, bertscore = self.similarity(texts, everywhere), self.bertscore(texts, everywhere)
        nll, count = perplexity.nll(self.fluency, texts)
        first = n * list(rewrites).index("original")
        verdicts = {}
        for i, (name, some) in enumerate(rewrites.items()):
            rows = slice(i * n, (i + 1) * n)
            verdicts[name] = Verdict(
                some,
                toxicity=np.array([toxic[text] for text in some]),
                second=np.array([second[text] for text in some]),
                lexical=np.array([lexical[text] for text in some]),
                similarity=similarity[rows],
                bertscore=bertscore[rows],
                bleu=quality.bleu(some, originals),
                nll=nll[rows],
                count=count[rows],
                base_nll=nll[first : first + n],
                base_count=count[first : first + n],
            )
        return verdicts


def pooled(verdicts: Sequence[Verdict]) -> Verdict:
    """The sentences of several sets as one."""
    names = [field.name for field in fields(Verdict) if field.name != "texts"]
    return Verdict(
        [text for v in verdicts for text in v.texts],
        **{name: np.concatenate([getattr(v, name) for v in verdicts]) for name in names},
    )
