"""``companion rewrite``: records in, as many records out, in order; some at a time, as they come."""

from __future__ import annotations

import difflib
import io
import itertools
import json
import os
import queue
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from rich.text import Text
from tqdm import tqdm

from companion import store, toxicity
from companion.errors import CompanionError
from companion.lm import tokens
from companion.marco import records
from companion.marco.evaluation.quality import Similarity
from companion.marco.records import Format, Record
from companion.marco.rewriting import documents, languages
from companion.marco.rewriting.documents import Document
from companion.marco.rewriting.rewriter import Rewriter
from companion.toxicity import Scorer

PARTS = re.compile(r"\s+|[^\W_]+|[\W_]")  # of a text: words, and what stands between them
T = TypeVar("T")
Rendered = tuple[Record, Document, str]  # what came in, what became of it, and how it is written


@dataclass(frozen=True)
class Measures:
    """What says what a rewrite did: two scorers of toxicity and the similarity of two texts' meanings."""

    scorers: dict[str, Scorer]
    similarity: Callable[[list[str], list[str]], Float[np.ndarray, "_texts"]]

    @classmethod
    def load(cls) -> Measures:
        """The scorers and the encoder that ship with the book."""
        return cls({name: toxicity.load(name) for name in ("embedded", "second")}, Similarity())


@dataclass(frozen=True)
class Job:
    """How records are rewritten and written.

    Texts in other languages than English are left as they are. ``gate`` says which others are, by a scorer
    and the score from which a text is rewritten; with ``measures`` each record is written as a JSON object
    that has all of it.
    """

    rewriter: Rewriter
    form: Format = "lines"
    gate: tuple[Scorer, float] | None = None
    measures: Measures | None = None

    def __call__(self, some: Sequence[Record]) -> list[Rendered]:
        """Rewrite some records and render them."""
        texts = [record.text for record in some]
        chosen = np.array([languages.other_language(text) is None for text in texts], dtype=bool)
        if self.gate:
            scorer, least = self.gate
            chosen &= np.asarray(scorer(texts)) >= least
        new = iter(documents.rewrite(self.rewriter, list(itertools.compress(texts, chosen))))
        made = [
            next(new) if rewrite else Document(text, text, [])
            for text, rewrite in zip(texts, chosen, strict=True)
        ]
        return list(zip(some, made, self._rendered(some, made), strict=True))

    def _rendered(self, some: Sequence[Record], made: Sequence[Document]) -> list[str]:
        if self.measures is None:
            return [records.written(self.form, r, d.text) for r, d in zip(some, made, strict=True)]
        before, after = [d.original for d in made], [d.text for d in made]
        scored = {n: (scorer(before), scorer(after)) for n, scorer in self.measures.scorers.items()}
        alike = self.measures.similarity(after, before)
        score = self.rewriter.settings.masking.divergence.__name__  # log_odds, of the shipped settings
        return [
            records.as_json(
                {
                    **record.fields,
                    "id": record.fields.get("id", record.number),
                    "text": document.original,
                    "rewritten": document.text,
                    "other_language": languages.other_language(document.original),
                    "changed": document.text != document.original,
                    "masked": document.masked,
                    "words": [
                        {"word": word, score: None if value is None else round(value, 4)}
                        for word, value in document.scores
                    ],
                    **_considered(document),
                    "similarity": round(float(alike[i]), 4),
                    "toxicity": {
                        name: {"before": round(float(was[i]), 4), "after": round(float(now[i]), 4)}
                        for name, (was, now) in scored.items()
                    },
                }
            )
            for i, (record, document) in enumerate(zip(some, made, strict=True))
        ]


def _considered(document: Document) -> dict[str, list]:
    """What the experts chose among in each piece that had several rewrites, if any: text and gain in nats."""
    pieces = [p for p in document.pieces if p.candidates]
    if not pieces:
        return {}
    considered = [
        {"of": p.original, "text": text, "gain": round(gain, 4)}
        for p in pieces
        for text, gain in p.candidates
    ]
    return {"candidates": considered}


def source(text: str | None, file: Path | None) -> Iterator[bytes]:
    """Lines of the argument, of a file, or of standard input as they arrive.

    Raises
    ------
    CompanionError
        If there are two sources, or the file cannot be read.
    """
    if text not in (None, "-") and file:
        raise CompanionError("give a text or --file, not both.")
    if text not in (None, "-"):
        try:
            [text] = tokens.checked([text])
        except CompanionError as error:
            raise CompanionError(records.NOT_UTF8) from error
        return iter([text.encode()])  # a line, whatever it contains
    if file is None:
        return iter(sys.stdin.buffer)
    try:
        return iter(io.BytesIO(file.read_bytes()))
    except OSError as error:
        raise CompanionError(f"'{file}' cannot be read: {error.strerror}.") from error


