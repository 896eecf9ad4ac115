"""Words by which people name groups, and the exchange of one group's name for another's.

``data/scorer/own/groups.toml`` has the words: plain ones, no slurs.
"""

from __future__ import annotations

import random
import re
import tomllib
from functools import cache
from typing import NamedTuple

from companion import paths

OWN = paths.DATA / "scorer" / "own"
CLASSES = ("adjective", "singular", "plural", "topic")


class Word(NamedTuple):
    """A word for a group: its class (adjective, singular, plural, topic) and the kind of group it names."""

    text: str
    form: str
    kind: str


@cache
def words() -> tuple[Word, ...]:
    """All words, in the order of the file."""
    found = []
    for kind, entry in _file().items():
        if kind == "ambiguous":
            continue
        nouns = entry.get("nouns", {})
        lists = (entry["adjectives"], nouns, nouns.values(), entry.get("topics", []))
        for form, texts in zip(CLASSES, lists, strict=True):
            found += [Word(text, form, kind) for text in texts]
    return tuple(found)


@cache
def _file() -> dict:
    return tomllib.loads((OWN / "groups.toml").read_text(encoding="utf-8"))


@cache
def _by_text() -> dict[str, Word]:
    """Each word by its lower-case text; the first class that has it."""
    found: dict[str, Word] = {}
    for word in words():
        found.setdefault(word.text.lower(), word)
    return found


@cache
def _pattern() -> re.Pattern[str]:
    longest_first = sorted(_by_text(), key=len, reverse=True)
    return re.compile(rf"(?<![\w'])(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)


def named_in(text: str) -> list[str]:
    """The words for groups in a text, in lower case, in order."""
    return [found.group().lower() for found in _pattern().finditer(text)]


def drawn(form: str, generator: random.Random) -> str:
    """A word of one class: first a kind of group is drawn, then one of its words."""
    kinds = _by_kind(form)
    return generator.choice(kinds[generator.choice(sorted(kinds))])


@cache
def _by_kind(form: str) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for word in words():
        if word.form == form:
            kinds.setdefault(word.kind, []).append(word.text)
    return kinds


def exchanged(text: str, generator: random.Random, *, ambiguous: bool) -> str | None:
    """The text with each group's name exchanged for another of its class; None if that changes nothing.

    A word that occurs twice is exchanged for the same one. ``ambiguous`` says whether words that often mean
    something else (*old*, *black*, *straight*) are exchanged, too.
    """
    drawn_for: dict[Word, str] = {}

    def other(found: re.Match) -> str:
        word = _by_text()[found.group().lower()]
        if not ambiguous and found.group().lower() in _file()["ambiguous"]:
            return found.group()
        new = drawn_for.setdefault(word, drawn(word.form, generator))
        return new.lower() if found.group().islower() else new

    new = with_articles(_pattern().sub(other, text))
    return None if new.lower() == text.lower() else new


def neutral(text: str) -> str:
    """The text with each group's name replaced by one word: what reads it cannot know which group it was."""
    return _pattern().sub("someone", text)


def with_articles(text: str) -> str:
    """*a* and *an* as the next word's first letter wants them."""
    return re.sub(r"\b([Aa])n? (?=(\w+))", lambda m: m[1] + ("n " if _vowel(m[2]) else " "), text)


def _vowel(word: str) -> bool:
    return word[0].lower() in "aeiou" and not re.match(r"euro|ukr|uni|one|use", word, re.IGNORECASE)
