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
from typing import NamedTuple

import pandas as pd

from companion import neardup, public

MASKED_SHARE = 0.3  # of the words, as in BART (Lewis et al., 2020)
SPAN = 3.0  # mean words of a span (Poisson)
INTACT_SHARE = 0.4  # of the inputs, so that the denoiser learns to leave alone what has no blank
MAX_WORDS, MAX_CHARACTERS = 45, 300
SHARED = 0.5  # of the words of a pair, at least
DIFFERING_SHARE = 0.5  # of the places where a pair, or two classes, differ that are masked whatever the noise does: they carry the lesson
ANCHORS = 3  # pairs for each harmless sentence that both experts restore alike
TELLING = 2.0  # standard errors from which a word counts as more frequent in one class


def balanced(split: str, seed: int = 0) -> pd.DataFrame:
    """Sentences of both classes (text, label, source), as many of each in every cell of source and style.

    Sources: ParaDetox (both sides), Jigsaw, Social Bias Frames, DynaHate; Civil Comments are all
    toxic and stand against Jigsaw's comments. Rows near evaluation rows are not among them.
    """
    rows = pd.concat([public.labelled(), _civil()], ignore_index=True)
    rows = rows[~neardup.near_duplicates(rows.text, of=pd.Series(public.microaggressions("eval")))]
    rows = rows[(rows.split == split) & (rows.text.str.split().str.len() <= MAX_WORDS) & (rows.text.str.len() <= MAX_CHARACTERS)]
    rows = rows.assign(text=rows.text.str.replace(r"\s+", " ", regex=True), cell=rows.source.replace("civil", "jigsaw") + rows.text.map(style))
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
    found = [(a, b) for a, b in both if a in known and b in known and style(a).split()[-3:] == style(b).split()[-3:] and SHARED <= _shared(a, b) < 1]
    alike = balanced(split, seed)
    harmless = alike[(alike.label == 0) & (alike.source != "paradetox")].text.tolist()[: len(found) // ANCHORS]
    return random.Random(seed).sample(found + [(text, text) for text in harmless], len(found) + len(harmless))


def _shared(a: str, b: str) -> float:
    """Share of words in common, in their order."""
    return sum(block.size for block in difflib.SequenceMatcher(None, a.split(), b.split(), autojunk=False).get_matching_blocks()) / max(
        len(a.split()), len(b.split())
    )


def style(text: str) -> str:
    """What two classes must share: words in steps of four, how the text begins and ends, and its casing."""
    first = "upper" if text[:1].isupper() else "lower" if text[:1].islower() else "other"
    last = "stop" if text[-1:] in ".!?" else "word" if text[-1:].isalnum() else "other"
    case = "upper" if text.isupper() else "lower" if text.islower() else "mixed"
    return f"{(len(text.split()) - 1) // 4} {first} {last} {case}"


class Noise(NamedTuple):
    """Which words are gone, and before which words a mask stands."""

    gone: list[bool]
    starts: set[int]

    def on(self, words: Sequence[Sequence[int]], mask: int) -> list[int]:
        """Token ids of a text under this noise."""
        found = []
        for i, word in enumerate(words):
            found += [mask] if i in self.starts else []
            found += [] if self.gone[i] else word
        return found


class Level(NamedTuple):
    """How much noise: bounds of the share of words that are masked (drawn anew for each text), and the share of texts left intact."""

    low: float
    high: float
    intact: float


USUAL = Level(MASKED_SHARE, MASKED_SHARE, INTACT_SHARE)
VARIED = Level(0.0, 0.4, 0.0)  # from a word or two, as in scoring, to so many that the context says little about the class


def drawn(n: int, noise: random.Random, level: Level = USUAL) -> Noise:
    """Text infilling of ``n`` words: spans, Poisson(3) long, give way to one mask each until 30 % (or as ``level`` says) are gone.

    A span of length 0 puts a mask between two words. Source: Lewis et al. (2020), section 2.2; MaRCo, appendix A.
    """
    gone, starts = [False] * n, set()
    if noise.random() < level.intact:
        return Noise(gone, starts)
    budget = max(1, round(noise.uniform(level.low, level.high) * n))
    while budget > 0:
        length = min(_poisson(noise), budget)
        start = noise.randrange(n - length + 1)
        if any(gone[start : start + length]) or start in starts:
            budget -= 1 if length == 0 or noise.random() < 0.1 else 0  # crowded: give up in the end
            continue
        gone[start : start + length] = [True] * length
        starts.add(start)
        budget -= max(length, 1)
    return Noise(gone, starts)


def infilled(words: Sequence[Sequence[int]], mask: int, noise: random.Random, level: Level = USUAL, differing: Sequence[int] = ()) -> list[int]:
    """A text, given as the token ids of each word, under fresh noise (:func:`drawn`); of the words at ``differing`` half go besides."""
    return _hiding(drawn(len(words), noise, level), differing, noise).on(words, mask)


def _hiding(plan: Noise, differing: Sequence[int], noise: random.Random) -> Noise:
    """The same noise with a mask on about ``DIFFERING_SHARE`` of some words that it leaves."""
    for i in differing:
        if noise.random() < DIFFERING_SHARE and not plan.gone[i]:
            plan.gone[i] = True
            plan.starts.add(i)
    return plan


def infilled_pair(
    first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], mask: int, noise: random.Random, level: Level = USUAL
) -> tuple[list[int], list[int]]:
    """Two versions of a sentence under the same noise: shared words go together, and so does what stands in each other's place."""
    steps = difflib.SequenceMatcher(None, [tuple(w) for w in first], [tuple(w) for w in second], autojunk=False).get_opcodes()
    units: list[tuple[list[int], list[int]]] = []
    differing = []
    for kind, a, b, c, d in steps:
        if kind == "equal":
            units += [(list(word), list(word)) for word in first[a:b]]
        else:
            differing.append(len(units))
            units.append(([t for word in first[a:b] for t in word], [t for word in second[c:d] for t in word]))
    plan = _hiding(drawn(len(units), noise, level), differing, noise)
    return plan.on([u[0] for u in units], mask), plan.on([u[1] for u in units], mask)


