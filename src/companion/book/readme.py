"""What maintainers remake: the README's figure and table, the page of public results, the address."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import yaml

from companion import paths
from companion.book import claims, editions, plots, runs, scoreboard
from companion.book.claims import Results
from companion.errors import CompanionError
from companion.metrics.estimates import Estimate

# Rows of the README's table: result, what it is, how it is printed, and the published value beside it.
ROWS = Path(__file__).with_name("readme_rows.tsv")

# Files that name the repository's address; _config.yml is where it is looked up.
ADDRESSED = ("_config.yml", "CITATION.cff", "pyproject.toml", "README.md", "pages/*.md", "chapters/*.ipynb")

HEAD = "| result | embedded: value [95 % interval], n | public data: value [95 % interval], n | published |"
EVERY = (
    "| chapter and intervention | drop, embedded | drop, public | perplexity, embedded | perplexity, public "
    "| drop by the second scorer, embedded |"
)


def address() -> str:
    """The repository's address, as in ``_config.yml``."""
    return yaml.safe_load((paths.project() / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]


def set_address(new: str) -> list[Path]:
    """Put another address of the repository wherever it stands; return the files changed.

    Raises
    ------
    CompanionError
        If it is not the address of a page.
    """
    if not re.fullmatch(r"https://[\w.-]+(?:/[\w.~-]+)+", new) or new.endswith(".git"):
        raise CompanionError(
            f"'{new}' is no address of a repository: write for example https://github.com/NAME/companion."
        )
    old, changed = address(), []
    for path in sorted(path for pattern in ADDRESSED for path in paths.project().glob(pattern)):
        text = path.read_text(encoding="utf-8")
        if old in text:
            path.write_text(text.replace(old, new), encoding="utf-8", newline="\n")
            changed.append(path)
    return changed


def update_readme(embedded: Path, public: Path) -> None:
    """Write the README's figure and tables and ``pages/public_results.md`` from a run of either profile.

    Without a run on public data its column stays as it was.
    """
    loaded = [runs.load_results(embedded)]
    loaded += [runs.load_results(public)] if (public / "results.json").is_file() else [{"results": {}}]
    results = [run["results"] for run in loaded]
    _figure(results[0], paths.project() / "pages" / "images" / "results.png")
    page = paths.project() / "pages" / "public_results.md"
    before = _cells(page)

    def cells(name: str, spec: str, row: str, first: int) -> str:
        """One cell per run. What a run lacks stands as it stood: chapters may be run one at a time."""
        return " | ".join(
            f"{_estimate(r[name]):{spec}}, {r[name]['n']:,}"
            if name in r
            else before.get((row, first + i), "not run yet")
            for i, r in enumerate(results)
        )

    listed = pd.read_csv(ROWS, sep="\t", dtype=str, keep_default_na=False).itertuples(index=False)
    rows = [
        f"| {what} | {cells(name, spec, what, 0)} | {published} |" for name, what, spec, published in listed
    ]
    versions = ", ".join(f"{k} {loaded[0]['versions'][k]}" for k in ("python", "torch", "transformers"))
    source = (
        "\nFrom `results.json` of runs of the profiles `embedded` and `public` "
        f"on {loaded[0]['machine']['cores']} cores ({versions})."
    )
    table = [HEAD, "|---|---|---|---|", *rows, source]
    write_block(page, "results", table)
    _update_claims(results[0])
    interventions = []
    for name in results[0]:
        chapter, _, what = name.partition("_drop_")
        if what and not what.startswith("second_") and chapter in ("ablation", "patching", "editing"):
            perplexity, row = f"{chapter}_perplexity_{what}", f"{chapter}: {what.replace('_', ' ')}"
            price = cells(perplexity, ",.1f", row, 2) if perplexity in results[0] else " | "
            other = cells(f"{chapter}_drop_second_{what}", ".0%", row, 4).split(" | ")[0]
            interventions.append(f"| {row} | {cells(name, '.0%', row, 0)} | {price} | {other} |")
    write_block(page, "interventions", [EVERY, "|---|---|---|---|---|---|", *interventions])


def _cells(page: Path) -> dict[tuple[str, int], str]:
    """What the tables of a page say, by row and column (0: the first after the row's name)."""
    lines = page.read_text(encoding="utf-8").splitlines()
    rows = (line.strip("|").split(" | ") for line in lines if line.startswith("| "))
    return {(name.strip(), i): cell.strip() for name, *cells in rows for i, cell in enumerate(cells)}


def _update_claims(results: Results) -> None:
    """Rewrite the README's table of claims, beside the run all other editions, if the run tests every one."""
    if all(claim.result in results for claim in claims.load()):
        others = {name: editions.load(name)["results"] for name in editions.names() if name != "embedded"}
        claimed = scoreboard.table({"embedded": results, **others})
        rows = [claimed.columns, ["---"] * len(claimed.columns), *claimed.itertuples(index=False)]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        write_block(paths.project() / "README.md", "claims", lines)


def write_block(path: Path, name: str, lines: Iterable[str]) -> None:
    """Put lines between a page's markers of that name.

    Raises
    ------
    CompanionError
        If the page has no such markers.
    """
    markers, block = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", "\n".join(lines)
    text = path.read_text(encoding="utf-8")
    new, found = re.subn(markers, lambda m: f"{m[1]}{block}\n{m[2]}", text, flags=re.S)
    if not found:
        place = f"put <!-- {name} --> and <!-- /{name} --> in"
        raise CompanionError(f"'{path}' has no place for what is to be written there: {place}.")
    path.write_text(new, encoding="utf-8", newline="\n")


def _estimate(result: dict[str, Any]) -> Estimate:
    return Estimate(result["value"], result["low"], result["high"], result["n"])


def _figure(results: dict[str, dict[str, Any]], path: Path) -> None:
    plots.style()
    bars = {
        "plain prose": ("setting_floor", plots.CONTROL),
        "base model": ("dpo_toxicity_base", plots.BASE),
        "noise of the same size": ("dpo_toxicity_control", plots.CONTROL),
        "DPO": ("dpo_toxicity_dpo", plots.DPO),
    }
    plots.bars(
        list(bars),
        [_estimate(results[name]) for name, _ in bars.values()],
        title="DPO lowers toxicity; noise of the same size does not",
        unit="mean probability of toxicity, 95 % interval",
        colours=[colour for _, colour in bars.values()],
    )
    path.parent.mkdir(exist_ok=True)
    plt.savefig(path, dpi=150, bbox_inches="tight")
    plt.close()
