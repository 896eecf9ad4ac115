"""The scorers' card: tables, figure and verdict say what card.json says; the shipped one is whole."""

from __future__ import annotations

import copy
import json
import shutil

import matplotlib.pyplot as plt
import pytest

from companion import paths
from companion.book import scorer_card, scorer_plots, scorer_tables
from companion.errors import CompanionError


@pytest.fixture
def card() -> dict:
    """The shipped card's first scorer and a better one."""
    name, exam = next(iter(scorer_card.load().items()))
    better = copy.deepcopy(exam)
    for line in scorer_card.LINES:
        found = better
        for key in line.path.split("/"):
            found = found[key]
        found["value"] = found["low"] = found["high"] = 1.0 if line.better == "↑" else 0.0
    return {name: exam, "second": better}


def test_the_shipped_readme_is_that_of_the_shipped_card():
    readme = (scorer_tables.FOLDER / "README.md").read_text(encoding="utf-8")
    block = readme.partition("<!-- card -->\n")[2].partition("\n<!-- /card -->")[0]
    assert block == "\n".join(scorer_tables.tables(scorer_card.load()))
    front = (paths.project() / "README.md").read_text(encoding="utf-8")
    assert f"<!-- ruler -->\n{scorer_card.bent(scorer_card.load(), 'embedded')}\n<!-- /ruler -->" in front


def test_the_card_has_what_the_issue_asks_for():
    for name, exam in scorer_card.load().items():
        assert set(exam["sets"]) == {"dynahate", "jigsaw", "paradetox", "sbf"}, name
        assert len(exam["hatecheck"]["functionality"]) == 29 and len(exam["madlibs"]["groups"]) == 50
        assert len(exam["perspective"]["deciles"]) == 10 and len(exam["disguises"]) == 9
        assert all(line.of(exam).n > 0 for line in scorer_card.LINES)
        assert (exam["hatecheck"]["overall"]["n"], exam["madlibs"]["auc"]["n"]) == (1866, 2000)


def test_making_is_stable_and_touches_the_tables_only(tmp_path, monkeypatch, card):
    shutil.copy(paths.DATA / "scorer" / "README.md", tmp_path)
    monkeypatch.setattr(scorer_tables, "FOLDER", tmp_path)
    (tmp_path / "project").mkdir()
    shutil.copy(paths.project() / "README.md", tmp_path / "project")
    monkeypatch.setattr(paths, "project", lambda: tmp_path / "project")
    before = (tmp_path / "README.md").read_text(encoding="utf-8")
    written = [
        scorer_tables.make(card).read_bytes() + (tmp_path / "README.md").read_bytes() for _ in range(2)
    ]
    after = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (
        written[0] == written[1] and json.loads((tmp_path / "card.json").read_text(encoding="utf-8")) == card
    )
    assert before.split("<!-- card -->")[0] == after.split("<!-- card -->")[0]
    assert before.split("<!-- /card -->")[1] == after.split("<!-- /card -->")[1]
    (tmp_path / "README.md").write_text("nothing", encoding="utf-8")
    with pytest.raises(CompanionError, match=r"no place for .*<!-- card -->"):
        scorer_tables.make(card)


def test_verdicts(card):
    aims = sum(line.target is not None for line in scorer_card.LINES)
    assert scorer_card.verdict(card, "second") == f"reaches each of the {aims} targets"
    assert scorer_card.verdict(card, "nobody") == "is not on the card"
    exam = copy.deepcopy(card["second"])
    exam["exchange"]["mean"]["value"] = 0.2
    assert scorer_card.verdict({"second": exam}, "second").endswith(
        "misses these: mean change when groups are exchanged (0.200, wanted ≤ 0.05)"
    )


def test_differences_of_two_scorers(card):
    exam = card["second"]
    other = copy.deepcopy(exam)
    assert scorer_card.differences({"embedded": exam}) == "are not both on the card"
    alike = scorer_card.differences({"embedded": exam, "second": other})
    assert alike == "are within 0.05 of each other on every line"
    other["sets"]["sbf"]["value"] = 0.9
    n = len(scorer_card.LINES)
    assert scorer_card.differences({"embedded": exam, "second": other}) == (
        f"are within 0.05 of each other on {n - 1} of {n} lines, but for: "
        "Social Bias Frames: AUC (1.000, 0.900)"
    )


def test_what_a_bent_ruler_means(card):
    exam = card["second"]
    for low, value, high, begins in (
        (0.06, 0.07, 0.08, "A name alone moves it: "),
        (0.04, 0.06, 0.08, "Whether a name alone moves it by more than 0.05 cannot be told: "),
        (0.02, 0.03, 0.04, "A name alone moves it little: "),
    ):
        exam["exchange"]["mean"] = {"low": low, "value": value, "high": high, "n": 10}
        assert scorer_card.bent(card, "second").startswith(begins)
    assert scorer_card.bent(card, "nobody") == "How it takes the names of groups is not known here."


def test_the_verdict_on_names_fails_on_its_null(card):
    """A scorer that knows nothing misses the other lines about groups, but no name moves it."""
    exam = card["second"]
    nothing = {"value": 0.5, "low": 0.5, "high": 0.5, "n": 10}
    exam["madlibs"]["worst"] = {"bpsn": nothing, "harmless": nothing}
    exam["exchange"]["mean"] = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 10}
    assert scorer_card.bent(card, "second").startswith("A name alone moves it little")


def test_the_figure_shows_every_line_and_scorer(card):
    ax = scorer_plots.figure(card).axes[0]
    assert len(ax.get_yticklabels()) == len(scorer_card.LINES)
    assert {text.get_text() for text in ax.texts} == set(card)
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"target", "Perspective, published"}
    means = {name: {"deaf": scorer_card.LINES[0].of(exam)} for name, exam in card.items()}
    assert {text.get_text() for text in scorer_plots.by_group(means).axes[0].texts} == set(card)
    plt.close("all")


def test_published_values_of_perspective():
    assert [scorer_card.perspective(line.published) for line in scorer_card.LINES[:3]] == [
        0.766,
        0.895,
        0.482,
    ]
    assert scorer_card.perspective(None) is None
    kinds = next(iter(scorer_card.load().values()))["hatecheck"]["functionality"]
    assert all(scorer_card.perspective(f"right_{kind}") is not None for kind in kinds)
