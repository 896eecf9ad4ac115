"""Ways to rewrite the same sentences, each with what it costs in meaning and fluency.

What a method wrote is kept in the store, so that an interrupted evaluation goes on where it stopped
and chapters share their rewrites. Scores are computed from the texts, one number per sentence.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from companion import artifacts, generation, metrics, models, toxicity
from companion.marco import baselines, denoiser, masking, quality, rewriting, words
from companion.marco.adapters import Experts
from companion.marco.rewriting import Rewrite, Rewriter, Settings
from companion.metrics import Estimate
from companion.models import LanguageModel
from companion.profiles import Profile
from companion.toxicity import Scorer

ALLOWED = 1.25  # a rewrite counts as fluent if it is at most this much more perplexing than its original
TOGETHER = 64  # sentences between two progress marks in the store
CODE = (denoiser, masking, rewriting, words)


# --- methods ---------------------------------------------------------------------------------------


def marco(experts: Experts, texts: Sequence[str], settings: Settings | None = None) -> list[Rewrite]:
    """MaRCo's rewrites with their divergences and masks, from the store or made now."""
    settings = settings or experts.settings
    rewriter = Rewriter(experts.denoiser, settings)

    def make(some: list[str]) -> list[dict]:
        found = rewriter(some)
        return [{"text": r.text, "masked": r.masked, "divergence": [None if np.isnan(d) else float(d) for d in r.divergence]} for r in found]

    rows = _kept({"method": "marco", "experts": experts.fingerprint, "settings": _plain(settings)}, texts, make, CODE)
    sentences = [words.split(experts.denoiser, text) for text in texts]
    return [
        Rewrite(text, row["text"], sentence, np.array([np.nan if d is None else d for d in row["divergence"]], dtype=float), row["masked"])
        for text, sentence, row in zip(texts, sentences, rows, strict=True)
    ]


def filled(experts: Experts, texts: Sequence[str], masked: Sequence[Sequence[int]], settings: Settings, cast: tuple[str, str, str] = denoiser.ROLES) -> list[str]:
    """Given blanks filled with given strengths, from the store or now."""

    def make(some: list[tuple[str, list[int]]]) -> list[str]:
        sentences = [words.split(experts.denoiser, text) for text, _ in some]
        return rewriting.fill(experts.denoiser, sentences, [chosen for _, chosen in some], settings, cast=cast)

    key = {"method": "fill", "experts": experts.fingerprint, "settings": _plain(settings), "cast": cast}
    return _kept(key, list(zip(texts, masked, strict=True)), make, CODE)


def asked(instruct: LanguageModel, texts: Sequence[str]) -> list[str]:
    """The chat model's polite versions, from the store or now."""
    key = {"method": "ask", "model": instruct.fingerprint}
    return _kept(key, texts, lambda some: baselines.ask(instruct, some), (baselines, generation))


