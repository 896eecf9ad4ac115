"""The product of experts at each blank, its strengths to be moved by hand in the built page; no server."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from IPython.display import HTML
from jaxtyping import Bool, Float, Int
from torch import Tensor

from companion.book import censor, plots
from companion.book.widgets import element
from companion.marco.denoisers.protocol import Denoiser
from companion.marco.rewriting import rewriter
from companion.marco.rewriting.script import Script
from companion.marco.rewriting.settings import PUBLISHED, Settings, alone
from companion.marco.rewriting.words import Sentence

TEMPLATE = Path(__file__).with_name("blanks.html")
TOP = 30  # candidates that each model gives
LISTED = 8  # tokens that the element lists

SLIDERS = {  # of each strength: its name, and how far and in which steps it can be moved
    "alpha_base": ("α of the base", 0.0, 2.0, 0.05),
    "temperature": ("temperature T of the base", 0.5, 5.0, 0.1),
    "alpha_expert": ("α of the expert", 0.0, 8.0, 0.05),
    "alpha_anti": ("α of the anti-expert", 0.0, 4.0, 0.05),
}

# Factors of the three models' logits whose winners are candidates, too: few other tokens can win in between.
GRID = tuple(
    itertools.product((0.0, 0.2, 0.4, 1.0, 2.0), (0.0, 1.0, 2.0, 4.25, 8.0), (0.0, -0.5, -1.5, -4.0))
)


@dataclass(frozen=True)
class Blank:
    """What the three models say at the first position of a blank.

    ``original`` are the words that stood there. ``following`` is the token after the blank: chosen here,
    it leaves the blank empty. ``allowed`` tells which tokens may stand here
    (:meth:`companion.marco.rewriting.script.Script.restrict`).
    """

    original: str
    logits: Float[Tensor, "role vocab"]
    allowed: Bool[Tensor, "vocab"]
    following: int

    def product(self, settings: Settings) -> Float[Tensor, "vocab"]:
        """Probabilities of the product over all tokens that may stand here."""
        scores = rewriter.product(self.logits[:, None], settings.strengths)[0]
        return scores.masked_fill(~self.allowed, -torch.inf).softmax(-1)

    def alone(self, role: int) -> Float[Tensor, "vocab"]:
        """Probabilities of one model by itself (0 base, 1 expert, 2 anti-expert) over the same tokens."""
        return self.logits[role].masked_fill(~self.allowed, -torch.inf).softmax(-1)


@dataclass(frozen=True)
class Blanked:
    """A sentence with blanks: the text before, between and after them, and the sentence as rewritten."""

    parts: list[str]
    blanks: list[Blank]
    text: str


def walk(denoiser: Denoiser, sentence: Sentence, masked: Sequence[int], settings: Settings) -> Blanked:
    """Rewrite one sentence, anchored and greedy, and keep what the models say where each blank begins.

    The same text as :func:`companion.marco.rewriting.rewriter.fill` writes: every blank is met after the text
    that the earlier ones were given.
    """
    source = sentence.masked(masked, denoiser.mask_id)
    script, (originals, parts) = Script(source, sentence, denoiser, anchored=True), _cut(sentence, masked)
    blanks: list[Blank] = []

    def observe(_scripts: list[Script], logits: Tensor, scores: Tensor) -> None:
        begins = len(blanks) + script.blanks_left == len(originals)  # nothing is written in this blank yet
        if script.rest[0] == script.blank and begins:
            original, following = originals[len(blanks)], script.rest[1]
            blanks.append(Blank(original, logits[:, 0], scores[0] > -torch.inf, following))

    readers = rewriter.readers([sentence], [source], settings)
    penalty = settings.repetition_penalty
    [ids] = rewriter.write(denoiser, [script], readers, penalty, observer=observe)
    return Blanked(parts, blanks, denoiser.decode(ids))


def _cut(sentence: Sentence, masked: Sequence[int]) -> tuple[list[str], list[str]]:
    """Texts of the blanks (masked words side by side are one) and the texts around them, one more."""
    runs: list[list[int]] = []
    for j in sorted(masked):
        if runs and sentence.words[runs[-1][-1]].tokens.stop == sentence.words[j].tokens.start:
            runs[-1].append(j)
        else:
            runs.append([j])
    spans = [(sentence.words[run[0]].start, sentence.words[run[-1]].end) for run in runs]
    edges = [0, *itertools.chain.from_iterable(spans), len(sentence.text)]
    texts = [sentence.text[a:b] for a, b in itertools.pairwise(edges)]
    return texts[1::2], texts[::2]


def presets(settings: Settings) -> dict[str, Settings]:
    """Strengths to start from: those in use, the paper's for SBF, the two ablations of chapter 11."""
    return {
        "settings in use": settings,
        "SBF as published": PUBLISHED["sbf"],
        "no anti-expert": replace(settings, alpha_anti=0.0),
        "expert only": alone(settings),
    }