def telling(toxic: Sequence[str], non_toxic: Sequence[str]) -> frozenset[str]:
    """Words (lower case) that are more frequent in the texts of one class: log odds of at least ``TELLING`` standard errors.

    With the counts of both classes together as an informative prior, so that rare words must be much more frequent. Source: Monroe et al. (2008), section 3.3.
    """
    counts = [Counter(word for text in some for word in set(re.findall(r"\w+(?:['’]\w+)*", text.lower()))) for some in (toxic, non_toxic)]
    prior, found = counts[0] + counts[1], set()
    totals = [sum(count.values()) + sum(prior.values()) / 10 for count in counts]
    for word, p in prior.items():
        a, b = (count[word] + p / 10 for count in counts)  # a tenth of the prior: a weak one
        odds = math.log(a / (totals[0] - a)) - math.log(b / (totals[1] - b))
        if abs(odds) >= TELLING * math.sqrt(1 / a + 1 / b):
            found.add(word)
    return frozenset(found)


def _poisson(noise: random.Random) -> int:
    """A draw from Poisson(3): arrivals of an exponential clock within one unit of time."""
    count, clock = 0, noise.expovariate(SPAN)
    while clock < 1:
        count, clock = count + 1, clock + noise.expovariate(SPAN)
    return count


def _civil() -> pd.DataFrame:
    """Toxic Civil Comments of the MaRCo repository; the rows have no split of their own: hash and dev rule as for the others."""
    texts = pd.read_csv(public.fetch("marco/civil_toxic.csv")).comment_text.dropna().str.strip()
    texts = texts[texts.str.len() > 0].drop_duplicates()
    split = ["dev" if public.text_hash(text) % 10 == 1 else "train" for text in texts]
    rows = pd.DataFrame({"text": texts, "label": 1, "source": "civil", "split": split})
    known = public.labelled()
    return rows[~neardup.near_duplicates(rows.text, of=known.text[known.split != "train"])]