def ways(experts: Experts, instruct: LanguageModel, texts: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Every method and ablation on some sentences, by name: originals, baselines, MaRCo, MaRCo without a part."""
    ours, settings = marco(experts, texts), experts.settings
    masked = [rewrite.masked for rewrite in ours]
    alone = replace(settings, alpha_base=0.0, alpha_expert=1.0, alpha_anti=0.0)
    return {
        "original": list(texts),
        "delete": baselines.delete(experts.denoiser, texts),
        "refill": filled(experts, texts, masked, alone, (denoiser.BASE,) * 3),
        "ask": asked(instruct, texts),
        "MaRCo": [rewrite.text for rewrite in ours],
        "no anti-expert": filled(experts, texts, masked, replace(settings, alpha_anti=0.0)),
        "expert only": filled(experts, texts, masked, alone),
        "random masks": filled(experts, texts, shuffled(ours, seed), settings),
    }


def shuffled(rewrites: Sequence[Rewrite], seed: int) -> list[list[int]]:
    """As many masks per sentence, on words drawn at random among those that may be masked."""
    found = []
    for i, rewrite in enumerate(rewrites):
        maskable = [j for j, word in enumerate(rewrite.sentence.words) if word.maskable]
        found.append(sorted(random.Random(f"{seed} {i}").sample(maskable, len(rewrite.masked))))
    return found


def _plain(settings: Settings) -> dict:
    found = asdict(settings)
    found["masking"]["divergence"] = settings.masking.divergence.__name__
    return found


def _kept(key: dict, inputs: Sequence, make: Callable[[list], list], code: tuple) -> list:
    """``make`` of all inputs, some at a time, from the store or now."""
    inputs = list(inputs)

    def build(folder: Path) -> None:
        state = folder / "so_far.json"
        done = json.loads(state.read_text()) if state.exists() else []
        for start in range(len(done), len(inputs), TOGETHER):
            done += make(inputs[start : start + TOGETHER])
            fresh = state.with_suffix(".new")
            fresh.write_text(json.dumps(done))
            fresh.replace(state)
        (folder / "rewrites.json").write_text(json.dumps(done))
        state.unlink(missing_ok=True)

    folder = artifacts.artifact("rewrites", {**key, "texts": artifacts.key_of({"texts": inputs})}, build, code=code)
    return json.loads((folder / "rewrites.json").read_text())


# --- scores ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Scores of some rewrites, one number per sentence; ``base_nll`` and ``base_count`` are their originals'."""

    texts: list[str]
    toxicity: Float[np.ndarray, "texts"]
    lexical: Float[np.ndarray, "texts"]
    similarity: Float[np.ndarray, "texts"]
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
        base = np.divide(self.base_nll, self.base_count, out=np.full(len(some), np.inf), where=self.base_count > 0)
        return (own <= base + np.log(ALLOWED)).astype(float) * some

    @property
    def joint(self) -> Float[np.ndarray, "texts"]:
        """Joint score per sentence (:func:`companion.marco.quality.joint`)."""
        return quality.joint(self.toxicity, self.similarity, self.fluent)

    def summary(self, original: Verdict, seed: int = 0) -> dict[str, Estimate]:
        """Each score with its interval, and toxicity and perplexity against the originals, sentences paired."""
        return {
            "toxicity": metrics.mean(self.toxicity, seed),
            "drop": metrics.relative_drop(original.toxicity, self.toxicity, seed),
            "lexical": metrics.mean(self.lexical, seed),
            "lexical_drop": metrics.relative_drop(original.lexical, self.lexical, seed),
            "similarity": metrics.mean(self.similarity, seed),
            "bleu": metrics.mean(self.bleu, seed),
            "perplexity": metrics.ratio(self.nll, self.count, seed, np.exp),
            "perplexity_ratio": self._against_originals(seed),
            "fluent": metrics.mean(self.fluent, seed),
            "joint": metrics.mean(self.joint, seed),
            "changed": metrics.mean([a != b for a, b in zip(self.texts, original.texts, strict=True)], seed),
        }

    def _against_originals(self, seed: int) -> Estimate:
        def of(rows: np.ndarray) -> float:
            own = self.nll[rows].sum() / self.count[rows].sum()
            return float(np.exp(own - self.base_nll[rows].sum() / self.base_count[rows].sum()))

        return metrics.bootstrap(of, len(self.nll), seed)


@dataclass(frozen=True)
class Judges:
    """Who scores: the profile's toxicity scorer, the lexical one, the sentence encoder and the language model for fluency."""

    scorer: Scorer
    lexical: Scorer
    similarity: quality.Similarity
    fluency: LanguageModel

    @classmethod
    def of(cls, profile: Profile) -> Judges:
        return cls(toxicity.load(profile.scorer), toxicity.load("lexical"), quality.Similarity(), models.load(profile.judge))

    def __call__(self, found: dict[str, list[str]]) -> dict[str, Verdict]:
        """Score what each way made of the texts under ``original``; a text that several ways share is read once."""
        originals, n = found["original"], len(found["original"])
        texts = [text for some in found.values() for text in some]
        score, lexical = self.scorer(texts), self.lexical(texts)
        similarity = self.similarity(texts, originals * len(found))
        nll, count = quality.nll(self.fluency, texts)
        verdicts = {}
        for i, (name, some) in enumerate(found.items()):
            rows = slice(i * n, (i + 1) * n)
            own = {"toxicity": score[rows], "lexical": lexical[rows], "similarity": similarity[rows], "nll": nll[rows], "count": count[rows]}
            verdicts[name] = Verdict(some, **own, bleu=quality.bleu(some, originals), base_nll=nll[:n], base_count=count[:n])
        return verdicts
