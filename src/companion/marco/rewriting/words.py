"""Words of a sentence and the tokens that spell them.

Words are runs of letters and digits with what joins them (``don't``, ``f***``, ``well-known``);
links, mentions, hashtags, emoji and punctuation are words of their own kind that masking leaves alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from companion.marco.denoisers.protocol import Denoiser

WORD = re.compile(
    r"(?P<kept>https?://\S+|www\.\S+|[@#]\w+|&\w+;)"  # links, mentions, hashtags, entities
    r"|(?P<plain>\w+(?:['’*@$!-]+\w+)*\**)"  # a word, also with a censored or joined middle
    r"|(?P<mark>[^\w\s]+)"  # punctuation and emoji
)

# scikit-learn's list also holds some nouns, verbs and adjectives, which are content here
CONTENT = """
    amount bill bottom call cry describe detail empty fill find fire found front full interest mill move name
    serious show side sincere system thick thin top
"""
FUNCTION_WORDS = (ENGLISH_STOP_WORDS - frozenset(CONTENT.split())) | {"ca", "did", "does", "wo"}
ENDING = re.compile(r"n?['’][a-z]+$")  # of a contraction


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

    def masked(self, chosen: Sequence[int], mask_id: int) -> list[int]:
        """Token ids with one mask in the place of each chosen word (indices into ``words``)."""
        first = {self.words[i].tokens.start for i in chosen}
        gone = {t for i in chosen for t in self.words[i].tokens}
        ids = []
        for t, token in enumerate(self.ids):
            ids += [mask_id] if t in first else [] if t in gone else [token]
        return ids

    @property
    def content(self) -> list[int]:
        """Indices of the words that may be masked, without function words (``you're``, ``don't``)."""
        spelled = [(j, self.spelling(j).lower()) for j, word in enumerate(self.words) if word.maskable]
        return [j for j, word in spelled if not FUNCTION_WORDS & {word, ENDING.sub("", word)}]

    def spelling(self, j: int) -> str:
        """The characters of word ``j``."""
        return self.text[self.words[j].start : self.words[j].end]


def split(denoiser: Denoiser, text: str) -> Sentence:
    """Split a text into words. A token belongs to the word with most of its characters.

    Words without a token are dropped.
    """
    encoded = denoiser.encode(text)
    words, at = [], 0
    for match in WORD.finditer(text):
        while at < len(encoded.spans) and encoded.spans[at][1] <= match.start():
            at += 1
        stop = at
        while stop < len(encoded.spans) and encoded.spans[stop][0] < match.end():
            stop += 1
        if stop > at:
            words.append(Word(match.start(), match.end(), range(at, stop), match.lastgroup == "plain"))
        at = stop
    return Sentence(text, encoded.ids, words)
