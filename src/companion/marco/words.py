"""Words of a sentence and the tokens that spell them.

Words are runs of letters and digits with what joins them (``don't``, ``f***``, ``well-known``);
links, mentions, hashtags, emoji and punctuation are words of their own kind that masking leaves alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from companion.marco.denoiser import Denoiser

WORD = re.compile(
    r"(?P<kept>https?://\S+|www\.\S+|[@#]\w+|&\w+;)"  # links, mentions, hashtags, entities
    r"|(?P<plain>\w+(?:['’*@$!-]+\w+)*\**)"  # a word, also with a censored or joined middle
    r"|(?P<mark>[^\w\s]+)"  # punctuation and emoji
)


class Word(NamedTuple):
    """A word: characters, the tokens that spell it, and whether it may be masked."""

    start: int
    end: int
    tokens: range
    maskable: bool


class Sentence(NamedTuple):
    """A text, its token ids and its words."""

    text: str
    ids: list[int]
    words: list[Word]

    def masked(self, chosen: Sequence[int], mask: int) -> list[int]:
        """Token ids with one mask in the place of each chosen word (indices into ``words``)."""
        first = {self.words[i].tokens.start for i in chosen}
        gone = {t for i in chosen for t in self.words[i].tokens}
        found = []
        for t, token in enumerate(self.ids):
            found += [mask] if t in first else [] if t in gone else [token]
        return found


def split(denoiser: Denoiser, text: str) -> Sentence:
    """Split a text into words. A token belongs to the word with most of its characters; words without a token are dropped."""
    encoded = denoiser.encode(text)
    found, at = [], 0
    for match in WORD.finditer(text):
        while at < len(encoded.spans) and encoded.spans[at][1] <= match.start():
            at += 1
        stop = at
        while stop < len(encoded.spans) and encoded.spans[stop][0] < match.end():
            stop += 1
        if stop > at:
            found.append(Word(match.start(), match.end(), range(at, stop), match.lastgroup == "plain"))
        at = stop
    return Sentence(text, encoded.ids, found)
