"""Rewrite texts of any length: in pieces of a sentence or so, put together again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from companion.lm import tokens
from companion.marco.rewriting.rewriter import Rewrite

PIECE = 30  # words: the adapters learned from sentences of up to 45, and one word at a time costs the square
LONG = 360  # bytes of a piece, hence tokens at most: in scripts without spaces there are no words to count
PIECES = 32  # rewritten at a time
LINE_BREAK = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")  # where str.splitlines breaks
_END = re.compile(r"[.!?…]['\")\]]*$")  # of a sentence, if space follows
_WIDE_END = re.compile(r"[。！？][」』”’）】]*$")  # of one that no space follows
# a word, or some of a long one
_PART = re.compile(r"\s*(?=\S)[^\s。！？]{0,40}(?:[。！？]{1,9}[」』”’）】]{0,9})?|\s+$")


@dataclass(frozen=True)
class Document:
    """A text and what became of it, piece by piece."""

    original: str
    text: str
    pieces: list[Rewrite]

    @property
    def masked(self) -> list[str]:
        """The words that were masked."""
        return [p.sentence.spelling(j) for p in self.pieces for j in p.masked]

    @property
    def scores(self) -> list[tuple[str, float | None]]:
        """Every word with its divergence in nats; None where nothing is ever masked."""
        return [
            (p.sentence.spelling(j), None if np.isnan(d) else float(d))
            for p in self.pieces
            for j, d in enumerate(p.divergence)
        ]


def cut(text: str) -> list[str]:
    """Cut a text after sentence ends, line breaks, and where a piece has ``PIECE`` words or ``LONG`` bytes.

    The pieces join to the text. Space at their ends is not rewritten, so it does not count.
    """
    pieces, words = [""], 0
    for part in _PART.findall(text):
        space = part[: len(part) - len(part.lstrip())]
        ended = space and (words == PIECE or _END.search(pieces[-1]) or LINE_BREAK.search(space))
        if words and (
            ended or _WIDE_END.search(pieces[-1]) or len((pieces[-1] + part).strip().encode()) > LONG
        ):
            pieces.append("")
            words = 0
        pieces[-1] += part
        words += bool(space) or not words
    return [piece for piece in pieces if piece]


def rewrite(
    rewriter: Callable[[list[str]], list[Rewrite]], texts: Iterable[str], *, progress: str | None = None
) -> list[Document]:
    """Rewrite texts, with a ``Rewriter`` or its like: as many come back, in order.

    Space at the ends of pieces stays as it is.
    """
    texts = tokens.checked(texts)
    pieces = [(i, piece) for i, text in enumerate(texts) for piece in cut(text)]
    rewrites: list[list[Rewrite]] = [[] for _ in texts]
    joined = [""] * len(texts)
    bar = tqdm(total=len(pieces), desc=progress, disable=progress is None, unit="sentence")
    for start in range(0, len(pieces), PIECES):
        some = pieces[start : start + PIECES]
        for (i, piece), new in zip(some, rewriter([piece.strip() for _, piece in some]), strict=True):
            before = piece[: len(piece) - len(piece.lstrip())]
            after = piece[len(piece.rstrip()) :] if piece.strip() else ""
            joined[i] += before + new.text + after
            rewrites[i].append(new)
        bar.update(len(some))
    bar.close()
    return [Document(*row) for row in zip(texts, joined, rewrites, strict=True)]
