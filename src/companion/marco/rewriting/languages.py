"""Is a text in another language than English? By its script, and by the small words that every sentence has.

The adapters read English. What they would do to another language is no rewrite, so such a text is left alone.
The lists hold frequent words; a text is taken for another language if it has more different words of one list
than English function words, and at least two. Single letters do not count: people space words out.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from functools import cache
from pathlib import Path

from companion.marco.rewriting.words import FUNCTION_WORDS

LETTERS = 0.5  # of a text in another script, from which it is no English


@cache
def small_words() -> dict[str, frozenset[str]]:
    """Frequent words of other languages."""
    lists = tomllib.loads(Path(__file__).with_name("small_words.toml").read_text(encoding="utf-8"))
    return {name: frozenset(words.split()) for name, words in lists.items()}


def other_language(text: str) -> str | None:
    """The language of a text that seems not to be English, ``"another script"``, or None.

    Examples
    --------
    >>> other_language("You are so stupid."), other_language("Du bist so ein Idiot, und das weißt du.")
    (None, 'German')
    """
    letters = [c for c in text if c.isalpha()]
    if letters and sum("LATIN" not in unicodedata.name(c, "") for c in letters) >= LETTERS * len(letters):
        return "another script"
    words = set(re.findall(r"[^\W\d_]{2,}(?:'[^\W\d_]+)?", text.lower().replace("’", "'")))
    english = len(words & FUNCTION_WORDS)
    hits = {name: len(words & small) for name, small in small_words().items()}
    likeliest = max(hits, key=lambda name: hits[name])
    return likeliest if hits[likeliest] > max(1, english) else None