def arriving(items: Iterator[T], most: int = documents.PIECES) -> Iterator[list[T]]:
    """What has arrived, some at a time: one item at least, ``most`` at most, without waiting for more."""
    waiting: queue.Queue = queue.Queue(4 * most)
    end = object()

    def listen() -> None:
        try:
            for item in items:
                waiting.put(item)
            waiting.put(end)
        except BaseException as error:  # is raised again where somebody sees it
            waiting.put(error)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        some = [waiting.get()]
        while len(some) < most and not waiting.empty():
            some.append(waiting.get())
        good = list(itertools.takewhile(lambda one: one is not end and not _is_error(one), some))
        if good:
            yield good
        if len(good) < len(some):
            if _is_error(some[len(good)]):
                raise some[len(good)]
            return


def _is_error(item: object) -> bool:
    return isinstance(item, BaseException)


def stream(job: Job, arrived: Iterator[Record], total: int | None = None) -> Iterator[Rendered]:
    """Rewrite records as they arrive; a bar shows how many, unless the texts themselves are on the screen."""
    hidden = sys.stdout.isatty() or not sys.stderr.isatty()
    bar = tqdm(total=total, desc="rewriting", unit="text", disable=hidden)
    for some in arriving(arrived):
        yield from job(some)
        bar.update(len(some))
    bar.close()


def to_file(job: Job, every: Sequence[Record], target: Path, key: str) -> None:
    """Rewrite records into a file, which appears when all are done; stopped and started again, it goes on.

    Until then they are in ``target.partial``, behind ``key``: with another key, it begins anew.
    """
    partial = target.with_name(f"{target.name}.partial")
    lines = _done(partial, key)
    try:
        with partial.open("a" if lines else "w", encoding="utf-8", newline="\n") as file:
            if not lines:
                file.write(json.dumps(key) + "\n")
            bar = tqdm(total=len(every), initial=len(lines), desc="rewriting", unit="text", disable=None)
            for start in range(len(lines), len(every), documents.PIECES):
                new = [line for _, _, line in job(every[start : start + documents.PIECES])]
                file.writelines(json.dumps(line) + "\n" for line in new)
                file.flush()
                lines += new
                bar.update(len(new))
            bar.close()
        first = None if job.measures else records.header(job.form, every[0])
        whole = "".join(f"{line}\n" for line in [*filter(None, [first]), *lines])
        finished = target.with_name(f"{target.name}.new")
        finished.write_text(whole, encoding="utf-8", newline="\n")
        os.replace(finished, target)
        partial.unlink()
    except OSError as error:
        raise CompanionError(f"'{target}' cannot be written: {error.strerror}.") from error


def _done(partial: Path, key: str) -> list[str]:
    """The lines of an interrupted run with this key, but for one that was cut off."""
    if not partial.is_file():
        return []
    whole = partial.read_text(encoding="utf-8")
    rows = whole[: whole.rfind("\n") + 1].splitlines()
    return [json.loads(row) for row in rows[1:]] if rows[:1] == [json.dumps(key)] else []


def left_alone(found: Counter[str | None]) -> str | None:
    """A sentence that says how many texts were in which other languages, if any (None: English)."""
    others = [f"{n} {name}" for name, n in found.most_common() if name]
    return f"not English, left as they were: {', '.join(others)}." if others else None


def key_of(every: Sequence[Record], rewriter: Rewriter, **about: Any) -> str:
    """What a run into a file depends on: its input and how it is rewritten; the same in every process."""
    return store.key_of({"records": every, "settings": rewriter.settings.as_data(), **about})


def explained(document: Document) -> Text:
    """The text with what went struck out in red and what came in green; without colours as ``[-…-]{+…+}``."""
    old, new = (PARTS.findall(text) for text in (document.original, document.text))
    shown = Text()
    for what, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if what == "equal":
            shown.append("".join(old[a:b]))
            continue
        if b > a:
            shown.append("[-" + "".join(old[a:b]) + "-]", style="red strike")
        if d > c:
            shown.append("{+" + "".join(new[c:d]) + "+}", style="green")
    return shown
