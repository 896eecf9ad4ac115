"""``companion rewrite``: its options, and what it prints."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from companion.errors import CompanionError
from companion.terminal import console


def rewrite(
    text: Annotated[
        str | None,
        typer.Argument(help="text to rewrite; - or nothing: one text per line from standard input"),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="a UTF-8 file: .csv, .jsonl, or one text per line")
    ] = None,
    column: Annotated[str, typer.Option(help="the column of a CSV or JSONL that has the text")] = "text",
    form: Annotated[
        str | None,
        typer.Option("--format", help="of the input: lines, csv or jsonl; by default the file's suffix says"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="write to this file; stopped and started again, it goes on"),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="one JSON object per text: words, scores, masks, similarity, toxicity before and after",
        ),
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="show what went and what came in")] = False,
    cautious: Annotated[
        bool,
        typer.Option(
            "--cautious",
            help="mask only what is most likely toxic: for text of any kind, most of it harmless",
        ),
    ] = False,
    published: Annotated[
        bool,
        typer.Option(
            "--published", help="mask and fill as the paper does, by our adapters; groups may vanish"
        ),
    ] = False,
    candidates: Annotated[
        bool,
        typer.Option(
            "--candidates",
            help="make several rewrites and let the experts choose one, or the text as it is; "
            "with --json all of them, with what they gain",
        ),
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="mask words from this score on: log odds in nats, or with --published times the mean"
        ),
    ] = None,
    min_toxicity: Annotated[
        float | None, typer.Option(help="leave texts alone that the embedded scorer puts below this")
    ] = None,
    protect: Annotated[
        Path | None, typer.Option(help="a UTF-8 file of words that are never masked, one a line")
    ] = None,
    adapters: Annotated[Path | None, typer.Option(help="a folder of adapters other than the shipped")] = None,
) -> None:
    """Rewrite toxic text with MaRCo: as many texts come out as go in, in order."""
    from companion import toxicity
    from companion.marco import Rewriter, command, records
    from companion.marco.rewriting.languages import other_language

    if explain and (as_json or output):
        raise CompanionError("--explain is for the terminal: leave out --json and --output.")
    if cautious and published:
        raise CompanionError("--cautious is a threshold of ours: leave it out with --published.")
    if candidates and (cautious or published):
        raise CompanionError("--candidates has settings of its own: leave out --cautious and --published.")
    kind = records.format_of(form, file)
    arrived = records.read(command.source(text, file), kind, column)
    every = list(arrived) if output or file else None  # a file is checked before anything is written
    kept = records.words_of(protect) if protect else frozenset()
    how = {"cautious": cautious, "published": published, "several": candidates}
    rewriter = Rewriter.load(adapters, **how, threshold=threshold, keeps=kept)
    gate = (toxicity.load("embedded"), min_toxicity) if min_toxicity is not None else None
    job = command.Job(rewriter, kind, gate, command.Measures.load() if as_json else None)
    if output:
        about = {"format": kind, "json": as_json, "gate": min_toxicity, "adapters": str(adapters)}
        command.to_file(job, every or [], output, command.key_of(every or [], rewriter, **about))
        _say(command.left_alone(Counter(other_language(record.text) for record in every or [])))
        return
    found = Counter[str | None]()
    rows = command.stream(job, iter(every or arrived), len(every) if every else None)
    for number, (record, document, line) in enumerate(rows):
        found[other_language(record.text)] += 1
        if explain:
            console.print(command.explained(document), soft_wrap=True)
            continue
        if number == 0 and not as_json and (first := records.header(kind, record)):
            print(first)
        print(line, flush=True)
    _say(command.left_alone(found))


def _say(what: str | None) -> None:
    """A note that is no result."""
    if what:
        print(f"companion: {what}", file=sys.stderr)
