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
def _classes() -> dict[str, frozenset[str]]:
    """The classes of each word by its lower-case text: *Muslim* is an adjective and a noun."""
    found: dict[str, frozenset[str]] = {}
    for word in words():
        found[word.text.lower()] = found.get(word.text.lower(), frozenset()) | {word.form}
    return found


@cache
def _pattern() -> re.Pattern[str]:
    """A word for a group, with the article before it if there is one."""
    longest_first = sorted(_classes(), key=len, reverse=True)
    names = "|".join(map(re.escape, longest_first))
    return re.compile(rf"(?<![\w'])(an? )?({names})(?!\w)", re.IGNORECASE)


def named_in(text: str) -> list[str]:
    """The words for groups in a text, in lower case, in order."""
    return [found[2].lower() for found in _pattern().finditer(text)]


def spans(text: str) -> list[tuple[int, int]]:
    """Where the words for groups stand in a text: first character, and the one behind the last."""
    return [found.span(2) for found in _pattern().finditer(text)]


def drawn(form: str, generator: random.Random) -> str:
    """A word of one class: first a kind of group is drawn, then one of its words."""
    kinds = _by_kind(form)
    return generator.choice(kinds[generator.choice(sorted(kinds))])


@cache
def _by_kind(form: str, classes: frozenset[str] | None = None) -> dict[str, list[str]]:
    """Words of a class by kind of group; with ``classes`` only those that belong to just these."""
    kinds: dict[str, list[str]] = {}
    for word in words():
        if word.form == form and classes in (None, _classes()[word.text.lower()]):
            kinds.setdefault(word.kind, []).append(word.text)
    return kinds


def exchanged(text: str, generator: random.Random, *, ambiguous: bool) -> str | None:
    """The text with each group's name exchanged for another of its classes; None if that changes nothing.

    A word that occurs twice is exchanged for the same one, and the article before it is mended. ``ambiguous``
    says whether words that often mean something else (*old*, *black*, *straight*) are exchanged, too.
    """
    drawn_for: dict[str, str] = {}

    def other(found: re.Match) -> str:
        article, word = found[1] or "", found[2]
        if not ambiguous and word.lower() in _file()["ambiguous"]:
            return found.group()
        classes = _classes()[word.lower()]
        kinds = _by_kind(min(classes), classes)
        new = generator.choice(kinds[generator.choice(sorted(kinds))])
        new = drawn_for.setdefault(word.lower(), new)
        return with_articles(article + (new.lower() if word.islower() else new))

    new = _pattern().sub(other, text)
    return None if new.lower() == text.lower() else new


def neutral(text: str) -> str:
    """The text with each group's name replaced by one word: what reads it cannot know which group it was."""
    return _pattern().sub(lambda found: "a someone" if found[1] else "someone", text)


def with_articles(text: str) -> str:
    """*a* and *an* as the next word's first letter wants them."""
    return re.sub(r"\b([Aa])n? (?=(\w+))", lambda m: m[1] + ("n " if _vowel(m[2]) else " "), text)


def _vowel(word: str) -> bool:
    """Whether a word begins with the sound of a vowel: by its first letter, but for some beginnings."""
    if re.match(r"hour|honest|honou?r|heir", word, re.IGNORECASE):
        return True
    other = r"euro|ukr|uni(?![nm])|one\b|once|use|usual"
    return word[0].lower() in "aeiou" and not re.match(other, word, re.IGNORECASE)
