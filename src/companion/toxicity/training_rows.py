"""The rows that the two scorers are trained on: public, harvested, from talk pages, written for the book.

No row is seen by both scorers: public rows are dealt out by the hash of their text, own frames by their
number. Evaluation-only data is never read here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float

from companion.data import public
from companion.toxicity import groups, own_sentences
from companion.toxicity.normalise import normalised

# Of four quarters of all rows the first scorer gets three.
QUARTERS = {"embedded": (0, 1, 2), "second": (3,)}
# At most so many rows of each source; the small and subtle ones are taken whole.
MOST = {"sbf": 3000, "dynahate": 3000, "jigsaw": 3000, "paradetox": 3000}
# What each class of a source counts for in the loss, all its rows together; talk pages as a whole.
SHARE = {
    **{"sbf": 1.0, "dynahate": 1.0, "jigsaw": 1.0, "paradetox": 0.8},
    **{"harvest": 0.4, "talk": 0.8, "own": 1.8},
}
PER_FRAME = {"embedded": 5, "second": 10}
LONGEST = 300  # characters of a comment from which a mention is harvested

# Before such a noun a word for a group makes a mention.
PERSON = re.compile(
    r"\b(?:person|people|friends?|woman|women|man|men|guys?|kids?|child|children|famil(?:y|ies)|girls?|users?|"
    r"editors?|students?|teacher|wife|husband|brother|sister|dude|neighbor|boyfriend|girlfriend|singer|"
    r"player|actor|writer)\b"
)


def table(scorer: str, seed: int) -> pd.DataFrame:
    """Training rows of one scorer: text, label (in [0, 1]), source, weight (mean 1), exchanged (empty if the
    text names no group)."""
    train = dealt(public.labelled().query("split == 'train'"), scorer)
    some = [
        rows.sample(min(len(rows), MOST[source]), random_state=seed)
        for source, rows in train.groupby("source")
    ]
    frames = [f for f in own_sentences.frames("train") if f.number % 4 in QUARTERS[scorer]]
    own = own_sentences.Writer("train", frames, seed).rows(PER_FRAME[scorer])
    parts = [*some, harvested(train, seed), talk_pages(scorer, seed), own.assign(source="own")]
    rows = pd.concat(parts, ignore_index=True)[["text", "label", "source"]]
    rows["weight"] = weights(rows, SHARE)
    generator = random.Random(seed)
    rows["exchanged"] = [
        groups.exchanged(text, generator, ambiguous=source == "own") or ""
        for text, source in zip(rows.text, rows.source, strict=True)
    ]
    noisy = rows.source.isin(["jigsaw", "sbf", "dynahate", "paradetox"])
    rows["text"] = [
        disguised(text, generator) if some and generator.random() < 0.12 else text
        for text, some in zip(rows.text, noisy, strict=True)
    ]
    # The exchanged text stays without disguise: the pair asks for the same score with and without one.
    rows["text"], rows["exchanged"] = rows.text.map(normalised), rows.exchanged.map(normalised)
    return rows


def dealt(rows: pd.DataFrame, scorer: str) -> pd.DataFrame:
    """The rows that fall to one scorer, by the hash of their text."""
    return rows[[public.text_hash(text) // 100 % 4 in QUARTERS[scorer] for text in rows.text]]


def weights(rows: pd.DataFrame, share: Mapping[str, float]) -> Float[np.ndarray, "rows"]:
    """Sources by their share, classes balanced inside a source; soft labels count by the side of .5."""
    side = (rows.label >= 0.5).rename("side")
    cell = rows.groupby(["source", side]).text.transform("size").to_numpy(float)
    weight = rows.source.map(share).to_numpy(float) / cell
    even = rows.source.eq("talk").to_numpy()  # mostly harmless, and meant to stay so
    weight[even] = share.get("talk", 0.0) / max(even.sum(), 1)
    return weight / weight.mean()


def harvested(train: pd.DataFrame, seed: int, harmless: int = 900, toxic: int = 500) -> pd.DataFrame:
    """Comments with a word for a group put before a noun for a person; they keep their label."""
    generator, found = random.Random(seed), []
    usable = train[(train.text.str.len() < LONGEST) & train.text.str.contains(PERSON)]
    for label, most in ((0, harmless), (1, toxic)):
        part = usable[usable.label == label].sample(frac=1, random_state=seed)
        texts = [text for text in map(lambda t: mentioning(t, generator), part.text) if text]
        found += [(text, label, "harvest") for text in texts[:most]]
    return pd.DataFrame(found, columns=["text", "label", "source"])


def mentioning(text: str, generator: random.Random) -> str | None:
    """The text with a group named before its first noun for a person; None without one, or with a group."""
    noun = PERSON.search(text)
    if not noun or groups.named_in(PERSON.sub("", text)):
        return None
    word = groups.drawn("adjective", generator)
    return groups.with_articles(f"{text[: noun.start()]}{word} {text[noun.start() :]}")


def talk_pages(scorer: str, seed: int, most: int = 1200) -> pd.DataFrame:
    """Comments that name a group, high ones and others, with Perspective's score as a soft label."""
    rows = pd.read_csv(public.fetch("jigsaw/talk_pages.csv"), dtype={"text": str}).dropna(subset=["text"])
    rows = dealt(rows.assign(text=rows.text.str.strip()), scorer)
    rows = rows[rows.text.str.len().between(10, LONGEST)]
    named = rows[[bool(groups.named_in(text)) for text in rows.text]]
    high = rows[rows.api >= 0.3]
    rest = rows.drop(index=named.index.union(high.index)).sample(frac=1, random_state=seed)
    chosen = pd.concat([named, high, rest]).drop_duplicates("text")[:most]
    return chosen.rename(columns={"api": "score"}).assign(label=lambda t: t.score, source="talk")


_LEET = str.maketrans("aeiost", "@310$7")


def disguised(text: str, generator: random.Random) -> str:
    """One word of a text misspelt, spaced, in digits or with repeated letters, as people evade filters.

    Harmless texts are disguised as often as toxic ones: a disguise is no sign of either.
    """
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    for i in generator.sample(long, min(len(long), 1 + len(long) // 6)):
        word, at = words[i], generator.randrange(1, len(words[i]) - 1)
        words[i] = generator.choice(
            [
                word.translate(_LEET),
                " ".join(word),
                ".".join(word),
                word[:at] + word[at] * 3 + word[at + 1 :],
                word[:at] + word[at + 1 :],
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[:at] + "*" * len(word[at:-1]) + word[-1],
                word.upper(),
            ]
        )
    return " ".join(words)
