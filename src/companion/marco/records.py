"""What ``companion rewrite`` reads: lines, CSV or JSON lines; written again with all other fields."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from companion.errors import CompanionError
from companion.marco.rewriting import documents

Format = Literal["lines", "csv", "jsonl"]
SUFFIXES: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
LINE_LIMIT = 20_000  # characters: about ten minutes on 2 cores
REWRITTEN = "rewritten"  # the field that is added
NOT_UTF8 = "the input is not UTF-8 text: convert it first, for example with iconv."


def format_of(named: str | None, file: Path | None) -> Format:
    """The format that a user names, or that of a file by its suffix.

    Raises
    ------
    CompanionError
        If there is none of that name.
    """
    if named is None:
        return SUFFIXES.get(file.suffix.lower() if file else "", "lines")
    for form in get_args(Format):
        if form == named:
            return form
    raise CompanionError(f"there is no format '{named}': choose {', '.join(get_args(Format))}.")


class Record(NamedTuple):
    """A text with its number, from 1, and the other fields of its row; a line has none."""

    number: int
    text: str
    fields: dict[str, Any]


def read(source: Iterable[bytes], form: Format, column: str) -> Iterator[Record]:
    """Records of the lines of a file or of standard input, as they come; ``column`` has the text.

    Raises
    ------
    CompanionError
        If a line is not UTF-8, too long, or not of the format, or if there is no text in any of them.
    """
    found = False
    for record in _READERS[form](_decoded(source), column):
        found = found or bool(record.text.strip())
        if len(record.text) > LINE_LIMIT:
            long = f"line {record.number} has more than {LINE_LIMIT:,} characters"
            raise CompanionError(f"{long}: cut it into several lines.")
        yield record
    if not found:
        raise CompanionError("there is nothing to rewrite: give a text, --file, or lines on standard input.")


def _decoded(source: Iterable[bytes]) -> Iterator[str]:
    """Lines as text, without a byte-order mark."""
    for number, raw in enumerate(source):
        try:
            line = raw.decode("utf-8-sig" if number == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise CompanionError(NOT_UTF8) from error
        if "\0" in line:
            raise CompanionError("the input has zero bytes, so it is no text.")
        yield line


def _lines(lines: Iterable[str], _: str) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        yield Record(number, line.removesuffix("\n").removesuffix("\r"), {})


def _csv(lines: Iterable[str], column: str) -> Iterator[Record]:
    reader = csv.DictReader(lines, strict=True)
    try:
        _check_columns(reader.fieldnames or (), column)
        for number, fields in enumerate(reader, start=1):
            if None in fields or None in fields.values():
                raise CompanionError(f"row {number} of the CSV has another number of fields than its header.")
            yield Record(number, fields[column], fields)
    except csv.Error as error:
        raise CompanionError(f"the input is no CSV, near line {reader.line_num}: {error}.") from error


def _jsonl(lines: Iterable[str], column: str) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise CompanionError(f"line {number} is no JSON: {error.msg}.") from error
        if not isinstance(fields, dict) or not isinstance(fields.get(column, ""), str):
            raise CompanionError(f"line {number} is no JSON object with a text under '{column}'.")
        _check_columns(fields, column)
        yield Record(number, fields[column], fields)


def words_of(file: Path) -> frozenset[str]:
    """The words of a file, one a line, in lower case.

    Raises
    ------
    CompanionError
        If it cannot be read as UTF-8 text.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise CompanionError(f"'{file}' cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise CompanionError(NOT_UTF8.replace("the input", f"'{file}'")) from error
    return frozenset(line.strip().lower() for line in lines if line.strip())


def _check_columns(names: Iterable[str], column: str) -> None:
    names = list(names)
    if column not in names:
        there = ", ".join(names) or "none"
        raise CompanionError(f"there is no column '{column}' (there are: {there}): name it with --column.")
    if REWRITTEN in names:
        raise CompanionError(f"the input already has a column '{REWRITTEN}': rename it first.")


_READERS = {"lines": _lines, "csv": _csv, "jsonl": _jsonl}


def header(form: Format, first: Record) -> str | None:
    """The line that comes before all others: of a CSV, its columns and the one that is added."""
    return _row([*first.fields, REWRITTEN]) if form == "csv" else None


def written(form: Format, record: Record, text: str) -> str:
    """A record with its rewritten text, in the format it came in: a line stays a line."""
    if form == "csv":
        return _row([*record.fields.values(), text])
    if form == "jsonl":
        return as_json({**record.fields, REWRITTEN: text})
    return documents.LINE_BREAK.sub(" ", text)


def as_json(fields: dict[str, Any]) -> str:
    """One JSON line, without any character that a reader takes for a line's end."""
    line = json.dumps(fields, ensure_ascii=False)  # leaves some line breaks as they are
    return documents.LINE_BREAK.sub(lambda mark: f"\\u{ord(mark[0]):04x}", line)


def _row(values: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()
