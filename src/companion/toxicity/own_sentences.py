"""Sentences written for the book: pairs of frames, harmless and toxic, whose slots are filled at random.

A line of ``data/scorer/own/{train,dev}.txt`` is ``category | harmless || toxic``. The two sides are close to
each other, so that neither the name of a group nor quotation marks, *not* or profanity give the label away.
Slots: ``{A} {s} {S} {P} {topic}`` name a group (adjective, noun, noun with article, plural, abstraction),
``{TOX}`` is another frame's toxic sentence to be quoted, the others are filled from
``{train,dev}_words.toml``.
"""

from __future__ import annotations

import random
import re
import tomllib
from dataclasses import dataclass

import pandas as pd

from companion.toxicity import groups

NOUNS = {
    "train": (
        ["person", "man", "woman", "friend", "student", "neighbour", "girl", "guy"],
        ["people", "men", "women", "students", "folks", "families", "neighbours", "immigrants"],
    ),
    "dev": (["person", "man", "woman", "colleague", "lad"], ["people", "men", "women", "colleagues"]),
}
OPENINGS = [
    "Honestly, ",
    "lol ",
    "tbh ",
    "Well, ",
    "So, ",
    "I mean, ",
    "Look, ",
    "Today: ",
    "RT ",
    "FYI: ",
    "Update: ",
    "My view: ",
    "Seriously, ",
]
ENDINGS = [" lol", " :)", " haha", "!!", " ...", " right?", " I think.", " That's all."]


@dataclass(frozen=True)
class Frame:
    """One pair: its number in the file, its category and both sides."""

    number: int
    category: str
    sides: tuple[str, str]


def frames(part: str) -> list[Frame]:
    """The pairs of ``train`` or ``dev``."""
    found = []
    for number, line in enumerate((groups.OWN / f"{part}.txt").read_text(encoding="utf-8").splitlines()):
        category, sides = line.split("|", 1)
        harmless, toxic = sides.split("||")
        found.append(Frame(number, category.strip(), (harmless.strip(), toxic.strip())))
    return found


class Writer:
    """Fills frames, reproducibly; of ``train`` frames also with varied openings and endings."""

    def __init__(self, part: str, chosen: list[Frame], seed: int) -> None:
        self.part, self.frames, self.random = part, chosen, random.Random(seed)
        text = (groups.OWN / f"{part}_words.toml").read_text(encoding="utf-8")
        self.words: dict[str, list[str]] = tomllib.loads(text)
        self.quotable = [
            f.sides[1]
            for f in chosen
            if f.category in ("trait", "opinion") and re.search(r"\{[AP]\}", f.sides[1])
        ]

    def rows(self, per_frame: int, named: list[str] | None = None) -> pd.DataFrame:
        """Columns text, label, category, frame, group; ``named`` limits the adjectives to a list."""
        rows = []
        for frame in self.frames:
            for _ in range(per_frame):
                for label, side in enumerate(frame.sides):
                    group = self.random.choice(named) if named else None
                    text = self._varied(self.filled(side, group))
                    rows.append((text, label, frame.category, frame.number, group))
        return pd.DataFrame(rows, columns=["text", "label", "category", "frame", "group"])

    def filled(self, frame: str, group: str | None = None) -> str:
        """One sentence from a frame; ``group`` fixes the adjective."""
        for _ in range(3):  # a quoted frame has slots of its own, and these may have some
            frame = re.sub(r"\{(\w+)\}", lambda found: self._slot(found[1], group), frame)
        text = groups.with_articles(frame)
        if text[0].islower() and self.random.random() < 0.5:
            return text
        return re.sub(r"(^|[.!?] )([a-z])", lambda m: m[1] + m[2].upper(), text)

    def _slot(self, slot: str, group: str | None) -> str:
        pick = self.random.choice
        match slot:
            case "A":
                return group or groups.drawn("adjective", self.random)
            case "P":
                return self._people(True, group)
            case "s":
                return self._people(False, group)
            case "S":
                return "a " + self._people(False, group)  # the article is mended when all is filled
            case "topic":
                return groups.drawn("topic", self.random)
            case "TOX":
                return self.filled(pick(self.quotable), group).rstrip(".").replace('"', "")
            case "a_bad" | "a_insult":
                return "a " + pick(self.words[slot[2:]])
            case "goodadj":
                return pick([word for word in self.words["good"] if " " not in word])
        return pick(self.words[slot])

    def _people(self, plural: bool, group: str | None) -> str:
        nouns = NOUNS[self.part][plural]
        if group or self.random.random() < 0.55:
            noun = nouns[0] if self.random.random() < 0.5 else self.random.choice(nouns)
            return f"{group or groups.drawn('adjective', self.random)} {noun}"
        return groups.drawn("plural" if plural else "singular", self.random)

    def _varied(self, text: str) -> str:
        chance, pick = self.random.random, self.random.choice
        if chance() < 0.25:
            text = text.lower()
        if chance() < 0.3 and text.endswith("."):
            text = text[:-1]
        if chance() < 0.08:
            text = text.replace("'", "")
        if self.part == "train" and chance() < 0.12:
            text = pick(OPENINGS) + text
        if self.part == "train" and chance() < 0.06:
            text += pick(ENDINGS)
        return text
