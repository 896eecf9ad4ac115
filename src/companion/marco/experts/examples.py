"""What a denoiser learns from: a corrupted sentence and the whole one, as token ids."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from companion.marco.denoisers.causal import PrefixDenoiser
from companion.marco.experts.noise import USUAL, Level, infilled, infilled_pair
from companion.marco.rewriting import words


class Example(NamedTuple):
    """A corrupted source and the target to write, in token ids, and the target's class (1: toxic)."""

    source: list[int]
    target: list[int]
    label: int = 0


def corrupted(
    denoiser: PrefixDenoiser,
    texts: Sequence[str],
    seed: int,
    level: Level = USUAL,
    telling: frozenset[str] = frozenset(),
    *,
    label: int = 0,
) -> list[Example]:
    """Corrupt texts of one class, each with its own noise; half of the ``telling`` words go besides."""
    noise, batch = random.Random(seed), []
    for text in texts:
        sentence = words.split(denoiser, text)
        some = pieces(sentence)
        spelled = [denoiser.decode(piece).strip().lower() for piece in some] if telling else []
        differing = [i for i, word in enumerate(spelled) if word in telling]
        source = infilled(some, denoiser.mask_id, noise, level, differing)
        batch.append(Example(source, sentence.ids, label))
    return batch


def corrupted_pairs(
    denoiser: PrefixDenoiser, rows: Sequence[tuple[str, str]], side: int, seed: int, level: Level = USUAL
) -> list[Example]:
    """One side of pairs (0: first, toxic; 1: second); with the same seed both sides get the same noise."""
    noise, batch = random.Random(seed), []
    for row in rows:
        first, second = (words.split(denoiser, text) for text in row)
        sources = infilled_pair(pieces(first), pieces(second), denoiser.mask_id, noise, level)
        batch.append(Example(sources[side], (first, second)[side].ids, label=1 - side))
    return batch


def pieces(sentence: words.Sentence) -> list[list[int]]:
    """All tokens of a sentence word by word; tokens of no word are pieces of their own."""
    owner = {t: i for i, word in enumerate(sentence.words) for t in word.tokens}
    by_owner: dict[int, list[int]] = {}
    for t, token in enumerate(sentence.ids):
        by_owner.setdefault(owner.get(t, -t - 1), []).append(token)
    return list(by_owner.values())
