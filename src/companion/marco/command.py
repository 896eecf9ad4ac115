"""``companion rewrite``: lines in, lines out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from companion import toxicity
from companion.errors import CompanionError
from companion.lm import tokens
from companion.marco.rewriting import documents
from companion.marco.rewriting.documents import Document
from companion.marco.rewriting.rewriter import Rewriter

LINE_LIMIT = 20_000  # characters: about ten minutes on 2 cores
NOT_UTF8 = "the input is not UTF-8 text: convert it first, for example with iconv."


def read(text: str | None, file: Path | None) -> list[str]:
    """Texts from the argument, or lines of a file or of standard input, without line ends and BOM.

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
            whole = raw.decode("utf-8-sig").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise CompanionError(NOT_UTF8) from error
        if "\0" in whole:
            raise CompanionError("the input has zero bytes, so it is no text.")
        lines = [line.removesuffix("\r") for line in whole.split("\n")]
    if not any(line.strip() for line in lines):
        raise CompanionError("there is nothing to rewrite: give a text, --file, or lines on standard input.")
    for i, line in enumerate(lines, start=1):
        if len(line) > LINE_LIMIT:
            raise CompanionError(
                f"line {i} has more than {LINE_LIMIT:,} characters: cut it into several lines."
            )
    return lines


def rewritten(rewriter: Rewriter, lines: list[str], *, as_json: bool) -> Iterator[str]:
    """The rewritten lines, as text or as JSON objects, some at a time as they are ready."""
    score = toxicity.load("embedded") if as_json else None
    progress = "rewriting" if sys.stderr.isatty() else None
    for start in range(0, len(lines), documents.PIECES):
        some = documents.rewrite(rewriter, lines[start : start + documents.PIECES], progress=progress)
        if score is None:  # a line stays a line
            yield from (documents.LINE_BREAK.sub(" ", document.text) for document in some)
        else:
            before, after = score([d.original for d in some]), score([d.text for d in some])
            yield from (as_object(*row) for row in zip(some, before, after, strict=True))


def as_object(document: Document, before: float, after: float) -> str:
    """One JSON line."""
    fields = {
        "text": document.original,
        "rewritten": document.text,
        "masked": document.masked,
        "words": [
            {"word": word, "divergence": None if value is None else round(value, 4)}
            for word, value in document.scores
        ],
        "toxicity": {"before": round(float(before), 4), "after": round(float(after), 4)},
    }
    line = json.dumps(fields, ensure_ascii=False)  # leaves some line breaks as they are
    return documents.LINE_BREAK.sub(lambda mark: f"\\u{ord(mark[0]):04x}", line)
