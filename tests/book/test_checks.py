"""A run against its baseline and the papers; and the committed baselines themselves."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from companion import paths, profiles
from companion.book import checks, runner
from companion.errors import CompanionError

PUBLISHED = {
    "source": "lee2024",
    "table": "Table 2",
    "setting": "gpt2-medium",
    "intervention": "none",
    "metric": "toxicity",
}


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


def found(value, chapter="one", **more) -> dict:
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
    rows, missing = compare({"a": found(value)}, {"a": expected(base, tolerance)})
    assert rows["a"].ok is ok and missing == []
    assert ("same" if ok else "differs") in shown(rows)


def test_without_a_baseline_nothing_is_judged(compare):
    for baseline in (None, {}, {"b": expected(1.0, chapter="two")}):
        rows, missing = compare({"a": found(0.5)}, baseline)
        assert rows["a"].ok is None and missing == []
        assert "same" not in shown(rows) and "differs" not in shown(rows)


def test_missing_results_of_chapters_that_ran(compare):
    baseline = {"a": expected(1.0), "gone": expected(1.0), "elsewhere": expected(1.0, chapter="two")}
    rows, missing = compare({"a": found(1.0)}, baseline)
    assert missing == ["gone"] and set(rows) == {"a"}


def test_undefined_values_can_be_shown(compare):
    rows, _ = compare(
        {
            "a": found(None),
            "b": found(0.5, low=None, high=None, n=3),
            "c": found(0.123456, low=0.1, high=0.2, n=30),
        },
        None,
    )
    text = shown(rows)
    assert "undefined" in text and "0.1235" in text and "[0.1, 0.2]" in text


def test_published_value_is_looked_up(compare):
    rows, _ = compare(
        {"a": found(0.4), "b": found(1.0)}, {"a": expected(0.4, published=PUBLISHED), "b": expected(1.0)}
    )
    assert rows["a"].published == "0.453 (gpt2-medium)" and rows["b"].published == ""
    assert "0.453" in shown(rows)


def test_names_are_not_read_as_markup(compare):
    """B36"""
    rows, _ = compare({"a[old] [/x]": found(0.4), ":cat:": found(1.0)}, {"a[old] [/x]": expected(0.4)})
    assert "a[old] [/x]" in shown(rows) and ":cat:" in shown(rows)


@pytest.mark.parametrize("key", [{**PUBLISHED, "metric": "nonsense"}, {"source": "lee2024"}])
def test_published_key_must_pick_one_row(compare, key):
    with pytest.raises(ValueError, match=r"rows of published\.csv, not one"):
        compare({"a": found(0.4)}, {"a": expected(0.4, published=key)})


def test_run_without_results(tmp_path):
    with pytest.raises(CompanionError, match=r"holds no results.json: run `companion run` first"):
        checks.load_results(tmp_path)


# --- what is committed ---------------------------------------------------------------------------


def problems(baseline: dict, chapters: set[str], published: pd.DataFrame) -> list[str]:
    """What is wrong with a baseline file."""
    wrong = []
    for name, entry in baseline.items():
        if (
            not isinstance(entry.get("value"), int | float)
            or not isinstance(entry.get("tolerance"), int | float)
            or not 0 <= entry["tolerance"] < float("inf")
        ):
            wrong.append(f"{name}: no value or tolerance")
        elif len(entry.get("reason", "").split()) < 3:
            wrong.append(f"{name}: no reason for the tolerance")
        if entry.get("chapter") not in chapters:
            wrong.append(f"{name}: no chapter '{entry.get('chapter')}'")
        key = entry.get("published")
        if key:
            match = (
                published[(published[list(key)] == pd.Series(key)).all(axis=1)]
                if set(key) <= set(published.columns)
                else []
            )
            if len(match) != 1:
                wrong.append(f"{name}: {key} picks {len(match)} published rows")
    return wrong


def test_baselines_are_complete_and_refer_to_published_rows():
    published = pd.read_csv(paths.DATA / "published.csv")
    chapters = {chapter.name for chapter in runner.chapters()}
    good = {
        "a": {
            "value": 1.0,
            "tolerance": 0.1,
            "reason": "seeds differ by this",
            "chapter": min(chapters),
            "published": PUBLISHED,
        }
    }
    assert problems(good, chapters, published) == []
    for change in (
        {"reason": ""},
        {"tolerance": None},
        {"tolerance": -1},
        {"value": None},
        {"chapter": "x"},
        {"published": {"source": "x"}},
        {"published": {"no": 1}},
    ):
        assert problems({"a": {**good["a"], **change}}, chapters, published), change
    for path in (Path(__file__).parents[1] / "baselines").glob("*.json"):
        assert path.stem in profiles.names()
        assert problems(json.loads(path.read_text(encoding="utf-8")), chapters, published) == [], path.name


def test_published_table_is_sound():
    published = pd.read_csv(paths.DATA / "published.csv")
    assert not published.duplicated().any()
    assert pd.to_numeric(published.value, errors="coerce").notna().all()
    assert published[["source", "metric", "kind"]].notna().all(axis=None)
