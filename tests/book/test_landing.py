"""The landing page and the tops of chapters: what they say follows from results and files."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import nbformat
import pytest

from companion import paths
from companion.book import build, claims, contents, editions, findings, landing, record, scoreboard
from companion.book.claims import Verdict

INTRO = (paths.project() / "intro.md").read_text(encoding="utf-8")


def result(low: float, high: float) -> dict:
    return {"value": (low + high) / 2, "low": low, "high": high, "n": 300}


def test_every_claim_of_the_landing_page_has_a_saying_for_every_verdict():
    assert set(findings.SAYINGS) <= {claim.id for claim in claims.load()}
    for claim, sayings in findings.SAYINGS.items():
        assert set(sayings) == set(Verdict) - {Verdict.PART}
        assert len(set(sayings.values())) == 3
        assert f"{{{{scoreboard_finding_{claim.replace('-', '_')}}}}}" in INTRO


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((-0.2, -0.1), (-0.2, -0.1), Verdict.HOLDS),
        ((-0.2, 0.1), (-0.2, 0.1), Verdict.OPEN),
        ((-0.01, 0.01), (-0.01, 0.01), Verdict.NOT),
    ],
)
def test_results_choose_the_sentence(first, second, expected):
    found = {"ablation_dpo_minus_toxic": result(*first), "ablation_dpo_minus_toxic_second": result(*second)}
    said = findings.of(found, {})
    assert said["not-enough"] == findings.SAYINGS["not-enough"][expected]
    assert said["marco"] == "This run does not test whether MaRCo lowers toxicity."


def test_where_a_run_cannot_tell_its_edition_is_asked():
    cannot, small, large = (
        {"evaluation_drop_marco": result(*ends)} for ends in ((-0.1, 0.4), (-0.05, 0.05), (0.3, 0.4))
    )
    sayings = findings.SAYINGS["marco"]
    assert findings.of(cannot, large)["marco"].startswith(f"{sayings[Verdict.HOLDS]} (So says the ed")
    assert findings.of(cannot, cannot)["marco"] == sayings[Verdict.OPEN]
    assert findings.of(small, large)["marco"] == sayings[Verdict.NOT]


def test_one_scorer_of_two_is_said():
    found = {"evaluation_drop_marco": result(0.3, 0.4), "evaluation_drop_second_marco": result(-0.1, 0.05)}
    assert findings.of(found, {})["marco"].startswith("By one scorer of two, but not by the other: ")


def test_the_map_has_every_chapter_once_below_what_it_builds_on():
    drawn = landing.chapter_map({"dpo": 600.0})
    linked = re.findall(r'href="chapters/(\w+)\.html"', drawn)
    assert sorted(linked) == sorted(chapter.path.stem for chapter in contents.chapters())
    floor = {stem: drawn[: drawn.index(stem)].count('<div class="floor">') for stem in linked}
    together = [chapter for part in contents.parts().values() for chapter in part]
    assert together == contents.chapters()
    for part in contents.parts().values():
        stems = {chapter.name: chapter.path.stem for chapter in part}
        for chapter in part:
            for name in set(chapter.after or ()) & set(stems):
                assert floor[stems[name]] < floor[chapter.path.stem]
    assert INTRO.count(landing.MARK) == 1 and ", 10 to run" in drawn and drawn.count("to run") == 1


def test_headings_are_a_name_and_a_question():
    for chapter in contents.chapters():
        assert re.fullmatch(r"[A-Z]\w+: [^:]+\?", chapter.title), chapter.title


def test_badges_are_the_verdicts_of_a_chapter():
    said = {f"scoreboard_{claim.id.replace('-', '_')}": "holds" for claim in claims.load()}
    said["scoreboard_unalign"] = "cannot be told"
    shown = scoreboard.badges("ablation", said)
    assert shown.count("{bdg-ref-success}`holds <12_scoreboard>`") == 3
    assert shown.count("{bdg-ref-muted}`cannot be told <12_scoreboard>`") == 1
    assert "DPO lowers toxicity" in scoreboard.badges("dpo", said)
    assert scoreboard.badges("setting", said) == "" == scoreboard.badges("ablation", {})
    named = {name for claim in claims.load() for name in claim.also}
    assert named <= {chapter.name for chapter in contents.chapters()}


def test_a_built_chapter_opens_with_its_badges_and_the_picture_is_copied(tmp_path):
    chapter = contents.chapters(["scoreboard"])[0]
    executed = tmp_path / "executed.ipynb"
    cell = nbformat.v4.new_code_cell(metadata={"mystnb": {"figure": {"name": "scoreboard-picture"}}})
    cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": "aGVsbG8="})]
    cells = [nbformat.v4.new_markdown_cell("# 7 · Controls\n\ntext"), cell]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), executed)
    controls = contents.chapters(["controls"])[0]
    build._copy_chapter(controls, executed, {"scoreboard_dpo": "holds in part"}, tmp_path / "built.ipynb")
    top = nbformat.read(tmp_path / "built.ipynb", as_version=4).cells[0].source
    assert (
        top
        == "# 7 · Controls\n\n{bdg-ref-warning}`holds in part <12_scoreboard>` DPO lowers toxicity\n\ntext"
    )
    build._copy_picture(executed, tmp_path / landing.PICTURE)
    assert (tmp_path / landing.PICTURE).read_bytes() == b"hello" and landing.PICTURE in INTRO
    names = [c.metadata.get("mystnb", {}).get("figure", {}).get("name") for c in cells_of(chapter)]
    assert "scoreboard-picture" in names


def cells_of(chapter: contents.Chapter) -> list[nbformat.NotebookNode]:
    return nbformat.read(chapter.path, as_version=4).cells


def test_the_picture_needs_no_result_but_shows_all():
    for results, bars in (({}, 0), (editions.load("embedded")["results"], 8)):
        figure = scoreboard.picture(results)
        assert sum(len(ax.patches) for ax in figure.axes) == bars
    plt.close("all")
    assert record.names(INTRO)
