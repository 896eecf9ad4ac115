"""Near-duplicate texts, so that no evaluation row is half seen in training."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool

SHINGLE = 4  # words
OVERLAP = 0.5  # share of a text's shingles found in one other text


def words(text: str) -> list[str]:
    """Lower-cased words without punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


def shingles(text: str) -> set[tuple[str, ...]]:
    """Word 4-grams of a text; a shorter text is one shingle of all its words."""
    w = words(text)
    return {tuple(w[i : i + SHINGLE]) for i in range(max(1, len(w) - SHINGLE + 1))}


def near_duplicates(texts: Iterable[str], *, of: Iterable[str]) -> Bool[np.ndarray, "texts"]:
    """Mark the texts of which at least half the word 4-grams occur in one text of ``of``."""
    index: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, text in enumerate(of):
        for shingle in shingles(text):
            index[shingle].append(i)
    marks = []
    for text in texts:
        own = shingles(text)
        hits = Counter(i for shingle in own for i in index.get(shingle, ()))
        marks.append(bool(hits) and max(hits.values()) >= OVERLAP * len(own))
    return np.array(marks, dtype=bool)
