"""Text as a reader sees it: what disguises a word without changing its look is undone before scoring."""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache

from confusable_homoglyphs import confusables

# Of three or more equal letters two stay: "sooo" and "soooo" are one word, "too" is another than "to".
_RUN = re.compile(r"([^\W\d_])\1{2,}", re.IGNORECASE)


def normalised(text: str) -> str:
    """HTML entities resolved, format characters dropped, NFKC, look-alike letters made Latin, runs shortened.

    Only a letter that stands in a word with Latin ones becomes Latin: Greek or Russian text stays what it is.
    Digits for letters are left to the model.
    """
    if text.isascii() and "&" not in text:
        return _RUN.sub(r"\1\1", text)
    plain = "".join(c for c in html.unescape(text) if unicodedata.category(c) != "Cf")
    plain = unicodedata.normalize("NFKC", plain)
    if not plain.isascii():
        plain = re.sub(r"\w+", lambda word: _latin_word(word.group()), plain)
    return _RUN.sub(r"\1\1", plain)


def _latin_word(word: str) -> str:
    if word.isascii():
        return word
    letters = [_latin(c) for c in word]
    mixed = any(c.isascii() and c.isalpha() for c in word)
    return "".join(new or old for new, old in zip(letters, word, strict=True)) if mixed else word


@lru_cache(maxsize=4096)
def _latin(character: str) -> str | None:
    """The Latin letter that a letter of another script looks like."""
    if character.isascii() or unicodedata.name(character, "").startswith("LATIN"):
        return None
    found = confusables.is_confusable(character, preferred_aliases=["latin"], greedy=True)
    homoglyphs = [h["c"] for entry in found or [] for h in entry["homoglyphs"]]
    like = next((c for c in homoglyphs if len(c) == 1 and c.isascii() and c.isalpha()), None)
    return "I" if like == "l" and character.isupper() else like  # the library has one stroke for both
