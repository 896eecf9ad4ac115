"""Find the words that expert and anti-expert disagree on.

For every word the two read the sentence with that word blanked, write it up to the blank, and say
what comes next. The divergence of the two distributions is the word's score: Hallinan et al.
(2023), section 2.1. A divergence does not look at the word that stands there; :func:`log_odds`, ours,
does, token by token to the word's end. All words of many sentences are scored in one go.

One reading per word costs the square of a sentence's length. ``EVERY``, ours, blanks every third content
word at once instead: three readings, whatever the length, each with about as many blanks as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.marco.denoisers.protocol import ANTI_EXPERT, EXPERT, Denoiser
from companion.marco.rewriting import people
from companion.marco.rewriting.words import Sentence

# Every so many content words are blanked together; on dev rows the scores agree with those of one at a time
# (r = .95), at a quarter of the time.
EVERY = 3


@runtime_checkable
class Divergence(Protocol):
    """A score of what expert and anti-expert expect at a word, given as logits, row by row."""

    __name__: str

    def __call__(
        self, a: Float[Tensor, "*rows vocab"], b: Float[Tensor, "*rows vocab"], word: Int[Tensor, "*rows"]
    ) -> Float[Tensor, "*rows"]:
        """Return the score of each pair of rows, in nats; ``word`` is the token that stands there."""
        ...


def jensen_shannon(
    a: Float[Tensor, "*rows vocab"], b: Float[Tensor, "*rows vocab"], word: Int[Tensor, "*rows"] | None = None
) -> Float[Tensor, "*rows"]:
    """Jensen–Shannon divergence of two distributions given as logits, in nats: 0 to ln 2."""
    log_a, log_b = a.float().log_softmax(-1), b.float().log_softmax(-1)
    log_m = torch.logaddexp(log_a, log_b) - np.log(2)
    return 0.5 * ((log_a.exp() * (log_a - log_m)).sum(-1) + (log_b.exp() * (log_b - log_m)).sum(-1))


def half_jeffreys(
    a: Float[Tensor, "*rows vocab"], b: Float[Tensor, "*rows vocab"], word: Int[Tensor, "*rows"] | None = None
) -> Float[Tensor, "*rows"]:
    """½ KL(a‖b) + ½ KL(b‖a), in nats, without bound: what the published code calls Jensen–Shannon."""
    log_a, log_b = a.float().log_softmax(-1), b.float().log_softmax(-1)
    return 0.5 * ((log_a.exp() - log_b.exp()) * (log_a - log_b)).sum(-1)


def log_odds(
    a: Float[Tensor, "*rows vocab"], b: Float[Tensor, "*rows vocab"], word: Int[Tensor, "*rows"]
) -> Float[Tensor, "*rows"]:
    """How much likelier the anti-expert finds the token that stands there than the expert does.

    That is log b(word) − log a(word), in nats, of either sign. Over the tokens of a word they add up to the
    log odds of the word (:func:`scores`).

    Ours. An anti-expert that learned from toxic sentences may expect an insult in any blank of a sentence
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
    every
        Score content words only, every so many of them blanked at once; None scores each word by itself,
        as published.
    keeps_groups
        Never mask a word by which people are named (:mod:`companion.marco.rewriting.people`). What is said of
        people may change; that they are spoken of may not.
    keeps
        Words that are never masked, in lower case.
    """

    threshold: float
    relative: bool = False
    divergence: Divergence = jensen_shannon
    published_index: bool = False
    every: int | None = None
    keeps_groups: bool = False
    keeps: frozenset[str] = frozenset()


def ours(threshold: float) -> Masking:
    """Absolute, on log odds in nats, of every third content word at once, but for words that name groups."""
    return Masking(threshold, divergence=log_odds, every=EVERY, keeps_groups=True)


Scores = dict[Divergence, list[Float[np.ndarray, "_words"]]]


def together(sentence: Sentence, every: int | None = None) -> list[list[int]]:
    """Words that are blanked at once: each by itself, or every so many content words (1: all of them)."""
    if every is None:
        return [[j] for j, word in enumerate(sentence.words) if word.maskable]
    content = sentence.content
    return [content[k::every] for k in range(min(every, len(content)))]


def scores(
    denoiser: Denoiser,
    sentences: Sequence[Sentence],
    measures: Sequence[Divergence],
    every: int | None = None,
) -> Scores:
    """Several scores of every word from one pass; NaN where a word is not to be masked.

    Log odds are those of the whole word, given what stands before each of its tokens. A divergence is taken
    where the word begins, as published: after that it would depend on tokens that the experts may not have
    chosen. ``every`` is that of :class:`Masking`.
    """
    rows = [
        (i, blanks, j, t)
        for i, sentence in enumerate(sentences)
        for blanks in together(sentence, every)
        for j in blanks
        for t in (sentence.words[j].tokens if log_odds in measures else sentence.words[j].tokens[:1])
    ]
    sources = [sentences[i].masked(blanks, denoiser.mask_id) for i, blanks, _, _ in rows]
    targets = [sentences[i].ids[:t] for i, _, _, t in rows]
    by_measure: Scores = {
        measure: [np.full(len(sentence.words), np.nan) for sentence in sentences] for measure in measures
    }
    done = 0
    for expert, anti in denoiser.next_logits((EXPERT, ANTI_EXPERT), sources, targets):
        some = rows[done : (done := done + len(expert))]
        standing = torch.tensor([sentences[i].ids[t] for i, _, _, t in some], device=expert.device)
        for measure in measures:
            for (i, _, j, t), value in zip(some, measure(expert, anti, standing).tolist(), strict=True):
                if t == sentences[i].words[j].tokens.start:
                    by_measure[measure][i][j] = value
                elif measure is log_odds:
                    by_measure[measure][i][j] += value
    return by_measure


def divergences(
    denoiser: Denoiser,
    sentences: Sequence[Sentence],
    measure: Divergence = jensen_shannon,
    every: int | None = None,
) -> list[Float[np.ndarray, "_words"]]:
    """One score of every word (:func:`scores`)."""
    return scores(denoiser, sentences, (measure,), every)[measure]


def measured(
    denoiser: Denoiser, sentences: Sequence[Sentence], masking: Masking
) -> list[Float[np.ndarray, "_words"]]:
    """The scores by which a masking chooses: NaN where a word is not to be masked."""
    found = divergences(denoiser, sentences, masking.divergence, masking.every)
    for sentence, values in zip(sentences, found, strict=True):
        named = people.spans(sentence.text) if masking.keeps_groups else []
        for j, word in enumerate(sentence.words):
            in_name = any(word.start < end and start < word.end for start, end in named)
            if in_name or sentence.spelling(j).lower() in masking.keeps:
                values[j] = np.nan
    return found


def choose(values: Float[np.ndarray, "words"], masking: Masking) -> list[int]:
    """Indices of the words to mask."""
    kept = np.flatnonzero(~np.isnan(values))
    if len(kept) == 0:
        return []
    compared = values[kept] / values[kept].mean() if masking.relative else values[kept]
    chosen = np.flatnonzero(compared >= masking.threshold)
    if masking.published_index:
        dropped = np.flatnonzero(np.isnan(values))
        return sorted({min(int(j + (dropped <= j).sum()), len(values) - 1) for j in chosen})
    return kept[chosen].tolist()
