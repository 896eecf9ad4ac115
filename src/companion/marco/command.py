"""``companion rewrite``: lines in, lines out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from companion import toxicity
from companion.errors import CompanionError
from companion.lm import models, tokens
from companion.marco.experts import loading
from companion.marco.rewriting import documents
from companion.marco.rewriting.documents import Document
from companion.marco.rewriting.rewriter import Rewriter

LONGEST = 20_000  # characters of a line: about ten minutes on 2 cores
NOT_UTF8 = "the input is not UTF-8 text: convert it first, for example with iconv."


def read(text: str | None, file: Path | None) -> list[str]:
    """Texts from the argument, or lines of a file or of standard input, without their ends and a byte-order mark.

    Raises
    ------
    CompanionError
        If there is nothing to rewrite, or it is not UTF-8 text.
    """
    if text not in (None, "-") and file:
        raise CompanionError("give a text or --file, not both.")
    if text not in (None, "-"):
        try:
            lines = tokens.checked([text])
        except CompanionError as error:
            raise CompanionError(NOT_UTF8) from error
    else:
        try:
            raw = file.read_bytes() if file else sys.stdin.buffer.read()
        except OSError as error:
            raise CompanionError(f"'{file}' cannot be read: {error.strerror}.") from error
        try:
            lines = [
                line.removesuffix("\r") for line in raw.decode("utf-8-sig").removesuffix("\n").split("\n")
            ]
        except UnicodeDecodeError as error:
            raise CompanionError(NOT_UTF8) from error
        if "\0" in "".join(lines):
            raise CompanionError("the input has zero bytes, so it is no text.")
    if not any(line.strip() for line in lines):
        raise CompanionError("there is nothing to rewrite: give a text, --file, or lines on standard input.")
    long = next((i for i, line in enumerate(lines) if len(line) > LONGEST), None)
    if long is not None:
        raise CompanionError(
            f"line {long + 1} has more than {LONGEST:,} characters: cut it into several lines."
        )
    return lines


def embedded(*, cautious: bool = False) -> Rewriter:
    """The rewriter of the shipped adapters with the settings chosen for them: for toxic text, or for text of any kind."""
    experts = loading.shipped(models.load(models.EMBEDDED))
    return Rewriter(experts.denoiser, experts.cautious if cautious else experts.settings)


def rewritten(rewriter: Rewriter, lines: list[str], *, as_json: bool) -> Iterator[str]:
    """The rewritten lines, as text or as JSON objects, some at a time as they are ready."""
    score = toxicity.load("embedded") if as_json else None
    for start in range(0, len(lines), documents.TOGETHER):
        some = documents.rewrite(
            rewriter,
            lines[start : start + documents.TOGETHER],
            progress="rewriting" if sys.stderr.isatty() else None,
        )
        if score is None:
            yield from (
                documents.LINE_BREAK.sub(" ", document.text) for document in some
            )  # a line stays a line
        else:
            before, after = score([d.original for d in some]), score([d.text for d in some])
            yield from (as_object(*row) for row in zip(some, before, after, strict=True))


def as_object(document: Document, before: float, after: float) -> str:
    """One JSON line."""
    found = {
        "text": document.original,
        "rewritten": document.text,
        "masked": document.masked,
        "words": [
            {"word": word, "divergence": None if value is None else round(value, 4)}
            for word, value in document.scores
        ],
        "toxicity": {"before": round(float(before), 4), "after": round(float(after), 4)},
    }
    line = json.dumps(found, ensure_ascii=False)
    return documents.LINE_BREAK.sub(
        lambda mark: f"\\u{ord(mark[0]):04x}", line
    )  # JSON leaves some as they are
