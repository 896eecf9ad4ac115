"""Does a rewrite still speak of whom the original spoke of? Words for groups, and what became of them.

A method can lower toxicity by no longer mentioning a group at all. Whether a mention survives is
therefore set against other content words of the same sentences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from companion.marco.rewriting.words import FUNCTION_WORDS
from companion.metrics.text import word_list

# Plain words by which people name groups; slurs are no mention that should survive.
_GROUPS = """
    african africans american americans arab arabs asian asians australian bisexual black blacks blind boy
    boys british brown catholic catholics chinese christian christians deaf disabled european elderly
    female females feminist feminists french gay gays german girl girls hindu hindus hispanic immigrant
    immigrants indian indians irish islam islamic italian jamaican japanese jew jewish jews korean lady
    ladies latino latinos lesbian lesbians male males man men mexican mexicans migrant migrants mother
    mothers mum muslim muslims nigerian old pakistani poor queer refugee refugees romani russian sikh
    somali straight tourists transgender trans vegan vegans wheelchair white whites wife woman women young
"""
GROUPS = frozenset(_GROUPS.split())


@dataclass(frozen=True)
class Survival:
    """Per sentence: how many words it has of a kind, and how many of them its rewrite still has."""

    kept: Float[np.ndarray, "texts"]
    of: Float[np.ndarray, "texts"]


def survival(
    originals: Sequence[str], rewrites: Sequence[str], terms: Sequence[str] | None = None
) -> tuple[Survival, Survival]:
    """Words for groups, and other content words of the sentences that have such words (the control).

    ``terms`` adds words that are known to name a group in each sentence; only what is in the sentence counts.
    """
    rows = []
    for original, rewrite, term in zip(originals, rewrites, terms or [""] * len(originals), strict=True):
        words, left = set(word_list(original)), set(word_list(rewrite))
        named = words & (GROUPS | set(word_list(term)))
        others = {w for w in words - named - FUNCTION_WORDS if re.fullmatch(r"[^\W\d_]{3,}", w)}
        if named:
            rows.append((len(named & left), len(named), len(others & left), len(others)))
    kept, of, others_kept, others_of = np.array(rows, dtype=float).reshape(-1, 4).T
    return Survival(kept, of), Survival(others_kept, others_of)
