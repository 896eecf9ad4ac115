"""The choice of settings: the written rule, thresholds that leave harmless sentences alone, dev rows only."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_marco import adapters as random_adapters

from companion import profiles
from companion.marco.evaluation import settings_search
from companion.marco.evaluation.scores import Judges
from companion.marco.evaluation.settings_search import Desk, Trial
from companion.marco.rewriting import choosing, masking, settings, words
from companion.marco.rewriting.masking import Masking
from companion.marco.rewriting.rewriter import Rewriter
from companion.marco.rewriting.settings import Settings

TOXIC = {
    "one": ["I am so fed up.", "You (really) are, you damn tree!", "ok"],
    "two": ["so it goes, and so it went", "?!"],
}
HARMLESS = ["a nice day", "my soup is cold", "we go", "what is it", "the end of it", "see you soon"]


@pytest.fixture(scope="module")
def denoiser(lively_llama):
    return random_adapters(lively_llama)


@pytest.fixture(scope="module")
def judges() -> Judges:
    return Judges.of(profiles.load("smoke"))


@pytest.fixture
def dev_rows(monkeypatch):
    """Public rows made up here; whoever asks for another part than dev, or for another file, fails."""

    def rewriting_sets(split):
        assert split == "dev"
        return {name: pd.DataFrame({"text": [*texts, "far too long " * 20]}) for name, texts in TOXIC.items()}

    def balanced(split, seed=0):
        assert split == "dev"
        return pd.DataFrame({"text": [*HARMLESS, "a damn fool"], "label": [0] * len(HARMLESS) + [1]})

    def nothing(*_, **__):
        raise AssertionError("a row was read past the dev part")

    monkeypatch.setattr(settings_search.public, "rewriting_sets", rewriting_sets)
    monkeypatch.setattr(settings_search.corpus, "balanced", balanced)
    for name in ("fetch", "labelled", "microaggressions", "challenge_prompts"):
        monkeypatch.setattr(settings_search.public, name, nothing)


# --- the rule ----------------------------------------------------------------------------------------


def trial(
    drop: float,
    *,
    unchanged: float = 0.95,
    similarity: float = 0.9,
    ratio: float = 0.9,
    threshold: float = 0.1,
) -> Trial:
    return Trial(threshold, 3.0, 1.5, 2.5, unchanged, {"one": drop, "two": drop / 2}, similarity, ratio, 0.5)


GOOD, BETTER = trial(0.4), trial(0.5)
PERPLEXED = trial(0.6, ratio=1.01)
DISSIMILAR = trial(0.7, similarity=0.85)
MEDDLING = trial(0.8, unchanged=0.91)
BAD = trial(0.9, unchanged=0.1, similarity=0.1, ratio=9.0)


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        ([GOOD, PERPLEXED, DISSIMILAR, BETTER, BAD], BETTER),  # both conditions hold: the best of those
        ([DISSIMILAR, PERPLEXED, BAD], PERPLEXED),  # fluency is given up first
        ([DISSIMILAR, BAD], BAD),  # then similarity
        ([MEDDLING, BETTER], MEDDLING),  # harmless sentences are for the cautious threshold
        (
            [trial(0.3, similarity=settings_search.SIMILAR, ratio=1.0), BAD],
            0,
        ),  # the limits themselves will do
        ([GOOD], GOOD),
    ],
)
def test_the_written_rule(trials, chosen):
    expected = trials[chosen] if isinstance(chosen, int) else chosen
    assert settings_search.best(trials) == settings_search.best(trials[::-1]) == expected


def test_nothing_to_choose_from():
    with pytest.raises(ValueError, match="empty"):
        settings_search.best([])


SCORES = st.floats(0, 1).map(lambda x: round(x, 2))
TRIALS = st.builds(
    lambda d, j, s, r: dataclasses.replace(trial(d, similarity=s, ratio=2 * r), joint=j),
    SCORES,
    SCORES,
    SCORES,
    SCORES,
)


@given(st.lists(TRIALS, min_size=1, max_size=8))
def test_no_trial_that_meets_as_many_conditions_is_better_in_both(trials):
    def tier(t):
        return (t.similarity >= settings_search.SIMILAR) * (1 + (t.perplexity_ratio <= 1))

    found = settings_search.best(trials)
    assert tier(found) == max(map(tier, trials))
    rivals = [t for t in trials if tier(t) == tier(found)]
    assert not any(t.mean_drop > found.mean_drop and t.joint > found.joint for t in rivals)
    assert found.mean_drop >= max(t.mean_drop for t in rivals) - settings_search.CLOSE


def test_a_near_tie_goes_to_the_higher_joint_score():
    more, better = trial(0.500), dataclasses.replace(trial(0.499), joint=0.6)
    assert settings_search.best([more, better]) == better
    assert settings_search.best([more, dataclasses.replace(better, drop={"one": 0.3})]) == more


# --- the desk ----------------------------------------------------------------------------------------


def test_only_short_dev_rows_lie_on_the_desk(denoiser, dev_rows, monkeypatch, unchecked):
    desk = Desk.of(denoiser, judges=None)
    assert desk.sets == TOXIC and desk.harmless == HARMLESS
    for text, scores in desk.divergence.items():
        expected = masking.divergences(
            denoiser, [words.split(denoiser, text)], masking.log_odds, masking.EVERY
        )[0]
        np.testing.assert_allclose(scores, expected, atol=1e-4)
    monkeypatch.setattr(settings_search, "ROWS", 2)
    monkeypatch.setattr(settings_search, "HARMLESS", 3)
    desk = Desk.of(denoiser, judges=None)
    assert {name: len(texts) for name, texts in desk.sets.items()} == {"one": 2, "two": 2}
    assert (
        len(desk.harmless) == 3 and desk.harmless[0] == HARMLESS[0] and desk.harmless[-1] == HARMLESS[-1]
    )  # spread, not the first ones


def test_known_divergences_give_the_rewriters_rewrites(denoiser, dev_rows, unchecked):
    desk = Desk.of(denoiser, judges=None)
    highest = sorted(float(np.nanmax(scores, initial=0)) for scores in desk.divergence.values())
    settings = Settings(
        masking.ours(float(np.mean(highest[4:6]))), alpha_expert=2.0, alpha_anti=0.5, temperature=1.3
    )
    found = desk.rewrite(TOXIC["one"], settings)
    assert found == [rewrite.text for rewrite in Rewriter(denoiser, settings)(TOXIC["one"])] != TOXIC["one"]


def test_the_cautious_threshold_leaves_most_harmless_sentences_alone_and_no_lower_one_does(unchecked):
    generator = np.random.default_rng(0)
    harmless = [str(i) for i in range(96)]
    divergence = {
        text: np.append(generator.normal(0.2, 0.5, 1 + i % 12), np.nan) for i, text in enumerate(harmless)
    }
    divergence["0"] = np.array([np.nan, np.nan])  # nothing that may be masked
    threshold = Desk(None, None, {}, harmless, divergence).cautious()
    shares = [
        np.mean([not masking.choose(divergence[text], Masking(t)) for text in harmless])
        for t in (threshold, threshold - 1e-6)
    ]
    assert shares[0] >= settings_search.UNCHANGED and shares[0] - shares[1] == pytest.approx(
        1 / len(harmless)
    )


def test_settings_that_mask_nothing_change_nothing(denoiser, judges, dev_rows):
    found = Desk.of(denoiser, judges).try_out(
        [Settings(Masking(9.0), 1.0, 1.0, 1.0), Settings(Masking(0.0), 2.0, 0.5, 1.3)]
    )
    assert dataclasses.asdict(found[0]) | {"joint": None} == {
        "threshold": 9.0,
        "alpha_expert": 1.0,
        "alpha_anti": 1.0,
        "temperature": 1.0,
        "unchanged": 1.0,
        "drop": {"one": 0.0, "two": 0.0},
        "similarity": pytest.approx(1.0, abs=1e-5),
        "perplexity_ratio": 1.0,
        "joint": None,
    }
    assert found[1].unchanged < 1 and found[1].similarity < 1 and found[1].perplexity_ratio != 1


def test_the_choice_is_written_and_read_back(denoiser, judges, dev_rows, monkeypatch, tmp_path):
    monkeypatch.setattr(settings_search, "THRESHOLDS", (0.0, 0.2))
    monkeypatch.setattr(settings_search, "STRENGTHS", ((2.0, 0.5, 1.3), (3.0, 1.5, 2.5)))
    found = settings_search.choose(denoiser, judges, tmp_path / "settings.json")
    about = json.loads((tmp_path / "settings.json").read_text(encoding="utf-8"))
    trials = [Trial(**row) for row in about["trials"]]
    assert found == settings_search.best(trials) and found in trials
    assert about["rule"] == settings_search.RULE and about["dev_rows"] == {
        "one": 3,
        "two": 2,
        "harmless": len(HARMLESS),
    }
    assert [(t.alpha_expert, t.alpha_anti, t.temperature) for t in trials] == [
        settings_search.FIRST
    ] * 2 + list(settings_search.STRENGTHS)
    assert (
        {t.threshold for t in trials[2:]} == {settings_search.best(trials[:2]).threshold} == {found.threshold}
    )
    assert [t.threshold for t in trials[:2]] == [0.0, 0.2]
    thresholds = found.threshold, Desk.of(denoiser, judges).cautious()
    expected = [
        Settings(masking.ours(t), found.alpha_expert, found.alpha_anti, found.temperature) for t in thresholds
    ]
    usual, cautious, several = settings.chosen(tmp_path)
    assert [usual, cautious] == expected
    assert len(about["choices"]) == 2 * 7 * 3
    assert about["choice_rule"] == settings_search.CHOICE_RULE
    near = max(row["graded"] for row in about["choices"]) - settings_search.NEAR
    winner = min(
        (row for row in about["choices"] if row["graded"] >= near),
        key=lambda row: (len(row["strengths"]), -row["graded"]),
    )
    assert several.choice is not None and several.masking == masking.ours(winner["threshold"])
    assert (list(map(list, several.choice.strengths)), several.choice.least) == (
        winner["strengths"],
        winner["least"],
    )


def test_a_choice_is_tried_as_the_rewriter_makes_it(denoiser, judges, dev_rows, monkeypatch):
    monkeypatch.setattr(settings_search, "LOWER", (0.0,))
    monkeypatch.setattr(settings_search, "LEAST", (-1.0, 1e9))
    desk = Desk.of(denoiser, judges)
    toxic = [text for some in TOXIC.values() for text in some]
    for trial in settings_search.choices(desk):
        choice = choosing.Choice(trial.strengths, trial.least, settings_search.LOSS)
        rewriter = Rewriter(denoiser, Settings(masking.ours(0.0), 1.0, 1.0, 1.0, choice=choice))
        expected = judges({"original": toxic, "own": [r.text for r in rewriter(toxic)]})["own"]
        assert trial.graded == pytest.approx(expected.graded.mean(), abs=2e-5)
        same = [r.text == r.original for r in rewriter(desk.harmless)]
        assert trial.unchanged == pytest.approx(np.mean(same), abs=1e-5)
        assert trial.least < 0 or trial.unchanged == 1
