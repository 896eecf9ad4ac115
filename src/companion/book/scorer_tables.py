"""Write the scorers' card: ``card.json``, and the tables between the markers of ``data/scorer/README.md``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from companion import paths
from companion.book import readme
from companion.book.scorer_card import Card, bent, differences, number, perspective, table
from companion.toxicity.disguises import DISGUISES
from companion.toxicity.exam_texts import PRECEDING

FOLDER = paths.DATA / "scorer"


def make(examined: Card) -> Path:
    """Write examinations by scorer to ``card.json``, and what they say between the markers of both READMEs.

    The scorers' README gets the tables, the project's the sentences about the embedded scorer.
    """
    path = FOLDER / "card.json"
    text = json.dumps(examined, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
    readme.write_block(FOLDER / "README.md", "card", tables(examined))
    readme.write_block(paths.project() / "README.md", "ruler", [bent(examined, "embedded")])
    return path


def tables(card: Card) -> Iterator[str]:
    """The README's tables, line by line."""
    yield from _markdown(table(card))
    yield "\n↑ more is better, ↓ less is. *Perspective*: by HateCheck's authors, on all 3,728 cases."
    yield f"\nThe embedded and the second scorer {differences(card)}."
    for head, rows in {
        "HateCheck by functionality, share right at .5 (*h* hateful, *nh* not)": _functionalities,
        "Madlibs: groups with the lowest BPSN AUC and the highest mean of harmless sentences": _groups,
        "Two words (the worst to *lexical*) disguised in 300 short texts: AUC, mean change": _disguises,
        "Toxic sentences scoring ≥ .5 behind harmless words (share cut off unread)": _lengths,
        "Cost on one machine: seconds to load and for 256 continuations, growth in MB": _costs,
    }.items():
        yield f"\n**{head}**\n"
        yield from _markdown(rows(card))


def _functionalities(card: Card) -> pd.DataFrame:
    exams = {name: exam["hatecheck"]["functionality"] for name, exam in card.items()}
    kinds = next(iter(exams.values()))
    return pd.DataFrame(
        {
            "functionality": f"`{kind}`",
            **{name: f"{exam[kind]['value']:.2f}" for name, exam in exams.items()},
            "n": kinds[kind]["n"],
            "Perspective, published": number(perspective(f"right_{kind}")),
        }
        for kind in kinds
    )


def _groups(card: Card, most: int = 5) -> pd.DataFrame:
    def listed(groups: Mapping[str, Any], metric: str, sign: int) -> str:
        ordered = sorted(groups, key=lambda group: sign * groups[group][metric]["value"])[:most]
        return ", ".join(f"{group} {groups[group][metric]['value']:.2f}" for group in ordered)

    return pd.DataFrame(
        {
            "scorer": name,
            "lowest BPSN": listed(exam["madlibs"]["groups"], "bpsn", 1),
            "highest harmless mean": listed(exam["madlibs"]["groups"], "harmless", -1),
        }
        for name, exam in card.items()
    )


def _disguises(card: Card) -> pd.DataFrame:
    def cell(found: Mapping[str, Any]) -> str:
        change = f", {found['change']['value']:.3f}" if "change" in found else ""
        return f"{found['auc']['value']:.3f}{change}"

    kinds = next(iter(card.values()))["disguises"]
    return pd.DataFrame(
        {"disguise": kind, **{name: cell(exam["disguises"][kind]) for name, exam in card.items()}}
        for kind in ("none", *DISGUISES)
        if kind in kinds
    )


def _lengths(card: Card) -> pd.DataFrame:
    def cell(found: Mapping[str, Any]) -> str:
        return f"{found['caught']['value']:.0%} ({found['unread']['value']:.0%})"

    return pd.DataFrame(
        {
            "words before": n,
            **{name: cell(exam["length"][str(n)]) for name, exam in card.items()},
            "n": next(iter(card.values()))["length"][str(n)]["caught"]["n"],
        }
        for n in PRECEDING
    )


def _costs(card: Card) -> pd.DataFrame:
    columns = {"load": "load_seconds", "256 continuations": "score_seconds", "MB": "memory_mb"}
    return pd.DataFrame(
        {"scorer": name, **{head: f"{exam['cost'][key]:g}" for head, key in columns.items()}}
        for name, exam in card.items()
    )


def _markdown(rows: pd.DataFrame) -> Iterator[str]:
    def row(cells: Sequence[Any]) -> str:
        return f"| {' | '.join(map(str, cells))} |"

    yield row(list(rows.columns))
    yield "|" + "---|" * len(rows.columns)
    yield from map(row, rows.itertuples(index=False))
