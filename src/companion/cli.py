"""The command line: plan, run, check, build, new-chapter, fetch, clean, doctor, rewrite, train-experts,
make."""

from __future__ import annotations

import ast
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from companion import __version__, book, make, paths, profiles
from companion.errors import CompanionError
from companion.rewrite_command import rewrite
from companion.terminal import ProfileOption, console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Run, check and build an executable companion to two papers.",
    pretty_exceptions_enable=False,
)

app.add_typer(make.app, name="make")

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="key=value: change a chapter's parameter; may be repeated"),
]
ChapterArgument = Annotated[
    list[str] | None, typer.Argument(help="chapters by name or number; all if none is given")
]


@app.command()
def run(
    chapters: ChapterArgument = None,
    profile: ProfileOption = "embedded",
    set_: SetOption = None,
    force: Annotated[bool, typer.Option(help="run chapters that are unchanged, too")] = False,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="chapters at a time; by default what cores and memory bear"),
    ] = None,
) -> None:
    """Run chapters and write _build/runs/PROFILE/results.json. Ctrl-C is safe: run again to go on."""
    book.require_tools()
    from companion.book import runner

    folder = runner.run(chapters, profile, parse_settings(set_), force=force, jobs=jobs)
    console.print(f"results: {folder / 'results.json'}")


@app.command()
def plan(
    profile: ProfileOption = "paper",
    model: Annotated[str | None, typer.Option(help="another model; the profile's if not given")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="cards; this machine's if not given")] = None,
    memory: Annotated[
        float | None, typer.Option(min=1, help="GiB of a card; of this machine's, or 80 if it has none")
    ] = None,
    papers: Annotated[
        bool, typer.Option(help="the papers' four models on three machines instead, as a Markdown table")
    ] = False,
) -> None:
    """Estimate downloads, disk, memory and hours of a run; exit code 2 if it does not fit."""
    from companion.book import contents
    from companion.plan import estimate, tables

    if papers:
        print(tables.papers())
        return
    chosen = profiles.load(profile, model=model)
    names = [chapter.name for chapter in contents.chapters(chosen.chapters)]
    found = estimate.plan(chosen, names, estimate.Machine.of(gpus, memory))
    console.print(tables.chapters(found))
    console.print(tables.besides(found))
    if found.too_large:
        raise CompanionError(found.refusal())


@app.command()
def check(profile: ProfileOption = "embedded", set_: SetOption = None) -> None:
    """Compare a run with its edition, its baseline and the papers.

    Exit code 1 if the verdict on a claim has changed and what it rests on is out of tolerance, if a result is
    missing or if a chapter failed; a value that has drifted while verdicts stand is reported only.
    """
    book.require_tools()
    from companion.book import checks, runs

    folder = runs.folder_of(profile, parse_settings(set_))
    failed = runs.failed(folder)
    for name, failure in failed.items():
        console.print(f"Chapter {name} failed when it was last run ({failure}): its results are older.")
    results = runs.load_results(folder)
    rows, missing = checks.compare(results)
    console.print(checks.table(rows))
    if not checks.baseline_path(profile).is_file():
        console.print(f"There is no baseline for the profile '{profile}': nothing was compared.")
    if drifted := [row.name for row in rows if row.ok is False]:
        console.print(f"{len(drifted)} of {len(rows)} results have drifted: {', '.join(drifted)}")
    if missing:
        console.print(f"{len(missing)} results are missing: {', '.join(missing)}")
    changes = checks.changed_verdicts(results, rows)
    for change in changes:
        console.print(checks.sentence(change))
    if changed := runs.changed(folder, results):
        why = "their source, the package, its data or libraries"
        console.print(f"Changed since they were run ({why}): {', '.join(changed)}")
    if any(change.drifted for change in changes) or missing or failed:
        raise typer.Exit(1)


@app.command()
def build(profile: ProfileOption = "embedded") -> None:
    """Render the book from the executed chapters of a run."""
    book.require_tools()
    from companion.book import runs
    from companion.book.build import build as render

    console.print(f"book: {render(runs.folder_of(profile, {}))}")


