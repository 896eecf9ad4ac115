"""A run against its baseline and the papers; and the committed baselines themselves."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from companion import paths, profiles
from companion.book import checks, contents, editions, published_values, runs
from companion.book.claims import Verdict
from companion.errors import CompanionError
from companion.mechanism import methods


@pytest.fixture
def compare(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "project", lambda: tmp_path)

    def run(results: dict, baseline: dict | None):
        if baseline is not None:
            (tmp_path / "tests" / "baselines").mkdir(parents=True, exist_ok=True)
            (tmp_path / "tests" / "baselines" / "smoke.json").write_text(
                json.dumps(baseline), encoding="utf-8"
            )
        rows, missing = checks.compare({"profile": "smoke", "results": results})
        return {row.name: row for row in rows}, missing

    return run


def result(value, chapter="one", **more) -> dict:
    return {"value": value, "seed": 0, "chapter": chapter, **more}


def expected(value, tolerance=0.1, chapter="one", **more) -> dict:
    return {"value": value, "tolerance": tolerance, "reason": "because", "chapter": chapter, **more}


def shown(rows) -> str:
    console = Console(file=io.StringIO(), width=250)
    console.print(checks.table(list(rows.values())))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "base", "tolerance", "ok"),
    [
        (1.0, 1.0, 0.0, True),
        (1.05, 1.0, 0.1, True),
        (0.95, 1.0, 0.1, True),
        (1.11, 1.0, 0.1, False),
        (0.89, 1.0, 0.1, False),
        (-1.0, 1.0, 0.1, False),
        (1000.5, 1000.0, 0.1, False),  # absolute, not relative
        (None, 1.0, 0.1, False),
    ],
)
def test_same_and_differs(compare, value, base, tolerance, ok):
    rows, missing = compare({"a": result(value)}, {"a": expected(base, tolerance)})
    assert rows["a"].ok is ok and missing == []
    assert ("same" if ok else "differs") in shown(rows)


def test_without_a_baseline_nothing_is_judged(compare):
    for baseline in (None, {}, {"b": expected(1.0, chapter="two")}):
        rows, missing = compare({"a": result(0.5)}, baseline)
        assert rows["a"].ok is None and missing == []
        assert "same" not in shown(rows) and "differs" not in shown(rows)


def test_missing_results_of_chapters_that_ran(compare):
    baseline = {"a": expected(1.0), "gone": expected(1.0), "elsewhere": expected(1.0, chapter="two")}
    rows, missing = compare({"a": result(1.0)}, baseline)
    assert missing == ["gone"] and set(rows) == {"a"}


def test_undefined_values_can_be_shown(compare):
    rows, _ = compare(
        {
            "a": result(None),
            "b": result(0.5, low=None, high=None, n=3),
            "c": result(0.123456, low=0.1, high=0.2, n=30),
        },
        None,
    )
    text = shown(rows)
    assert "undefined" in text and "0.1235" in text and "[0.1, 0.2]" in text


def test_published_value_is_looked_up(compare):
    rows, _ = compare({"setting_toxicity": result(0.4), "b": result(1.0)}, None)
    assert rows["setting_toxicity"].published == "0.453 (gpt2-medium)" and rows["b"].published == ""
    assert "0.453" in shown(rows)


def test_names_are_not_read_as_markup(compare):
    """B36"""
    rows, _ = compare({"a[old] [/x]": result(0.4), ":cat:": result(1.0)}, {"a[old] [/x]": expected(0.4)})
    assert "a[old] [/x]" in shown(rows) and ":cat:" in shown(rows)


def test_run_without_results(tmp_path):
    with pytest.raises(CompanionError, match=r"holds no results.json: run `companion run` first"):
        runs.load_results(tmp_path)


# --- what is committed ---------------------------------------------------------------------------


def problems(baseline: dict, chapters: set[str]) -> list[str]:
    """What is wrong with a baseline file."""
    wrong = []
    for name, entry in baseline.items():
        numbers = [entry.get("value"), entry.get("tolerance")]
        if not all(isinstance(number, int | float) for number in numbers) or not 0 <= numbers[1] < float(
            "inf"
        ):
            wrong.append(f"{name}: no value or tolerance")
        elif len(entry.get("reason", "").split()) < 3:
            wrong.append(f"{name}: no reason for the tolerance")
        if entry.get("chapter") not in chapters:
            wrong.append(f"{name}: no chapter '{entry.get('chapter')}'")
    return wrong


def test_baselines_are_complete():
    chapters = {chapter.name for chapter in contents.chapters()}
    good = {"value": 1.0, "tolerance": 0.1, "reason": "seeds differ by this", "chapter": min(chapters)}
    assert problems({"a": good}, chapters) == []
    for change in ({"reason": ""}, {"tolerance": None}, {"tolerance": -1}, {"value": None}, {"chapter": "x"}):
        assert problems({"a": good | change}, chapters), change
    for path in (Path(__file__).parents[1] / "baselines").glob("*.json"):
        assert path.stem in profiles.names()
        assert problems(json.loads(path.read_text(encoding="utf-8")), chapters) == [], path.name


def test_published_table_is_sound():
    published = published_values.rows()
    assert not published.duplicated().any()
    assert pd.to_numeric(published.value, errors="coerce").notna().all()
    assert published[["source", "metric", "kind"]].notna().all(axis=None)


def test_published_values_stand_beside_results_that_there_are():
    named = published_values.rows().results.dropna().str.split().explode()
    assert not named.duplicated().any()  # a result has one counterpart
    assert set(published_values.beside()) == set(named)
    # The embedded profile lacks some of the papers' sizes, factors and directions; complete ones have them.
    further = [
        *(f"{kind}{n}" for kind in ("", "positive_") for n in methods.SIZES),
        *(f"keys_{factor}" for factor in methods.FACTORS),
        *(f"subtract_{key}" for key in methods.SUBTRACTED),
    ]
    metrics = ("toxicity", "perplexity", "f1")
    complete = {f"ablation_{metric}_{key}" for metric in metrics for key in further}
    assert set(named) <= complete | set(checks.load_baseline("embedded"))


def test_published_rows_are_picked_by_column():
    picked = published_values.rows(source="lee2024", table="Table 2", intervention="DPO", metric="f1")
    [row] = picked.itertuples()
    assert (row.value, row.results) == (0.195, "dpo_f1_dpo")
    assert published_values.rows(source="lee2024", metric="nonsense").empty


# --- verdicts


@pytest.fixture
def edition(tmp_path, monkeypatch):
    """Make results the edition of the profile smoke."""
    monkeypatch.setattr(editions, "FOLDER", tmp_path / "editions")

    def write(results: dict) -> None:
        editions.FOLDER.mkdir(exist_ok=True)
        path = editions.FOLDER / "smoke.json"
        path.write_text(json.dumps({"profile": "smoke", "results": results}), encoding="utf-8")

    return write


def drop(low: float, high: float) -> dict:
    return result((low + high) / 2, "dpo", low=low, high=high, n=9)


def test_a_verdict_has_changed_if_what_it_rests_on_has_drifted(compare, edition):
    before = {"controls_drop": drop(0.4, 0.6), "evaluation_drop_marco": drop(0.3, 0.5)}
    edition(before)
    baseline = {name: expected(r["value"], 0.1, "dpo") for name, r in before.items()}
    for now, outcome in (
        (drop(0.4, 0.6), None),
        (drop(-0.1, 0.05), (Verdict.NOT, True)),
        (drop(-0.02, 0.9), (Verdict.OPEN, False)),  # on the border, within tolerance
    ):
        found = {"controls_drop": now}  # a part of the book: the other claim is not asked about
        rows, _ = compare(found, baseline)
        changes = checks.changed_verdicts({"profile": "smoke", "results": found}, list(rows.values()))
        said = [(c.claim, c.before, c.now, c.drifted) for c in changes]
        assert said == ([("dpo", Verdict.HOLDS, *outcome)] if outcome else [])


@pytest.mark.parametrize(
    ("drifted", "units", "end"),
    [
        (True, (301, 64), "in this run."),
        (False, (301, 64), "Nothing has drifted: this run has n = 64, the edition 301."),
        (False, (64, 64), "it stands on the border."),
    ],
)
def test_why_a_verdict_is_another(drifted, units, end):
    assert checks.sentence(checks.Change("dpo", "holds", "cannot be told", drifted, units)).endswith(end)


def test_what_has_no_edition_has_no_changed_verdict(edition):
    found = {"profile": "smoke", "results": {"controls_drop": drop(0, 1)}}
    assert checks.changed_verdicts(found, []) == []
