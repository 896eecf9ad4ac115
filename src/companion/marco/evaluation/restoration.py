"""What a denoiser restores of held-out comments, and where expert and anti-expert disagree.

All goes through :class:`companion.marco.denoisers.protocol.Denoiser`, so that adapters and encoder-decoders
are asked the same, and gives one number per text, so that intervals can resample texts. What takes long is
kept in the store.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from companion import store
from companion.data import by_profile
from companion.lm import models, tokens
from companion.marco.denoisers.causal import PrefixDenoiser
from companion.marco.denoisers.protocol import ANTI_EXPERT, BASE, EXPERT, ROLES, Denoiser
from companion.marco.experts import adapter_training, corpus, examples
from companion.marco.experts.adapter_training import AdapterConfig
from companion.marco.experts.loading import Experts
from companion.marco.experts.noise import infilled
from companion.marco.rewriting import rewriter, words
from companion.marco.rewriting.rewriter import Reader
from companion.marco.rewriting.script import Script
from companion.marco.rewriting.words import Sentence
from companion.profiles import Profile

NAMES = {BASE: "base", EXPERT: "expert", ANTI_EXPERT: "anti-expert"}  # in tables and figures
MASK = -1  # stands for a mask among token positions
TARGETS = 96  # written together, over all roles: more would fill memory with keys and values


def student(profile: Profile, config: AdapterConfig) -> PrefixDenoiser:
    """A fresh base adapter on a fresh copy of the profile's model.

    Where the experts are encoder-decoders, it is on the model that ships with the book.
    """
    name = models.EMBEDDED if profile.experts == "bart" else profile.model
    return adapter_training.attach(models.load(name), config)


def held_out(profile: Profile) -> pd.DataFrame:
    """``infilled_comments`` evaluation rows (text, label), the labels in turn.

    They are the embedded comments, or of all four public sources.
    """
    public = profile.data == "public"
    rows = corpus.balanced("eval", profile.seed) if public else by_profile.comments(profile, "eval")
    classes = [rows[rows.label == label] for label in (0, 1)]
    each = min(profile.infilled_comments // 2 or len(rows), *map(len, classes))
    halves = [by_profile.spread(some, each) for some in classes]
    return pd.concat(halves)[["text", "label"]].sort_index(kind="stable").reset_index(drop=True)


class Corrupted(NamedTuple):
    """A sentence, its source with masks, and the token ids that each blank hides."""

    sentence: Sentence
    source: list[int]
    hidden: list[list[int]]


def corrupt(model: Denoiser, texts: Sequence[str], seed: int) -> list[Corrupted]:
    """Mask 30 % of the words of every text (none stays intact).

    The noise belongs to a text, whatever stands beside it.
    """
    rows = []
    for text in texts:
        sentence, noise = words.split(model, text), random.Random(f"{seed} {text}")
        left = list(range(len(sentence.ids)))  # positions in the place of ids, so that we see what is gone
        places = examples.pieces(sentence._replace(ids=left))
        while MASK not in left:
            left = infilled(places, MASK, noise)
        source = [model.mask_id if place == MASK else sentence.ids[place] for place in left]
        rows.append(Corrupted(sentence, source, _hidden(left, sentence.ids)))
    return rows


def _hidden(left: Sequence[int], ids: list[int]) -> list[list[int]]:
    """What each blank stands for, given the positions that are left; masks side by side are one blank."""
    hidden, before = [], -1
    for place, following in zip(left, [*left[1:], len(ids)], strict=True):
        if place != MASK:
            before = place
        elif following != MASK:
            hidden.append(ids[before + 1 : following])
    return hidden


def readable(model: Denoiser, source: Sequence[int]) -> str:
    """A source as text, with ``___`` for each mask."""
    cuts = [-1, *(i for i, token in enumerate(source) if token == model.mask_id), len(source)]
    return " ___".join(model.decode(source[a + 1 : b]).rstrip() for a, b in itertools.pairwise(cuts)).strip()


@torch.inference_mode()
def losses(
    model: Denoiser, sources: Sequence[list[int]], targets: Sequence[list[int]], roles: Sequence[str] = ROLES
) -> Float[np.ndarray, "role texts"]:
    """Cross-entropy (nats per token) of each target and its end given its source, by role."""
    per_token = np.zeros((len(roles), len(targets)))
    few = TARGETS // (4 * len(roles))  # logits of whole targets are large
    for rows in tokens.by_length(targets, few):
        sums = model.surprise(roles, [sources[i] for i in rows], [targets[i] for i in rows])
        per_token[:, rows] = sums.T.cpu().numpy() / np.array([len(targets[i]) + 1 for i in rows])
    return per_token


@torch.inference_mode()
def write(
    model: Denoiser, sources: Sequence[list[int]], sentences: Sequence[Sentence]
) -> list[list[list[int]]]:
    """What the base model says at each blank, writing greedily and anchored, given each source."""
    said: list[list[list[int]]] = [[] for _ in sources]
    for rows in tokens.by_length(sources, TARGETS):
        scripts = [Script(sources[i], sentences[i], model, anchored=True) for i in rows]
        base = Reader(BASE, 1.0, [sources[i] for i in rows])
        rewriter.write(model, scripts, [base])
        for i, script in zip(rows, scripts, strict=True):
            said[i] = script.answers
    return said


@torch.inference_mode()
def copies(model: Denoiser, sentences: Sequence[Sentence]) -> list[bool]:
    """Whether the base model, reading each text intact and writing freely and greedily, returns it exactly.

    It does if after every beginning of the text the next token is the likeliest: one pass instead of one per
    token.
    """
    expected = [
        (i, t, token)
        for i, sentence in enumerate(sentences)
        for t, token in enumerate([*sentence.ids, model.end_id])
    ]
    banned = [mark for mark in model.marks if mark != model.end_id]
    copied, done = [True] * len(sentences), 0
    for [logits] in model.next_logits(
        (BASE,), [sentences[i].ids for i, _, _ in expected], [sentences[i].ids[:t] for i, t, _ in expected]
    ):
        logits[:, banned] = -torch.inf
        for (i, _, token), likeliest in zip(expected[done:], logits.argmax(-1).tolist(), strict=False):
            copied[i] &= token == likeliest
        done += len(logits)
    return copied


@dataclass(frozen=True)
class Restored:
    """What the experts made of some texts, one number per text.

    Parameters
    ----------
    loss
        Per token of the text, 30 % of whose words were masked, by role (nats).
    copied
        1 where the base adapter, writing freely, returned the intact text exactly.
    blanks, exact
        Blanks of the masked text, and how many of them the base adapter filled with exactly what they hide.
    elsewhere
        How many of the same answers are right for the blanks of the next text (control).
    """

    loss: dict[str, Float[np.ndarray, "texts"]]
    copied: Float[np.ndarray, "texts"]
    blanks: Float[np.ndarray, "texts"]
    exact: Float[np.ndarray, "texts"]
    elsewhere: Float[np.ndarray, "texts"]


def measure(experts: Experts, texts: Sequence[str], seed: int) -> Restored:
    """Losses, exact copies and exact spans of some texts, from the store or measured now."""
    model, masked = experts.denoiser, corrupt(experts.denoiser, texts, seed)
    sentences, sources, hidden = (list(column) for column in zip(*masked, strict=True))
    intact = [sentence.ids for sentence in sentences]
    copied = kept(experts, texts, "copies", lambda: copies(model, sentences))
    answers = kept(experts, texts, f"spans {seed}", lambda: write(model, sources, sentences))
    loss = kept(experts, texts, f"losses {seed}", lambda: losses(model, sources, intact).tolist())
    return Restored(
        loss={role: np.array(row) for role, row in zip(ROLES, loss, strict=True)},
        copied=np.array(copied, dtype=float),
        blanks=np.array([len(h) for h in hidden], dtype=float),
        exact=_right(answers, hidden),
        elsewhere=_right(answers[1:] + answers[:1], hidden),
    )


def _right(answers: list[list[list[int]]], hidden: list[list[list[int]]]) -> Float[np.ndarray, "texts"]:
    """Number of blanks per text that are filled with what they hide; too few answers are given in turn."""
    both = zip(answers, hidden, strict=True)
    return np.array([sum(a[k % len(a)] == span for k, span in enumerate(h)) for a, h in both], dtype=float)


def kept(experts: Experts, texts: Sequence[str], what: str, make: Callable[[], Any]) -> Any:
    """What experts make of some texts (JSON-able), from the store or made now."""
    key = {"experts": experts.fingerprint, "texts": store.key_of({"texts": list(texts)}), "what": what}
    return store.kept("restored", key, make)
