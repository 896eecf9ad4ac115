"""What a denoiser learns from: a corrupted sentence and the whole one, as token ids."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from companion.marco.denoisers.causal import PrefixDenoiser
from companion.marco.experts.noise import USUAL, Level, infilled, infilled_pair
from companion.marco.rewriting import words


class Example(NamedTuple):
    """A corrupted source and the target to write, in token ids."""

    source: list[int]
    target: list[int]


def corrupted(
    denoiser: PrefixDenoiser,
    texts: Sequence[str],
    seed: int,
    level: Level = USUAL,
    telling: frozenset[str] = frozenset(),
) -> list[Example]:
    """Corrupt texts, each with its own noise; half of the ``telling`` words go besides."""
    noise, found = random.Random(seed), []
    for text in texts:
        sentence = words.split(denoiser, text)
        some = pieces(sentence)
        differing = (
            [i for i, piece in enumerate(some) if denoiser.decode(piece).strip().lower() in telling]
            if telling
            else []
        )
        found.append(Example(infilled(some, denoiser.mask_id, noise, level, differing), sentence.ids))
    return found


def corrupted_pairs(
    denoiser: PrefixDenoiser, rows: Sequence[tuple[str, str]], side: int, seed: int, level: Level = USUAL
) -> list[Example]:
    """One side of pairs (0: first, 1: second); with the same seed both sides get the same noise."""
    noise, found = random.Random(seed), []
    for row in rows:
        sentences = [words.split(denoiser, text) for text in row]
        sources = infilled_pair(*(pieces(sentence) for sentence in sentences), denoiser.mask_id, noise, level)
        found.append(Example(sources[side], sentences[side].ids))
    return found


def pieces(sentence: words.Sentence) -> list[list[int]]:
    """All tokens of a sentence word by word; tokens of no word are pieces of their own."""
    owner = {t: i for i, word in enumerate(sentence.words) for t in word.tokens}
    found: list[list[int]] = []
    last = None
    for t, token in enumerate(sentence.ids):
        here = owner.get(t, -t - 1)
        if here == last:
            found[-1].append(token)
        else:
            found.append([token])
        last = here
    return found
