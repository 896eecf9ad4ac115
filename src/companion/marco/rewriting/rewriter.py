"""Fill the blanks with a product of experts.

The base model reads the original text, expert and anti-expert the masked one; the next token
maximises α_base·z_base/T + α_expert·z_expert − α_anti·z_anti. Hallinan et al. (2023), section 2.2.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.lm import tokens
from companion.lm.generation import KEPT, Sampling, draw, uniform
from companion.marco.denoisers.protocol import ROLES, Denoiser
from companion.marco.rewriting import masking, words
from companion.marco.rewriting.script import Script
from companion.marco.rewriting.settings import Settings
from companion.marco.rewriting.words import Sentence

BATCH = 64  # sentences written together


@dataclass(frozen=True)
class Rewrite:
    """A sentence, its words' divergences, which of them were masked, and the new text."""

    original: str
    text: str
    sentence: Sentence = field(repr=False)
    divergence: Float[np.ndarray, "words"] = field(repr=False)
    masked: list[int] = field(default_factory=list)


class Rewriter:
    """Rewrites sentences with a denoiser."""

    def __init__(self, denoiser: Denoiser, settings: Settings) -> None:
        self.denoiser, self.settings = denoiser, settings

    def __call__(self, texts: Sequence[str], sampling: Sampling | None = None) -> list[Rewrite]:
        """Rewrite each text; a text without a word to mask comes back as it is."""
        texts = tokens.checked(texts)
        sentences = [words.split(self.denoiser, text) for text in texts]
        masks = self.settings.masking
        scores = masking.divergences(self.denoiser, sentences, masks.divergence, masks.every)
        chosen = [masking.choose(score, masks) for score in scores]
        written = fill(self.denoiser, sentences, chosen, self.settings, sampling)
        return [Rewrite(*row) for row in zip(texts, written, sentences, scores, chosen, strict=True)]


def product(
    logits: Float[Tensor, "role rows vocab"], strengths: Sequence[float]
) -> Float[Tensor, "rows vocab"]:
    """Product of experts in logits; the temperature divides the base model's only, also in greedy decoding, as published."""
    return torch.einsum("r,rnv->nv", torch.tensor(strengths, device=logits.device), logits)


def penalised(
    scores: Float[Tensor, "rows vocab"], seen: Int[Tensor, "rows pos"], penalty: float
) -> Float[Tensor, "rows vocab"]:
    """Push down tokens that stand in ``seen`` (−1: none): positive scores are divided, negative ones multiplied (Keskar et al., 2019)."""
    scores = torch.nn.functional.pad(scores, (0, 1))  # a place for −1
    at = seen.where(seen >= 0, scores.shape[-1] - 1)
    old = scores.gather(-1, at)
    return scores.scatter(-1, at, torch.where(old > 0, old / penalty, old * penalty))[:, :-1]


def fill(
    denoiser: Denoiser,
    sentences: Sequence[Sentence],
    chosen: Sequence[Sequence[int]],
    settings: Settings,
    sampling: Sampling | None = None,
    cast: tuple[str, str, str] = ROLES,
) -> list[str]:
    """Write each sentence with the chosen words blanked; one without a blank keeps its text.

    ``cast`` says which model plays base (it alone reads the original), expert and anti-expert.
    """
    todo = sorted(
        (i for i, c in enumerate(chosen) if c), key=lambda i: _steps(sentences[i], chosen[i], settings)
    )
    texts = [sentence.text for sentence in sentences]
    for start in range(0, len(todo), BATCH):
        rows = todo[start : start + BATCH]
        ids = _write(
            denoiser, [sentences[i] for i in rows], [chosen[i] for i in rows], settings, sampling, rows, cast
        )
        for i, row in zip(rows, ids, strict=True):
            texts[i] = denoiser.decode(row)
    return texts


def _steps(sentence: Sentence, chosen: Sequence[int], settings: Settings) -> tuple[int, int]:
    """About how many tokens are written one by one, and the length: sentences that need equally many go together."""
    whole = len(sentence.ids)
    return (
        sentence.words[max(chosen)].tokens.stop - sentence.words[min(chosen)].tokens.start
        if settings.anchored
        else whole
    ), whole


def _write(
    denoiser: Denoiser,
    sentences: list[Sentence],
    chosen: list[Sequence[int]],
    settings: Settings,
    sampling: Sampling | None,
    rows: list[int],
    cast: tuple[str, str, str],
) -> list[list[int]]:
    """Token ids of one batch. A role without strength is not asked."""
    sources = [s.masked(c, denoiser.mask_id) for s, c in zip(sentences, chosen, strict=True)]
    scripts = [
        Script(source, sentence, denoiser, settings.anchored)
        for source, sentence in zip(sources, sentences, strict=True)
    ]
    read = ([s.ids for s in sentences], sources, sources)
    readers = [Reader(*row) for row in zip(cast, settings.strengths, read, strict=True) if row[1]]
    noise = uniform(rows, max(script.limit for script in scripts), sampling)
    return write(denoiser, scripts, readers, settings.repetition_penalty, sampling, noise)


class Reader(NamedTuple):
    """A model in the product: its role, its strength, and what it reads for each target."""

    role: str
    strength: float
    sources: Sequence[list[int]]


def write(
    denoiser: Denoiser,
    scripts: Sequence[Script],
    readers: Sequence[Reader],
    repetition_penalty: float = 1.0,
    sampling: Sampling | None = None,
    noise: Float[Tensor, "rows pos"] | None = None,
) -> list[list[int]]:
    """Write all scripts in step, with the product of the readers, and return their token ids."""
    begun = [list(script.written) for script in scripts]
    decoding = denoiser.begin(
        [r.role for r in readers for _ in scripts],
        [source for r in readers for source in r.sources],
        begun * len(readers),
    )
    strengths = [r.strength for r in readers]
    rows, ids = list(range(len(scripts))), None  # scripts that the decoding holds
    for step in itertools.count():
        scores = product(decoding.step(ids).float().view(len(readers), len(rows), -1).cpu(), strengths)
        if repetition_penalty != 1.0:
            scores = penalised(
                scores,
                tokens.pad([[-1, *scripts[i].written] for i in rows], "left", -1).ids,
                repetition_penalty,
            )
        for i, row in zip(rows, scores, strict=True):
            scripts[i].restrict(row)
        picked = scores.argmax(-1) if sampling is None else draw(scores, sampling, noise[rows, step])
        taken = torch.tensor([scripts[i].take(token) for i, token in zip(rows, picked.tolist(), strict=True)])
        going = [k for k, i in enumerate(rows) if not scripts[i].done]
        if not going:
            return [script.written for script in scripts]
        if len(going) <= KEPT * len(rows):
            decoding.keep([r * len(rows) + k for r in range(len(readers)) for k in going])
            rows, taken = [rows[k] for k in going], taken[going]
        ids = taken.repeat(len(readers))
