"""Show toxic text considerately: masked by default."""

from __future__ import annotations

import re

import pandas as pd
from pandas.io.formats.style import Styler

# Stems of the words that are masked. Shown text is for illustration; scorers always see the original.
STEMS = (
    "fuck|shit|cunt|bitch|bastard|asshole|arse|ass|dick|cock|prick|pussy|whore|slut|piss|wank|twat|bollock|crap|tits|damn|"
    "nigg|fag|retard|tranny|kike|spic|chink"
)
_WORD = re.compile(rf"\b(\w*?)({STEMS})(\w*)", re.IGNORECASE)
_SHORT = {"ass", "arse", "cock", "dick", "tits", "spic", "crap", "damn", "fag", "prick"}  # stems that harmless words contain


def mask(text: str) -> str:
    """Replace all but the first letter of strong words by asterisks (``f***``)."""

    def hide(found: re.Match) -> str:
        before, stem, after = found.groups()
        if stem.lower() in _SHORT and (before or (after and after.lower() not in {"s", "es", "ing", "hole", "holes", "ed", "it", "gots", "got"})):
            return found.group()
        return before + stem[0] + "*" * (len(stem) - 1) + after

    return _WORD.sub(hide, text)


def samples(rows: pd.DataFrame) -> Styler:
    """A table of texts, masked, without an index, aligned to the left."""
    masked = rows.reset_index(drop=True).map(lambda cell: mask(cell) if isinstance(cell, str) else cell)
    return masked.style.hide(axis="index").set_properties(**{"text-align": "left"})
