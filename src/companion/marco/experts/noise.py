"""How sentences are corrupted: spans become masks, as in BART (Lewis et al., 2020)."""

from __future__ import annotations

import difflib
import random
from collections.abc import Sequence
from typing import NamedTuple

MASKED_SHARE = 0.3  # of the words, as in BART (Lewis et al., 2020)
SPAN = 3.0  # mean words of a span (Poisson)
INTACT_SHARE = 0.4  # of the inputs, so that the denoiser learns to leave alone what has no blank
DIFFERING_SHARE = (
    0.5  # of the places where a pair, or two classes, differ: masked besides, they carry the lesson
)


class Noise(NamedTuple):
    """Which words are gone, and before which words a mask stands."""

    gone: list[bool]
    starts: set[int]

    def on(self, words: Sequence[Sequence[int]], mask_id: int) -> list[int]:
        """Token ids of a text under this noise."""
        ids: list[int] = []
        for i, word in enumerate(words):
            ids += [mask_id] if i in self.starts else []
            ids += [] if self.gone[i] else word
        return ids


class Level(NamedTuple):
    """Bounds of the share of words masked (drawn for each text), and the share of texts left intact."""

    low: float
    high: float
    intact: float


USUAL = Level(MASKED_SHARE, MASKED_SHARE, INTACT_SHARE)
# from a word or two, as in scoring, to so many that the context says little about the class
VARIED = Level(0.0, 0.4, 0.0)


def drawn(n: int, noise: random.Random, level: Level = USUAL) -> Noise:
    """Text infilling of ``n`` words: spans, Poisson(3) long, give way to one mask each until enough are gone.

    That is 30 %, or as ``level`` says. A span of length 0 puts a mask between two words.
    Source: Lewis et al. (2020), section 2.2; MaRCo, appendix A.
    """
    gone, starts = [False] * n, set[int]()
    if noise.random() < level.intact:
        return Noise(gone, starts)
    budget = max(1, round(noise.uniform(level.low, level.high) * n))
    while budget > 0:
        length = min(_poisson(noise), budget)
        start = noise.randrange(n - length + 1)
        if any(gone[start : start + length]) or start in starts:
            budget -= 1 if length == 0 or noise.random() < 0.1 else 0  # crowded: give up in the end
            continue
        gone[start : start + length] = [True] * length
        starts.add(start)
        budget -= max(length, 1)
    return Noise(gone, starts)


def infilled(
    words: Sequence[Sequence[int]],
    mask_id: int,
    noise: random.Random,
    level: Level = USUAL,
    differing: Sequence[int] = (),
) -> list[int]:
    """A text, given as the token ids of each word, under fresh noise (:func:`drawn`).

    Of the words at ``differing`` half go besides.
    """
    return _hiding(drawn(len(words), noise, level), differing, noise).on(words, mask_id)


def _hiding(plan: Noise, differing: Sequence[int], noise: random.Random) -> Noise:
    """The same noise with a mask on about ``DIFFERING_SHARE`` of some words that it leaves."""
    for i in differing:
        if noise.random() < DIFFERING_SHARE and not plan.gone[i]:
            plan.gone[i] = True
            plan.starts.add(i)
    return plan


def infilled_pair(
    first: Sequence[Sequence[int]],
    second: Sequence[Sequence[int]],
    mask_id: int,
    noise: random.Random,
    level: Level = USUAL,
) -> tuple[list[int], list[int]]:
    """Two versions of a sentence under the same noise.

    Shared words go together, and so does what stands in each other's place.
    """
    both = [tuple(word) for word in first], [tuple(word) for word in second]
    units: list[tuple[Sequence[int], Sequence[int]]] = []
    differing = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, *both, autojunk=False).get_opcodes():
        if kind == "equal":
            units += [(word, word) for word in first[a:b]]
        else:
            differing.append(len(units))
            units.append(
                ([t for word in first[a:b] for t in word], [t for word in second[c:d] for t in word])
            )
    plan = _hiding(drawn(len(units), noise, level), differing, noise)
    return plan.on([a for a, _ in units], mask_id), plan.on([b for _, b in units], mask_id)


def _poisson(noise: random.Random) -> int:
    """A draw from Poisson(3): arrivals of an exponential clock within one unit of time."""
    count, clock = 0, noise.expovariate(SPAN)
    while clock < 1:
        count, clock = count + 1, clock + noise.expovariate(SPAN)
    return count
