"""Editions, and the scoreboard that sets them beside a run."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from companion.book import editions, record, scoreboard
from companion.metrics.estimates import Estimate


def result(low: float, high: float) -> dict:
    return {"value": (low + high) / 2, "low": low, "high": high, "n": 1301, "seed": 0, "chapter": "dpo"}


HOLDS = {"controls_drop": result(0.41, 0.6123456), "controls_drop_second": result(0.3, 0.5)}


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Results of a run of the profile public; editions go to a folder of the test's."""
    monkeypatch.setattr(editions, "FOLDER", tmp_path / "editions")
    monkeypatch.setattr(record, "_records", {})
    monkeypatch.setattr(record, "_texts", {})
    return {"profile": "public", "parameters": {}, "results": HOLDS, "chapters": {"dpo": {"seconds": 7}}}


def test_an_edition_keeps_what_was_run_and_all_intervals(found):
    assert editions.names() == [] and editions.load("public")["results"] == {}
    path = editions.make(found)
    made = editions.load("public")
    assert path.name == "public.json" and editions.names() == ["public"]
    took = made["chapters"]["dpo"]
    assert took["seconds"] == 7 and took["profile"] == "public" and len(took["commit"]) in (0, 40)
    assert made["results"]["controls_drop"]["high"] == 0.61235 and "seed" not in path.read_text("utf-8")


def test_a_profile_at_an_editions_size_makes_the_edition_of_its_own(found):
    path = editions.make({**found, "profile": "full"})
    assert path.name == "embedded.json" and editions.names() == ["embedded"]
    assert editions.load("full") == editions.load("embedded")


def test_a_chapter_that_did_not_run_keeps_its_place_in_the_edition(found):
    other = {"value": 1.0, "low": 0.5, "high": 1.5, "n": 9, "chapter": "probe"}
    editions.make({**found, "results": {"accuracy": other}, "chapters": {"probe": {"seconds": 1}}})
    editions.make(found)
    made = editions.load("public")
    assert made["results"]["accuracy"] == other and set(made["results"]) == {"accuracy", *HOLDS}
    editions.make({**found, "results": {}})
    assert set(editions.load("public")["results"]) == {"accuracy"}  # what a chapter no longer gives is gone


def test_the_table_has_a_column_for_the_run_and_each_edition(found):
    table = scoreboard.table({"this run": HOLDS, "edition public": {}}).set_index("claim")
    cell = table.loc["DPO lowers toxicity", "this run"]
    assert cell.startswith("**holds**: +0.511 [+0.410, +0.612], n = 1,301; second scorer +0.400")
    assert set(table["edition public"]) == {"not in this run"}


def test_the_figure_has_a_row_per_tested_claim(found):
    [ax] = scoreboard.figure(HOLDS).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["DPO lowers toxicity"]
    plt.close("all")


def test_a_chapter_asks_editions_where_it_cannot_tell(found):
    record.result("controls_drop", Estimate(0.2, -0.1, 0.5, 9), seed=0)
    scoreboard.conclude("dpo")
    alone = record._texts["verdict_dpo"]
    assert alone.startswith("**cannot be told** (") and "edition" not in alone
    editions.make(found)
    scoreboard.conclude("dpo")
    assert record._texts["verdict_dpo"] == f"{alone}; in the edition of the profile *public* it **holds**"
    record.result("controls_drop", Estimate(0.0, -0.1, 0.05, 9), seed=0)
    scoreboard.conclude("dpo")
    assert record._texts["verdict_dpo"].startswith("**does not hold here** (")
    assert record._texts["verdict_dpo"].endswith("; in the edition of the profile *public* it **holds**")
