"""Training text of base and experts, and the noise they learn to undo.

An expert must differ from its anti-expert in toxicity and in nothing else. The base learns from
every source, both classes in equal numbers, matched in length, casing and punctuation. The experts
learn from two versions of the same sentences, with the same noise: what both versions share teaches
both the same, so that no chance difference of two trainings stands between them.
"""

from __future__ import annotations

import difflib
import math
import random
import re
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from companion.data import near_duplicates, public

MAX_WORDS, MAX_CHARACTERS = 45, 300
SHARED = 0.5  # of the words of a pair, at least
ANCHORS = 3  # pairs for each harmless sentence that both experts restore alike
TELLING = 2.0  # standard errors from which a word counts as more frequent in one class


def balanced(split: str, seed: int = 0) -> pd.DataFrame:
    """Sentences of both classes (text, label, source), as many of each in every cell of source and style.

    Sources: ParaDetox (both sides), Jigsaw, Social Bias Frames, DynaHate; Civil Comments are all
    toxic and stand against Jigsaw's comments. Rows near evaluation rows are not among them.
    """
    rows = pd.concat([public.labelled(), _civil()], ignore_index=True)
    rows = rows[~near_duplicates.near_duplicates(rows.text, of=pd.Series(public.microaggressions("eval")))]
    rows = rows[
        (rows.split == split)
        & (rows.text.str.split().str.len() <= MAX_WORDS)
        & (rows.text.str.len() <= MAX_CHARACTERS)
    ]
    rows = rows.assign(
        text=rows.text.str.replace(r"\s+", " ", regex=True),
        cell=rows.source.replace("civil", "jigsaw") + rows.text.map(style),
    )
    rows = rows.sample(frac=1, random_state=seed)
    rank = rows.groupby(["cell", "label"]).cumcount()
    least = rows.groupby(["cell", "label"]).size().unstack(fill_value=0).min(axis=1)
    return rows[rank < rows.cell.map(least)].drop(columns="cell").reset_index(drop=True)


def pairs(split: str, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs (toxic, non-toxic) for expert and anti-expert, in random order.

    ParaDetox sentences with their neutral version, if both begin and end alike and share half of their
    words; and for every few of them a harmless sentence of another source with itself.
    """
    rows = public.labelled()
    rows = rows[rows.split == split]
    known = set(rows.text[rows.source == "paradetox"])
    sides = public.paradetox()
    both = zip(sides.text[sides.label == 1], sides.text[sides.label == 0], strict=True)
    versions = [
        (a, b)
        for a, b in both
        if {a, b} <= known and style(a).split()[-3:] == style(b).split()[-3:] and SHARED <= _shared(a, b) < 1
    ]
    alike = balanced(split, seed)
    harmless = alike.text[(alike.label == 0) & (alike.source != "paradetox")].tolist()
    rows = versions + [(text, text) for text in harmless[: len(versions) // ANCHORS]]
    return random.Random(seed).sample(rows, len(rows))


def _shared(a: str, b: str) -> float:
    """Share of words in common, in their order."""
    words = a.split(), b.split()
    blocks = difflib.SequenceMatcher(None, *words, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / max(map(len, words))


def style(text: str) -> str:
    """What two classes must share: words in steps of four, how the text begins and ends, and its casing."""
    first = "upper" if text[:1].isupper() else "lower" if text[:1].islower() else "other"
    last = "stop" if text[-1:] in ".!?" else "word" if text[-1:].isalnum() else "other"
    case = "upper" if text.isupper() else "lower" if text.islower() else "mixed"
    return f"{(len(text.split()) - 1) // 4} {first} {last} {case}"


def telling(toxic: Sequence[str], non_toxic: Sequence[str]) -> frozenset[str]:
    """Words (lower case) that are more frequent in one class: ``TELLING`` standard errors of log odds.

    With the counts of both classes together as an informative prior, so that rare words must be much more
    frequent. Source: Monroe et al. (2008), section 3.3.
    """
    counts = [
        Counter(word for text in some for word in set(re.findall(r"\w+(?:['’]\w+)*", text.lower())))
        for some in (toxic, non_toxic)
    ]
    prior, words = counts[0] + counts[1], set[str]()
    totals = [sum(count.values()) + sum(prior.values()) / 10 for count in counts]
    for word, p in prior.items():
        a, b = (count[word] + p / 10 for count in counts)  # a tenth of the prior: a weak one
        odds = math.log(a / (totals[0] - a)) - math.log(b / (totals[1] - b))
        if abs(odds) >= TELLING * math.sqrt(1 / a + 1 / b):
            words.add(word)
    return frozenset(words)


def _civil() -> pd.DataFrame:
    """Toxic Civil Comments of the MaRCo repository; they have no split of their own: hash and dev rule."""
    texts = pd.read_csv(public.fetch("marco/civil_toxic.csv")).comment_text.dropna().str.strip()
    texts = texts[texts.str.len() > 0].drop_duplicates()
    split = [public.dev_or_train(text) for text in texts]
    rows = pd.DataFrame({"text": texts, "label": 1, "source": "civil", "split": split})
    known = public.labelled()
    return rows[~near_duplicates.near_duplicates(rows.text, of=known.text[known.split != "train"])]
