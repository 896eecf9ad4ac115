"""The commands for maintainers: remake what ``data/`` ships, what the README shows, and the baselines."""

from __future__ import annotations

from typing import Annotated

import typer

from companion import book, paths
from companion.terminal import ProfileOption, console

app = typer.Typer(
    no_args_is_help=True, help="Remake what data/ ships and the README shows (for maintainers)."
)


@app.callback()
def _make() -> None:
    book.require_tools()


@app.command()
def scorer() -> None:
    """Train both scorers on public and own sentences (some two hours on two cores; resumable)."""
    from companion.toxicity import training
    from companion.toxicity.fine_tuned import READERS

    for name in READERS:
        training.train(name, paths.DATA / "scorer")
        console.print(f"{name}: written to {paths.DATA / 'scorer' / name}")


@app.command(
    help="Examine every scorer; write data/scorer/card.json and the tables of its README "
    "(some minutes each on 2 cores; resumable)."
)
def scorer_card() -> None:
    from companion.book import scorer_card, scorer_tables
    from companion.errors import CompanionError
    from companion.toxicity import examination

    found = {}
    for name in scorer_card.SCORERS:
        try:
            found[name] = examination.examined(name)
        except CompanionError as error:
            console.print(f"{name}: left out, {error}")
        else:
            console.print(f"{name}: examined")
    console.print(f"written to {scorer_tables.make(found)}")


@app.command()
def pairs() -> None:
    """Make the shipped preference pairs by PPLM (about 40 minutes on 2 cores; resumable)."""
    from companion.mechanism.pairs import ship_pairs

    console.print(f"{ship_pairs()} pairs written to {paths.DATA / 'pairs'}")


@app.command(
    help="Choose the threshold and strengths of the shipped adapters, and what their experts choose among, "
    "on public dev rows (about 20 minutes on 2 cores)."
)
def settings() -> None:
    from companion import profiles
    from companion.lm import models
    from companion.marco.denoisers import adapters
    from companion.marco.evaluation import scores, settings_search

    denoiser = adapters.load(models.load(models.EMBEDDED), adapters.FOLDER)
    judges = scores.Judges.of(profiles.load("embedded"))
    console.print(settings_search.choose(denoiser, judges, adapters.FOLDER / "settings.json"))


@app.command(
    help="Hold the scores of chapter 11 against rewrites that people rated; write "
    "data/ratings/calibration.json (about 5 minutes on 2 cores)."
)
def calibration() -> None:
    from companion import profiles
    from companion.data import public
    from companion.marco.evaluation import calibration, scores

    judges = scores.Judges.of(profiles.load("embedded"))
    found = calibration.make(judges, public.rated_rewrites())
    console.print(f"{found['chosen']}: written to {calibration.FOLDER}")


@app.command(
    help="Write the README's figure and table and the page of public results "
    "from runs of the profiles embedded and public."
)
def readme() -> None:
    from companion.book import runs
    from companion.book.readme import update_readme

    update_readme(runs.folder_of("embedded", {}), runs.folder_of("public", {}))


@app.command()
def baseline(profile: ProfileOption = "embedded") -> None:
    """Take the values of a run as its profile's baseline; tolerances and reasons stay."""
    from companion.book import checks, runs

    checks.update_baseline(runs.folder_of(profile, {}))


@app.command()
def edition(profile: ProfileOption = "public") -> None:
    """Take the results of a run as the edition of its profile, which figures and verdicts show."""
    from companion.book import editions, runs

    console.print(f"written to {editions.make(runs.load_results(runs.folder_of(profile, {})))}")


@app.command(
    help="Put the repository's address wherever it stands: "
    "the config, the set-up cells, the buttons, the citation."
)
def address(
    url: Annotated[str, typer.Argument(help="for example https://github.com/NAME/companion")],
) -> None:
    from companion.book.readme import set_address

    for path in set_address(url):
        console.print(f"changed {path}")
