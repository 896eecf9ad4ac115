"""Ways to rewrite the same sentences: MaRCo, baselines, and MaRCo without one of its parts.

What a method wrote is kept in the store, so that an interrupted evaluation goes on where it stopped
and chapters share their rewrites. :mod:`companion.marco.evaluation.scores` scores the texts.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from companion import store
from companion.lm.models import LanguageModel
from companion.marco.denoisers import protocol
from companion.marco.evaluation import baselines
from companion.marco.experts.loading import Experts
from companion.marco.rewriting import masking, rewriter, settings, words
from companion.marco.rewriting.rewriter import Rewrite, Rewriter
from companion.marco.rewriting.settings import Settings, alone

TOGETHER = 64  # sentences between two progress marks in the store


def marco(experts: Experts, texts: Sequence[str], settings: Settings | None = None) -> list[Rewrite]:
    """MaRCo's rewrites with their divergences and masks, from the store or made now."""
    settings = settings or experts.settings
    rewriter = Rewriter(experts.denoiser, settings)

    def make(some: list[str]) -> list[dict]:
        found = rewriter(some)
        return [
            {
                "text": r.text,
                "masked": r.masked,
                "divergence": [None if np.isnan(d) else float(d) for d in r.divergence],
            }
            for r in found
        ]

    rows = _kept(
        {"method": "marco", "experts": experts.fingerprint, "settings": _plain(settings)}, texts, make
    )
    sentences = [words.split(experts.denoiser, text) for text in texts]
    return [
        Rewrite(
            text,
            row["text"],
            sentence,
            np.array([np.nan if d is None else d for d in row["divergence"]], dtype=float),
            row["masked"],
        )
        for text, sentence, row in zip(texts, sentences, rows, strict=True)
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
        return rewriter.fill(experts.denoiser, sentences, [chosen for _, chosen in some], settings, cast=cast)

    key = {"method": "fill", "experts": experts.fingerprint, "settings": _plain(settings), "cast": cast}
    return _kept(key, list(zip(texts, masked, strict=True)), make)


def asked(instruct: LanguageModel, texts: Sequence[str]) -> list[str]:
    """The chat model's polite versions, from the store or now."""
    key = {"method": "ask", "model": instruct.fingerprint}
    return _kept(key, texts, lambda some: baselines.ask(instruct, some))


def methods(experts: Experts, instruct: LanguageModel, ours: Sequence[Rewrite]) -> dict[str, list[str]]:
    """What each method makes of the sentences that MaRCo rewrote: the originals, three baselines, MaRCo.

    ``instruct`` must be a model without adapters.
    """
    texts = [r.original for r in ours]
    return {
        "original": texts,
        "delete": baselines.delete(experts.denoiser, texts),
        "refill": filled(
            experts, texts, [r.masked for r in ours], settings.alone(experts.settings), (protocol.BASE,) * 3
        ),
        "ask": asked(instruct, texts),
        "MaRCo": [r.text for r in ours],
    }


def ablations(experts: Experts, ours: Sequence[Rewrite], seed: int) -> dict[str, list[str]]:
    """The originals, MaRCo's rewrites, MaRCo without one of its parts, with as many masks on random words, and with the cautious threshold."""
    texts, masked, settings = [r.original for r in ours], [r.masked for r in ours], experts.settings
    fewer = [masking.choose(r.divergence, experts.cautious.masking) for r in ours]
    return {
        "original": texts,
        "MaRCo": [r.text for r in ours],
        "no anti-expert": filled(experts, texts, masked, replace(settings, alpha_anti=0.0)),
        "expert only": filled(experts, texts, masked, alone(settings)),
        "random masks": filled(experts, texts, shuffled(ours, seed), settings),
        "cautious": filled(experts, texts, fewer, experts.cautious),
    }


def shuffled(rewrites: Sequence[Rewrite], seed: int) -> list[list[int]]:
    """As many masks per sentence, on words drawn at random among those that have a score."""
    found = []
    for i, rewrite in enumerate(rewrites):
        scored = np.flatnonzero(~np.isnan(rewrite.divergence)).tolist()
        found.append(sorted(random.Random(f"{seed} {i}").sample(scored, len(rewrite.masked))))
    return found


def _plain(settings: Settings) -> dict:
    found = asdict(settings)
    found["masking"]["divergence"] = settings.masking.divergence.__name__
    return found


def _kept(key: dict, inputs: Sequence, make: Callable[[list], list]) -> list:
    """``make`` of all inputs, some at a time, from the store or now."""
    inputs = list(inputs)

    def build(folder: Path) -> None:
        state = folder / "so_far.json"
        done = json.loads(state.read_text(encoding="utf-8")) if state.exists() else []
        for start in range(len(done), len(inputs), TOGETHER):
            done += make(inputs[start : start + TOGETHER])
            with store.replacing(state) as fresh:
                fresh.write_text(json.dumps(done), encoding="utf-8")
        (folder / "rewrites.json").write_text(json.dumps(done), encoding="utf-8")
        state.unlink(missing_ok=True)

    folder = store.artifact("rewrites", {**key, "texts": store.key_of({"texts": inputs})}, build)
    return json.loads((folder / "rewrites.json").read_text(encoding="utf-8"))
