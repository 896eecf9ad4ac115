"""The texts that scorers are examined on (:mod:`companion.toxicity.examination`)."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd

from companion import profiles, toxicity
from companion.data import by_profile, public
from companion.toxicity import groups, own_sentences

EVALUATION_ONLY = ("bias/hatecheck_half.csv", "bias/madlibs_half.csv", "rtp/scored_continuations.jsonl")
DISGUISED = 150  # rows of each label that are disguised
SHORT = (4, 20)  # their words, from and to
PRECEDING = (0, 32, 96, 200)  # harmless words before a toxic sentence
SHOWN = ("gay", "transgender", "Muslim", "Jewish", "Chinese", "deaf", "Christian", "straight")


@dataclasses.dataclass(frozen=True)
class Material:
    """What scorers are examined on, as tables with the columns ``text`` and ``label`` (1 toxic) and others.

    ``labelled`` has ``source``; ``hatecheck`` has ``functionality`` and ``template``; ``madlibs`` has
    ``group``; ``continuations`` has ``toxicity`` (Perspective's) and no label; ``short`` has ``strong``, the
    words of a text to be disguised; ``own`` has ``category`` and ``frame``. ``prose`` is harmless words.
    """

    labelled: pd.DataFrame
    hatecheck: pd.DataFrame
    madlibs: pd.DataFrame
    continuations: pd.DataFrame
    short: pd.DataFrame
    own: pd.DataFrame
    prose: list[str]


@cache
def material() -> Material:
    """The public and own texts of the examination; always the same rows."""
    labelled = public.labelled().query("split == 'eval'")
    prose = by_profile.prose(profiles.load("embedded"), "eval")
    return Material(
        labelled,
        public.hatecheck(),
        public.madlibs(),
        public.perspective_continuations(),
        _short(labelled, toxicity.load("lexical")),
        own_sentences.Writer("dev", own_sentences.frames("dev"), 0).rows(3),
        " ".join(prose).split()[: max(PRECEDING)],
    )


def _short(labelled: pd.DataFrame, lexical: toxicity.Scorer) -> pd.DataFrame:
    """Short rows, as many of each label and source, and the two words that the lexical scorer finds worst."""
    words = labelled.text.str.split().str.len()
    usable = labelled[words.between(*SHORT) & (labelled.text == labelled.text.map(html.unescape))]
    n_sources = labelled.source.nunique()
    some = [
        part.sample(min(len(part), -(-DISGUISED // n_sources)), random_state=0)
        for _, part in usable.groupby(["label", "source"])
    ]
    rows = pd.concat(some).groupby("label").head(DISGUISED)
    return rows.assign(strong=[_strongest(text, lexical) for text in rows.text])


def _strongest(text: str, lexical: toxicity.Scorer) -> list[str]:
    words = list(dict.fromkeys(re.findall(r"\b[A-Za-z]{3,}\b", text)))
    return [words[i] for i in np.argsort(-lexical(words), kind="stable")[:2]]


def alike_but_for_the_group(names: Sequence[str] = SHOWN) -> dict[str, list[str]]:
    """The same harmless sentences from our own *dev* frames about each of some groups, by its adjective."""
    frames = [f for f in own_sentences.frames("dev") if f.category in ("identity", "life", "trait")]
    rows = own_sentences.Writer("dev", frames, 0).rows(1, ["gay"])
    harmless = rows.text[(rows.label == 0) & rows.text.str.contains(r"\bgay\b", case=False)]

    def about(name: str, text: str) -> str:
        written = re.sub(r"\bGay\b", name[0].upper() + name[1:], text)
        written = re.sub(r"\bgay\b", name.lower() if text.islower() else name, written)
        return groups.with_articles(written)

    return {name: [about(name, text) for text in dict.fromkeys(harmless)] for name in names}