@app.command("new-chapter")
def new_chapter(name: Annotated[str, typer.Argument(help="one word, for example length")]) -> None:
    """Write a chapter to begin with, the last of the book; it runs as it is."""
    book.require_tools()
    from companion.book import contents

    chapter = contents.add(name)
    console.print(
        f"wrote {chapter.path} and its line in _toc.yml\n"
        f"next: edit it, and try it with `companion run {name} --profile smoke`; when it is\n"
        "done, `companion run`, `companion build` and `companion make baseline` (CONTRIBUTING.md says more)"
    )


@app.command()
def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(help="files of data/registry.tsv; all if none is given")
    ] = None,
) -> None:
    """Download the public data (or find it in $COMPANION_DATA) and check its sha256."""
    from companion.data import public

    missing, rows = [], public.registry()
    if not names and not os.environ.get("COMPANION_DATA"):
        derived = rows.apply(public.is_derived, axis=1)
        for name in rows.file[derived]:
            console.print(
                f"{name}: left out, as it cannot be downloaded (it is derived from what its url has)"
            )
        rows = rows[~derived]
    for name in names or rows.file:
        try:
            console.print(f"{name}: {public.fetch(name, progressbar=True)}")
        except CompanionError as error:
            console.print(f"{name}: {error}")
            missing.append(name)
    if missing:
        raise CompanionError(f"{len(missing)} of the files could not be had: {', '.join(missing)}.")


@app.command()
def clean(
    cache: Annotated[
        bool, typer.Option("--cache", help="also delete models, DPO weights and downloads in the cache")
    ] = False,
    corrupt: Annotated[
        bool, typer.Option("--corrupt", help="delete only artifacts that fail their checksum")
    ] = False,
) -> None:
    """Delete the built book and the runs."""
    from companion import store

    if corrupt:
        for folder in store.remove_corrupt():
            console.print(f"deleted {folder}")
        return
    folders = [paths.cache()] if cache else []
    try:
        folders.append(paths.build())
    except CompanionError:  # no book here
        if not cache:
            raise
    for path in folders:
        if path.exists():
            store.delete(path)
            console.print(f"deleted {path}")


@app.command()
def doctor() -> None:
    """Say what is installed, what is missing and what to do about it; exit code 2 if something is."""
    from companion.doctor import findings

    table, broken = Table("what", "state"), False
    for what, state, sound in findings():
        table.add_row(what, Text(state, "" if sound else "red"))
        broken |= not sound
    console.print(table)
    if broken:
        raise typer.Exit(2)


app.command()(rewrite)


@app.command(
    "train-experts",
    help="Train MaRCo's three adapters on the public data (about an hour and a half on 2 cores). "
    "Ctrl-C is safe: run again to go on.",
)
def train_experts(
    to: Annotated[
        Path | None, typer.Option(help="folder for the adapters; data/adapters if not given")
    ] = None,
) -> None:
    from companion.lm import models
    from companion.marco.denoisers import adapters
    from companion.marco.experts import loading

    loading.make(models.load(models.EMBEDDED), to or adapters.FOLDER)


def parse_settings(pairs: list[str] | None) -> dict[str, object]:
    """Turn ``["prompts=10", "model=tiny-gpt2"]`` into a dict; values are Python literals or strings."""
    settings = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise CompanionError(
                f"'{pair}' is not of the form key=value: write for example --set prompts=50."
            )
        if key == "profile":
            raise CompanionError("the profile is not set with --set: write for example --profile smoke.")
        try:
            settings[key] = ast.literal_eval(value)
            json.dumps(settings[key])  # goes into results.json
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            settings[key] = value
    return settings


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="show the version and exit")] = False,
) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit()


def main() -> None:
    """Entry point: a user's error is one sentence on stderr and exit code 2."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries warn whoever writes code; our own sentences are printed
    try:
        app()
    except CompanionError as error:
        print(f"companion: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # what Typer makes of Ctrl-C
            raise
        print("companion: stopped; finished work is kept, run the same command to go on.", file=sys.stderr)
        sys.exit(130)
