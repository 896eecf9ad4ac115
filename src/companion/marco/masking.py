"""Find the words that expert and anti-expert disagree on.

For every word the two read the sentence with that word blanked, write it up to the blank, and say
what comes next. The divergence of the two distributions is the word's score. Hallinan et al.
(2023), section 2.1; ``companion.marco.denoiser`` scores all words of many sentences in one go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from companion.marco.denoiser import ANTI_EXPERT, EXPERT, Denoiser
from companion.marco.words import Sentence


class Divergence(Protocol):
    """A distance of two distributions given as logits, row by row."""

    def __call__(self, a: Float[Tensor, "*rows vocab"], b: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows"]:
        """Return the distance of each pair of rows, in nats."""
        ...


def jensen_shannon(a: Float[Tensor, "*rows vocab"], b: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows"]:
    """Jensen–Shannon divergence of two distributions given as logits, in nats: 0 to ln 2."""
    log_a, log_b = a.float().log_softmax(-1), b.float().log_softmax(-1)
    log_m = torch.logaddexp(log_a, log_b) - np.log(2)
    return 0.5 * ((log_a.exp() * (log_a - log_m)).sum(-1) + (log_b.exp() * (log_b - log_m)).sum(-1))


def half_jeffreys(a: Float[Tensor, "*rows vocab"], b: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows"]:
    """½ KL(a‖b) + ½ KL(b‖a), in nats, without bound: what the published code computes under the name of Jensen–Shannon."""
    log_a, log_b = a.float().log_softmax(-1), b.float().log_softmax(-1)
    return 0.5 * ((log_a.exp() - log_b.exp()) * (log_a - log_b)).sum(-1)


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
        :func:`jensen_shannon` or :func:`half_jeffreys`.
    published_index
        Map positions back over dropped punctuation as the published code does, which goes wrong
        where two marks stand together (known defect 1).
    """

    threshold: float
    relative: bool = False
    divergence: Divergence = jensen_shannon
    published_index: bool = False


def divergences(denoiser: Denoiser, sentences: Sequence[Sentence], measure: Divergence = jensen_shannon) -> list[Float[np.ndarray, "words"]]:
    """Divergence of expert and anti-expert at every word; NaN where a word is not to be masked."""
    sources, targets, where = [], [], []
    for i, sentence in enumerate(sentences):
        for j, word in enumerate(sentence.words):
            if word.maskable:
                sources.append(sentence.masked([j], denoiser.mask_id))
                targets.append(sentence.ids[: word.tokens.start])
                where.append((i, j))
    found = [np.full(len(sentence.words), np.nan) for sentence in sentences]
    place = iter(where)
    for expert, anti in denoiser.next_logits((EXPERT, ANTI_EXPERT), sources, targets):
        for value in measure(expert, anti).tolist():
            i, j = next(place)
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