def candidates(blank: Blank, starts: Sequence[Settings], top: int = TOP) -> Int[Tensor, "candidates"]:
    """Ids of the tokens to offer at a blank, in order of id.

    The ``top`` tokens of each model, the best of the product at every point of ``GRID`` and at the
    strengths in ``starts``, and the token that ends the blank.
    """
    ids = blank.allowed.nonzero()[:, 0]
    logits = blank.logits[:, ids]
    products = torch.tensor([*GRID, *(settings.strengths for settings in starts)]) @ logits
    best = [
        values.topk(min(n, len(ids))).indices.flatten() for values, n in ((logits, top), (products, LISTED))
    ]
    return torch.cat([ids[torch.cat(best)], torch.tensor([blank.following])]).unique()


def html(items: Sequence[Blanked], denoiser: Denoiser, starts: Mapping[str, Settings], *, title: str) -> HTML:
    """Sliders for the product's strengths over some sentences with blanks; the first of ``starts`` is set.

    Texts and tokens are censored (:func:`companion.book.censor.censored`). Repetition penalties are left out.
    The same input gives the same text, and may stand on a page twice.
    """
    data = {
        "columns": ["base", "expert", "anti-expert"],
        "listed": LISTED,
        "sentences": [_sentence(item, denoiser, list(starts.values())) for item in items if item.blanks],
        **_controls(starts),
    }
    return element.html(TEMPLATE, "blanks", data, title=title, note=NOTE, accent=plots.DPO)


NOTE = (
    f"Each model offers its {TOP} most likely tokens at the first position of a blank; the winners of the "
    "product over a grid of strengths stand with them. Probabilities are shares among these candidates, not "
    "over the whole vocabulary. A blank is met after the text that the settings in use wrote before it."
)


def _sentence(item: Blanked, denoiser: Denoiser, starts: Sequence[Settings]) -> dict[str, object]:
    return {
        "parts": [censor.censored(part) for part in item.parts],
        "blanks": [_blank(blank, denoiser, starts) for blank in item.blanks],
    }


def _blank(blank: Blank, denoiser: Denoiser, starts: Sequence[Settings]) -> dict[str, object]:
    ids = candidates(blank, starts)
    return {
        "original": censor.censored(blank.original),
        "tokens": [censor.censored(denoiser.decode([i])) for i in ids.tolist()],
        "end": int((ids == blank.following).nonzero()[0, 0]),
        "logits": [[round(value, 3) for value in row] for row in blank.logits[:, ids].tolist()],
    }


def _controls(starts: Mapping[str, Settings]) -> dict[str, object]:
    """Sliders, wide enough for every preset, and the presets' values in the order of the sliders."""
    values = {name: [getattr(settings, key) for key in SLIDERS] for name, settings in starts.items()}
    sliders = []
    for i, (key, (name, low, high, step)) in enumerate(SLIDERS.items()):
        used = [row[i] for row in values.values()]
        sliders.append(
            {"key": key, "name": name, "low": min(low, *used), "high": max(high, *used), "step": step}
        )
    return {"sliders": sliders, "presets": [{"name": name, "values": row} for name, row in values.items()]}
