"""What other systems made of MaRCo's evaluation sentences; to be compared with, never to train or tune on.

The file has the rewrites of the authors' own BART experts, of BART experts that were trained anew, and of
Mistral-7B-Instruct, which was asked. Rows stay where they are; only what was measured on them is kept.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from companion import paths
from companion.data import public
from companion.errors import CompanionError
from companion.profiles import Profile

FILE = "marco/rewrites_val.tsv"
SYSTEMS = {
    "authors' BART": "marco_authors_bart",
    "retrained BART": "marco_retrained_bart",
    "Mistral 7B": "mistral_7b_instruct",
}
QUOTES = "\"“”'"


def rewrites(profile: Profile, name: str, originals: Sequence[str]) -> dict[str, list[str]]:
    """Rewrites of the sentences of one set, by system.

    None of embedded sentences, which nobody else has seen, and none where ``COMPANION_DATA`` lacks the file:
    it is derived from what its url has, and cannot be downloaded.

    Sentences are matched by letters and digits. Where ours stand in quotation marks and the file's do not,
    the rewrites get the same marks, or each would seem to have lost them.

    Raises
    ------
    CompanionError
        If a sentence is not in the file.
    """
    folder = os.environ.get("COMPANION_DATA")
    if profile.data != "public" or not folder or not Path(paths.absolute(folder), FILE).exists():
        return {}
    rows = pd.read_csv(public.fetch(FILE), sep="\t", keep_default_na=False, dtype=str, quoting=3)
    rows = rows[rows.set == name]
    at = {_key(text): i for i, text in zip(rows.index, rows.original, strict=True)}
    missing = sum(_key(text) not in at for text in originals)
    if missing:
        raise CompanionError(f"{missing} sentences of '{name}' are not in {FILE}: take the registered file.")
    found = [at[_key(text)] for text in originals]
    return {
        system: [
            _in_quotes_of(text, rows.original[i], rows[column][i])
            for text, i in zip(originals, found, strict=True)
        ]
        for system, column in SYSTEMS.items()
    }


def _key(text: str) -> str:
    return re.sub(r"\W", "", text.casefold())


def _in_quotes_of(ours: str, theirs: str, rewrite: str) -> str:
    """A rewrite with the quotation marks around our original that the other original lacks."""
    before = ours[: len(ours) - len(ours.lstrip(QUOTES))]
    after = ours[len(ours.rstrip(QUOTES)) :]
    if theirs.startswith(tuple(QUOTES)) or theirs.endswith(tuple(QUOTES)):
        return rewrite
    return f"{before}{rewrite}{after}"
