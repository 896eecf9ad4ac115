"""Find the words that expert and anti-expert disagree on.

For every word the two read the sentence with that word blanked, write it up to the blank, and say
what comes next. The divergence of the two distributions is the word's score: Hallinan et al.
(2023), section 2.1. A divergence does not look at the word that stands there; :func:`log_odds`, ours,
does. ``companion.marco.denoiser`` scores all words of many sentences in one go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.marco.denoiser import ANTI_EXPERT, EXPERT, Denoiser
from companion.marco.words import Sentence


class Divergence(Protocol):
    """A score of what expert and anti-expert expect at a word, given as logits, row by row."""

    def __call__(self, a: Float[Tensor, "*rows vocab"], b: Float[Tensor, "*rows vocab"], word: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """Return the score of each pair of rows, in nats; ``word`` is the first token of the word that stands there."""
        ...


def jensen_shannon(a: Float[Tensor, "*rows vocab"], b: Float[Tensor, "*rows vocab"], word: Int[Tensor, "*rows"] | None = None) -> Float[Tensor, "*rows"]:
    """Jensen–Shannon divergence of two distributions given as logits, in nats: 0 to ln 2."""
    log_a, log_b = a.float().log_softmax(-1), b.float().log_softmax(-1)
    log_m = torch.logaddexp(log_a, log_b) - np.log(2)
    return 0.5 * ((log_a.exp() * (log_a - log_m)).sum(-1) + (log_b.exp() * (log_b - log_m)).sum(-1))


def half_jeffreys(a: Float[Tensor, "*rows vocab"], b: Float[Tensor, "*rows vocab"], word: Int[Tensor, "*rows"] | None = None) -> Float[Tensor, "*rows"]:
    """½ KL(a‖b) + ½ KL(b‖a), in nats, without bound: what the published code computes under the name of Jensen–Shannon."""
    log_a, log_b = a.float().log_softmax(-1), b.float().log_softmax(-1)
    return 0.5 * ((log_a.exp() - log_b.exp()) * (log_a - log_b)).sum(-1)


def log_odds(a: Float[Tensor, "*rows vocab"], b: Float[Tensor, "*rows vocab"], word: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """How much likelier the anti-expert finds the word that stands there than the expert does: log b(word) − log a(word), in nats, of either sign.

    Ours. An anti-expert has seen toxic sentences only, so it expects an insult in any blank of a sentence
    that has none yet: the two distributions differ at harmless words as well, and their divergence with them.
    """
    log_a, log_b = a.float().log_softmax(-1), b.float().log_softmax(-1)
    return (log_b - log_a).gather(-1, word[..., None])[..., 0]


@dataclass(frozen=True)
class Masking:
    """How to choose words.

    Parameters
    ----------
    threshold
        A word is masked if its score reaches this.
    relative
        Divide by the mean over the sentence's words first, as published: then something is masked
        in nearly every sentence, however harmless.
    divergence
        :func:`jensen_shannon`, :func:`half_jeffreys` or :func:`log_odds`.
    published_index
        Map positions back over dropped punctuation as the published code does, which goes wrong
        where two marks stand together (known defect 1).
    """

    threshold: float
    relative: bool = False
    divergence: Divergence = jensen_shannon
    published_index: bool = False


def divergences(denoiser: Denoiser, sentences: Sequence[Sentence], measure: Divergence = jensen_shannon) -> list[Float[np.ndarray, "words"]]:
    """Score of every word by what expert and anti-expert expect there; NaN where a word is not to be masked."""
    sources, targets, where, first = [], [], [], []
    for i, sentence in enumerate(sentences):
        for j, word in enumerate(sentence.words):
            if word.maskable:
                sources.append(sentence.masked([j], denoiser.mask_id))
                targets.append(sentence.ids[: word.tokens.start])
                where.append((i, j))
                first.append(sentence.ids[word.tokens.start])
    found = [np.full(len(sentence.words), np.nan) for sentence in sentences]
    done = 0
    for expert, anti in denoiser.next_logits((EXPERT, ANTI_EXPERT), sources, targets):
        some = slice(done, done := done + len(expert))
        for (i, j), value in zip(where[some], measure(expert, anti, torch.tensor(first[some], device=expert.device)).tolist(), strict=True):
            found[i][j] = value
    return found


def choose(scores: Float[np.ndarray, "words"], masking: Masking) -> list[int]:
    """Indices of the words to mask."""
    kept = np.flatnonzero(~np.isnan(scores))
    if len(kept) == 0:
        return []
    values = scores[kept] / scores[kept].mean() if masking.relative else scores[kept]
    chosen = np.flatnonzero(values >= masking.threshold)
    if masking.published_index:
        dropped = np.flatnonzero(np.isnan(scores))
        return sorted({min(int(j + (dropped <= j).sum()), len(scores) - 1) for j in chosen})
    return kept[chosen].tolist()
