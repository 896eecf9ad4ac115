"""Several rewrites of a sentence, of which the experts choose one, or the sentence as it is. Ours.

Words are masked one by one and blanks are filled token by token; whether a whole sentence came out better,
neither says. So expert and anti-expert read the original with its blanks and say how likely they find each
rewrite as a whole. Its *gain* is the fall of the log odds of anti-expert against expert, less a part of what
it loses in likelihood under the base model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from companion.marco.denoisers.protocol import ANTI_EXPERT, BASE, EXPERT, Denoiser
from companion.marco.rewriting.words import Sentence

TOGETHER = 8  # texts that are read together: the logits of a large vocabulary fill memory


@dataclass(frozen=True)
class Choice:
    """What is chosen among, and by which rule.

    ``strengths`` are those of expert, anti-expert and temperature of each candidate. A rewrite takes the
    place of its original if it gains ``least`` nats; a nat of likelihood under the base model counts
    ``loss``.
    """

    strengths: tuple[tuple[float, float, float], ...]
    least: float
    loss: float


class Candidate(NamedTuple):
    """A rewrite and its gain, in nats; the original has none to gain."""

    text: str
    gain: float


def candidates(
    denoiser: Denoiser,
    sentences: Sequence[Sentence],
    blanks: Sequence[Sequence[int]],
    rewrites: Sequence[Sequence[str]],
    loss: float,
) -> list[list[Candidate]]:
    """The different rewrites of each sentence with their gains, best first; its own text is not among them.

    ``blanks`` are the words that were masked, ``rewrites`` several texts for each sentence.
    """
    texts = [
        [text for text in dict.fromkeys(some) if text != sentence.text]
        for sentence, some in zip(sentences, rewrites, strict=True)
    ]
    rows = [(i, text) for i, some in enumerate(texts) if some for text in (sentences[i].text, *some)]
    found = dict(zip(rows, _surprise(denoiser, sentences, blanks, rows), strict=True))
    ranked = []
    for i, some in enumerate(texts):
        gains = [_gain(found[i, sentences[i].text], found[i, text], loss) for text in some]
        ranked.append(sorted(map(Candidate, some, gains), key=lambda one: -one.gain))
    return ranked


def best(text: str, ranked: Sequence[Candidate], least: float) -> str:
    """The first of some ranked candidates if it gains enough, else the text as it is."""
    return ranked[0].text if ranked and ranked[0].gain >= least else text


def _gain(before: Float[np.ndarray, "role"], after: Float[np.ndarray, "role"], loss: float) -> float:
    expert, anti, base = before - after  # by how much each finds the rewrite likelier
    return float(expert - anti + loss * min(0.0, base))


@torch.inference_mode()
def _surprise(
    denoiser: Denoiser,
    sentences: Sequence[Sentence],
    blanks: Sequence[Sequence[int]],
    rows: Sequence[tuple[int, str]],
) -> Float[np.ndarray, "rows role"]:
    """How unlikely expert, anti-expert and base find whole texts, given a sentence with its blanks; nats."""
    sources = [sentences[i].masked(blanks[i], denoiser.mask_id) for i, _ in rows]
    targets = [denoiser.encode(text).ids for _, text in rows]
    found = np.zeros((len(rows), 3))
    by_length = sorted(range(len(rows)), key=lambda k: len(sources[k]) + len(targets[k]))
    for start in range(0, len(rows), TOGETHER):
        some = by_length[start : start + TOGETHER]
        asked = [sources[k] for k in some], [targets[k] for k in some]
        found[some] = denoiser.surprise((EXPERT, ANTI_EXPERT, BASE), *asked).cpu().numpy()
    return found
