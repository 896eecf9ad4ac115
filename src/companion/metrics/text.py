"""Metrics that need the words of a text only: F1, repetition."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from torch import Tensor


def word_list(text: str) -> list[str]:
    """Lower-cased words without punctuation."""
    return re.findall(r"\w+", text.lower())


def f1(prediction: str, reference: str) -> float:
    """Unigram F1 of a continuation against the reference continuation (bag of words; prompt excluded)."""
    p, r = Counter(word_list(prediction)), Counter(word_list(reference))
    common = (p & r).total()
    return 2 * common / (p.total() + r.total()) if common else 0.0


def repetition(ids: Sequence[int], n: int = 2) -> float:
    """1 − distinct n-grams / n-grams of one continuation (0: nothing repeats; 0 if shorter than n)."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def says_again(text: str, n: int = 4) -> bool:
    """Whether a text has a run of n words twice."""
    words = word_list(text)
    runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(runs)) < len(runs)


def continuation_ids(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Rows of generated ids without what follows the end."""
    return [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
