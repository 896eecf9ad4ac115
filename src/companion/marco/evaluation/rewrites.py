"""Ways to rewrite the same sentences: MaRCo, baselines, and MaRCo without one of its parts.

What a method wrote is kept in the store, so that an interrupted evaluation goes on where it stopped
and chapters share their rewrites. :mod:`companion.marco.evaluation.scores` scores the texts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from companion import store
from companion.lm.models import LanguageModel
from companion.marco.denoisers import protocol
from companion.marco.evaluation import baselines
from companion.marco.experts.loading import Experts
from companion.marco.rewriting import masking, rewriter, words
from companion.marco.rewriting.choosing import Candidate
from companion.marco.rewriting.rewriter import Rewrite, Rewriter
from companion.marco.rewriting.settings import PUBLISHED, Settings, alone

STORED = 64  # sentences between two entries in the store


def marco(experts: Experts, texts: Sequence[str], settings: Settings | None = None) -> list[Rewrite]:
    """MaRCo's rewrites with their divergences and masks, from the store or made now."""
    settings = settings or experts.settings
    rewriter = Rewriter(experts.denoiser, settings)

    def make(some: list[str]) -> list[dict]:
        return [
            {
                "text": r.text,
                "masked": r.masked,
                "divergence": [None if np.isnan(d) else float(d) for d in r.divergence],
                "candidates": r.candidates,
            }
            for r in rewriter(some)
        ]

    key = {"method": "marco", "experts": experts.fingerprint, "settings": settings.as_data()}
    return [
        Rewrite(
            text,
            row["text"],
            words.split(experts.denoiser, text),
            np.array([np.nan if d is None else d for d in row["divergence"]], dtype=float),
            row["masked"],
            [Candidate(*one) for one in row["candidates"]],
        )
        for text, row in zip(texts, _kept(key, texts, make), strict=True)
    ]


def filled(
    experts: Experts,
    texts: Sequence[str],
    masked: Sequence[Sequence[int]],
    settings: Settings,
    cast: tuple[str, str, str] = protocol.ROLES,
) -> list[str]:
    """Given blanks filled with given strengths, from the store or now."""

    def make(some: list[tuple[str, list[int]]]) -> list[str]:
        sentences = [words.split(experts.denoiser, text) for text, _ in some]
        return rewriter.fill(experts.denoiser, sentences, [chosen for _, chosen in some], settings, cast)

    key = {"method": "fill", "experts": experts.fingerprint, "settings": settings.as_data(), "cast": cast}
    return _kept(key, list(zip(texts, masked, strict=True)), make)


def methods(
    experts: Experts, instruct: LanguageModel, ours: Sequence[Rewrite], seed: int
) -> dict[str, list[str]]:
    """What each method makes of the sentences that MaRCo rewrote: the originals, four baselines, MaRCo.

    ``delete masks`` leaves out the words that MaRCo masks, ``MaRCo, chosen`` is the experts' choice among
    several rewrites, ``MaRCo, drawn`` its control by lot. ``instruct`` must be a model without adapters.
    """
    texts, masked = [r.original for r in ours], [r.masked for r in ours]
    several = marco(experts, texts, experts.several)
    asked = {"method": "ask", "model": instruct.fingerprint}
    return {
        "original": texts,
        "delete": baselines.delete(experts.denoiser, texts),
        "delete masks": [baselines.without(r.sentence, r.masked) if r.masked else r.original for r in ours],
        "refill": filled(experts, texts, masked, alone(experts.settings), (protocol.BASE,) * 3),
        "ask": _kept(asked, texts, lambda some: baselines.ask(instruct, some)),
        "MaRCo": [r.text for r in ours],
        "MaRCo, chosen": [r.text for r in several],
        "MaRCo, drawn": drawn(several, seed),
    }


def variants(
    experts: Experts, ours: Sequence[Rewrite], seed: int, published: bool = False
) -> dict[str, list[str]]:
    """The originals, MaRCo's rewrites, and those of MaRCo with one part taken away or changed.

    That is: no anti-expert, the expert only, as many masks on random words, the cautious threshold; and if
    asked for, since it takes long, the ``published`` way to mask and fill, with the same experts.
    """
    texts, masked, settings = [r.original for r in ours], [r.masked for r in ours], experts.settings
    found = {
        "original": texts,
        "MaRCo": [r.text for r in ours],
        "no anti-expert": filled(experts, texts, masked, replace(settings, alpha_anti=0.0)),
        "expert only": filled(experts, texts, masked, alone(settings)),
        "random masks": filled(experts, texts, shuffled(ours, seed), settings),
        "cautious": cautious(experts, ours),
    }
    if published:
        found["published"] = [r.text for r in marco(experts, texts, PUBLISHED["microaggressions"])]
    return found


def cautious(experts: Experts, ours: Sequence[Rewrite]) -> list[str]:
    """What the cautious threshold makes of the sentences, whose words are scored already."""
    fewer = [masking.choose(r.divergence, experts.cautious.masking) for r in ours]
    return filled(experts, [r.original for r in ours], fewer, experts.cautious)


def drawn(several: Sequence[Rewrite], seed: int) -> list[str]:
    """As many sentences changed as the experts chose to; which ones, and to which candidate, is drawn."""
    lot = random.Random(seed)
    could = [i for i, r in enumerate(several) if r.candidates]
    changed = lot.sample(could, sum(r.text != r.original for r in several))
    texts = [r.original for r in several]
    for i in sorted(changed):
        texts[i] = lot.choice(several[i].candidates).text
    return texts


def shuffled(rewrites: Sequence[Rewrite], seed: int) -> list[list[int]]:
    """As many masks per sentence, on words drawn at random among those that have a score."""
    masks = []
    for i, rewrite in enumerate(rewrites):
        scored = np.flatnonzero(~np.isnan(rewrite.divergence)).tolist()
        masks.append(sorted(random.Random(f"{seed} {i}").sample(scored, len(rewrite.masked))))
    return masks


def _kept(key: dict, inputs: Sequence, make: Callable[[list], list]) -> list:
    """``make`` of all inputs, from the store or now; some at a time, so that it can be stopped."""
    rows: list = []
    for start in range(0, len(inputs), STORED):
        some = list(inputs[start : start + STORED])
        inputs_key = {**key, "texts": store.key_of({"texts": some})}
        rows += store.kept("rewrites", inputs_key, lambda: make(some))
    return rows
