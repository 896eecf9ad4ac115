"""Data by profile: prompts, labelled comments, prose and preference pairs, in fixed parts.

The embedded data lies in ``data/`` (a card beside each file says how it was made); the public
data comes through :mod:`companion.data.public`. Both give the same columns, so chapters need not
know which they have.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from companion import paths
from companion.data import public
from companion.errors import CompanionError
from companion.profiles import Profile


def prompts(profile: Profile, split: str = "eval", limit: int | None = None) -> pd.DataFrame:
    """Prompts to continue: columns ``prompt`` and ``kind``.

    ``public``: the 1,199 challenge prompts are the evaluation part; train and dev prompts are
    the embedded ones, because every challenge prompt is an evaluation row.
    """
    if profile.data == "public" and split == "eval":
        rows = pd.DataFrame({"prompt": public.challenge_prompts(), "kind": "challenge"})
    else:
        rows = _part("prompts/prompts.jsonl", split)
    return spread(rows, profile.prompts if limit is None else limit)


def comments(profile: Profile, split: str) -> pd.DataFrame:
    """Labelled comments for the probe: columns ``text``, ``label`` (1 toxic), ``topic`` and ``group``.

    Rows of one ``group`` belong together (a toxic and a civil comment on the same thing) and must
    not be torn apart by cross-validation. ``public`` comments (Jigsaw) are matched in length:
    within each length decile both classes have equally many rows.
    """
    if profile.data == "public":
        rows = public.labelled(("jigsaw",)).query("split == @split")
        rows = rows[rows.text.str.split().str.len() <= 60].rename(columns={"source": "topic"})
        rows = length_matched(rows, profile.seed).assign(group=lambda r: range(len(r)))
    else:
        rows = _part("comments/comments.jsonl", split).rename(columns={"pair": "group"})
    share = {"train": 0.7, "dev": 0.1, "eval": 0.2}[split]
    return rows.head(round(profile.probe_comments * share)).reset_index(drop=True)


def prose(profile: Profile, split: str) -> list[str]:
    """Encyclopaedic paragraphs: ``eval`` and ``dev`` for perplexity and F1, ``train`` for PPLM prompts."""
    if profile.data == "public" and split != "train":
        return public.wikitext(split)
    articles = _part("prose/articles.jsonl", split).text
    return [paragraph for text in articles for paragraph in text.split("\n") if paragraph.strip()]


def sentences(paragraphs: list[str]) -> list[str]:
    """Sentences of at least 16 words: long enough to cut into a prompt and a reference."""
    cut = [s.strip() for p in paragraphs for s in re.split(r"(?<=[.!?])\s+(?=[A-Z])", p)]
    return [s for s in cut if len(s.split()) >= 16]


def openings(texts: list[str]) -> tuple[list[str], list[str]]:
    """Cut sentences into a prompt (the first half of the words) and the reference that follows."""
    cut = [(words := text.split(), round(len(words) / 2)) for text in texts]
    return [" ".join(words[:k]) for words, k in cut], [" ".join(words[k:]) for words, k in cut]


def toxic_sentences(profile: Profile, split: str) -> dict[str, pd.DataFrame]:
    """Sets of sentences to rewrite (column ``text``; embedded sets also ``neutral`` and ``term``), by name.

    ``embedded``: subtle and overt sentences. ``public``: the offensive rows of MaRCo's three sets.
    """
    if profile.data == "public":
        return public.rewriting_sets(split)
    return {kind: _part(f"sentences/{kind}.jsonl", split) for kind in ("subtle", "overt")}


def people() -> pd.DataFrame:
    """Harmless sentences that name people (columns ``text``, ``term``, ``kind``); for evaluation only."""
    return pd.read_json(shipped("sentences/groups.jsonl"), lines=True, dtype=False)


def spread(rows: pd.DataFrame, limit: int) -> pd.DataFrame:
    """``limit`` rows spread evenly over the table (all of them if 0)."""
    if limit and limit < len(rows):
        rows = rows.iloc[np.linspace(0, len(rows) - 1, limit).round().astype(int)]
    return rows.reset_index(drop=True)


def length_matched(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Draw equally many rows of both labels within each decile of word count, in random order."""
    words = rows.text.str.split().str.len()
    decile = pd.qcut(words.rank(method="first"), 10, labels=False)
    parts = []
    for _, part in rows.groupby(decile):
        n = part.label.value_counts().reindex([0, 1], fill_value=0).min()
        parts += [part[part.label == label].sample(n, random_state=seed) for label in (0, 1)]
    return pd.concat(parts).sample(frac=1, random_state=seed)


def shipped(name: str) -> Path:
    """The path of a file in ``data/``; a :class:`~companion.errors.CompanionError` if it is missing."""
    path = paths.DATA / name
    if not path.is_file():
        raise CompanionError(f"the embedded data file '{path}' is missing: restore it with git.")
    return path


def _part(name: str, split: str) -> pd.DataFrame:
    rows = pd.read_json(shipped(name), lines=True, dtype=False)
    return rows[rows.split == split].drop(columns="split").reset_index(drop=True)
