"""Words as people write them to get past a filter: in digits, spaced, with look-alike letters and so on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_LEET = str.maketrans("aeiostAEIOST", "431057431057")
_HOMOGLYPHS = str.maketrans("aceiopsxyACEOPX", "асеіорѕхуАСЕОРХ")  # the second row is Cyrillic
ZERO_WIDTH = "\u200b"

DISGUISES: dict[str, Callable[[str], str]] = {
    "leetspeak": lambda word: word.translate(_LEET),
    "spaced letters": " ".join,
    "homoglyphs": lambda word: word.translate(_HOMOGLYPHS),
    "zero-width characters": ZERO_WIDTH.join,
    "repeated letters": lambda word: re.sub(r"[aeiouy]", r"\g<0>" * 4, word, count=1, flags=re.IGNORECASE),
    "upper case": str.upper,
    "censored letters": lambda word: word[0] + re.sub(r"[aeiouy]", "*", word[1:], flags=re.IGNORECASE),
    "HTML entities": lambda word: "".join(f"&#{ord(c)};" for c in word),
}


def disguised(text: str, words: Sequence[str], name: str) -> str:
    """The text with each of some words in a disguise wherever it stands."""
    for word in words:
        text = re.sub(rf"\b{re.escape(word)}\b", lambda found: DISGUISES[name](found.group()), text)
    return text
