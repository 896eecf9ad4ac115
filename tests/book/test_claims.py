"""The papers' claims: the rule, what it says where nothing is there, and the committed list."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from companion import paths
from companion.book import claims, contents, editions
from companion.book.claims import Claim, Verdict, holm, rule, rulings
from companion.errors import CompanionError
from companion.metrics import estimates

CLAIM = Claim("one", "dpo", "x", "Table 1", "it works", "", "a drop", 0.0, 0.1, "drop", "second", ("null",))


def result(low: float, high: float) -> dict[str, float]:
    return {"value": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.2, 0.4, Verdict.HOLDS),
        (0.01, 0.12, Verdict.HOLDS),
        (-0.1, 0.3, Verdict.OPEN),
        (0.0, 0.3, Verdict.OPEN),
        (0.01, 0.09, Verdict.NOT),  # there, and too small to matter
        (-0.05, 0.05, Verdict.NOT),
        (-0.5, -0.3, Verdict.NOT),  # the other way
    ],
)
def test_the_rule(low, high, verdict):
    assert rule(result(low, high), 0.0, 0.1) is verdict
    assert rule(result(low + 0.5, high + 0.5), 0.5, 0.1) is verdict  # from another zero
    assert rule(result(-high, -low), 0.0, -0.1) is verdict  # of a claim that says "lower"


def test_the_rule_fails_where_nothing_is_there():
    """Of 1,000 small samples without an effect hardly more than the 2.5 % of one side pass."""
    generator = np.random.default_rng(0)
    held = [
        rule(dataclasses.asdict(estimates.mean(generator.normal(0, 0.3, 40), seed)), 0.0, 0.05)
        for seed in range(1000)
    ]
    assert np.mean([verdict is Verdict.HOLDS for verdict in held]) < 0.045


def only(**results) -> claims.Ruling:
    [ruling] = rulings(results, [CLAIM])
    return ruling


def test_two_scorers():
    good, bad, wide = result(0.3, 0.5), result(-0.05, 0.05), result(-0.1, 0.4)
    assert only(drop=good).verdict is Verdict.HOLDS
    assert only(drop=good, second=good).because.endswith("under both scorers")
    assert only(drop=good, second=bad).verdict is only(drop=bad, second=good).verdict is Verdict.PART
    assert only(drop=good, second=wide).verdict is Verdict.PART
    assert only(drop=bad, second=bad).verdict is Verdict.NOT
    assert only(drop=bad, second=wide).verdict is only(drop=wide, second=wide).verdict is Verdict.OPEN


def test_a_null_that_passes_takes_the_verdict_away():
    good = result(0.3, 0.5)
    assert only(drop=good, null=result(-0.1, 0.3)).verdict is Verdict.HOLDS
    ruling = only(drop=good, null=good)
    assert ruling.verdict is Verdict.OPEN and "where nothing is there" in ruling.because


def test_what_was_not_run_has_no_verdict():
    assert rulings({"other": result(0.3, 0.5)}, [CLAIM]) == []
    with pytest.raises(CompanionError, match="'drop', the contrast of 'one', has no interval"):
        rulings({"drop": {"value": 0.3}}, [CLAIM])


def test_holm():
    assert holm([]) == []
    assert holm([0.01, 0.04]) == [True, True]
    assert holm([0.03, 0.04]) == [False, False]
    assert holm([0.04, 0.01, 0.2]) == [False, True, False]


def test_many_contrasts_are_corrected_together():
    """An interval that just excludes 0 is enough alone, and not among ten."""
    near = result(0.001, 0.4)
    many = [dataclasses.replace(CLAIM, id=f"{i}", result=f"drop_{i}") for i in range(10)]
    assert only(drop=near).verdict is Verdict.HOLDS
    found = rulings({f"drop_{i}": near for i in range(10)}, many)
    assert {ruling.verdict for ruling in found} == {Verdict.OPEN} and "by chance" in found[0].because


def test_few_units_make_far_values_likely():
    """Three degrees of freedom: four half-widths away is p = .001, and not the 1e-14 of a normal one."""
    far, many = {"value": 0.4, "low": 0.3, "high": 0.5}, 100
    few = [dataclasses.replace(CLAIM, id=f"{i}", result=f"drop_{i}") for i in range(many)]
    for n, verdict in ((5, Verdict.OPEN), (300, Verdict.HOLDS)):
        found = rulings({f"drop_{i}": far | {"n": n} for i in range(many)}, few)
        assert {ruling.verdict for ruling in found} == {verdict}


def test_the_committed_claims():
    listed = claims.load()
    assert len({claim.id for claim in listed}) == len(listed) <= 16
    names = {chapter.name for chapter in contents.chapters()}
    cited = (paths.project() / "references.bib").read_text(encoding="utf-8")
    for claim in listed:
        assert claim.chapter in names and f"{{{claim.source}," in cited
        assert claim.least and claim.quote and claim.contrast and claim.place
        chapters = ("ablation", "patching", "editing", "evaluation")
        read_off_a_scorer = claim.chapter in chapters or claim.id == "dpo"
        assert (claim.second != "") == read_off_a_scorer, claim.id


def test_the_landing_page_has_every_claim_in_order():
    lines = (paths.project() / "intro.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if "{{scoreboard_" in line and line.startswith("|")]
    for row, claim in zip(rows, claims.load(), strict=True):
        published, verdict = claim.published or "—", claim.id.replace("-", "_")
        place = f"{{cite:t}}`{claim.source}`, {claim.place}"
        elsewhere = " | ".join(f"{{{{scoreboard_{name}_{verdict}}}}}" for name in editions.names())
        here = f"**{{{{scoreboard_{verdict}}}}}** | {elsewhere}"
        assert row == f"| {claim.quote} | {place} | {published} | {here} |"


# In Gemma, random directions share more beyond their null than the toxic one does: no verdict (README).
PASSED = {("gemma", "share"): {"controls_share_beyond_null_random"}}


@pytest.mark.parametrize("edition", editions.names())
def test_rules_fail_on_their_nulls(edition):
    """Where nothing is there, no edition may say that a claim holds; a null that passes takes the verdict."""
    results = editions.load(edition)["results"]
    said = {ruling.claim.id: ruling.verdict for ruling in rulings(results)}
    for claim in claims.load():
        nulls = set(claim.nulls) & set(results)
        passed = {null for null in nulls if rule(results[null], claim.zero, claim.least) is Verdict.HOLDS}
        assert passed == PASSED.get((edition, claim.id), set()), claim.id
        assert not passed or said[claim.id] is Verdict.OPEN
        assert nulls or claim.result not in results, claim.id


def test_every_null_is_a_result_of_some_edition():
    """Editions differ in how many trainings on shuffled preferences they have."""
    given = {name for edition in editions.names() for name in editions.load(edition)["results"]}
    for claim in claims.load():
        assert claim.nulls and set(claim.nulls) <= given, claim.id
