"""Training text of the experts, and the noise they learn to undo.

An expert must differ from its anti-expert in toxicity and in nothing else. So every source gives
both classes in equal numbers, matched in length, casing and punctuation: without that the two
disagree most on how a sentence begins, whatever it says.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pandas as pd

from companion import neardup, public

MASKED_SHARE = 0.3  # of the words, as in BART (Lewis et al., 2020)
SPAN = 3.0  # mean words of a span (Poisson)
INTACT_SHARE = 0.2  # of the inputs, so that the denoiser learns to leave alone what has no blank
MAX_WORDS, MAX_CHARACTERS = 45, 300


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


def style(text: str) -> str:
    """What two classes must share: words in steps of four, how the text begins and ends, and its casing."""
    first = "upper" if text[:1].isupper() else "lower" if text[:1].islower() else "other"
    last = "stop" if text[-1:] in ".!?" else "word" if text[-1:].isalnum() else "other"
    case = "upper" if text.isupper() else "lower" if text.islower() else "mixed"
    return f"{(len(text.split()) - 1) // 4} {first} {last} {case}"


def infilled(words: Sequence[Sequence[int]], mask: int, noise: random.Random) -> list[int]:
    """Text infilling: spans of words, Poisson(3) long, give way to one mask each until 30 % are gone.

    ``words`` holds the token ids of each word. A span of length 0 puts a mask between two words.
    Source: Lewis et al. (2020), section 2.2; MaRCo, appendix A.
    """
    if noise.random() < INTACT_SHARE:
        return [token for word in words for token in word]
    gone, starts = [False] * len(words), set()
    budget = max(1, round(MASKED_SHARE * len(words)))
    while budget > 0:
        length = min(_poisson(noise), budget)
        start = noise.randrange(len(words) - length + 1)
        if any(gone[start : start + length]) or start in starts:
            budget -= 1 if length == 0 or noise.random() < 0.1 else 0  # crowded: give up in the end
            continue
        gone[start : start + length] = [True] * length
        starts.add(start)
        budget -= max(length, 1)
    found = []
    for i, word in enumerate(words):
        found += [mask] if i in starts else []
        found += [] if gone[i] else word
    return found


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
