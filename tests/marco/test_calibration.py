"""Scores against ratings: what follows people is found to, what does not is not, and one half chooses."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest

from companion.marco.evaluation import calibration, quality
from companion.marco.evaluation.scores import Verdict
from companion.metrics import estimates

SENTENCES, SYSTEMS = 60, ("one", "two", "three")


def verdict(toxicity, similarity, loss, base_loss) -> Verdict:
    n = len(toxicity)
    same = {"second": toxicity, "lexical": toxicity, "bertscore": similarity, "bleu": similarity}
    counts = {"count": np.full(n, 10.0), "base_count": np.full(n, 10.0)}
    losses = {"nll": 10.0 * np.asarray(loss), "base_nll": 10.0 * np.asarray(base_loss)}
    return Verdict(["text"] * n, toxicity, similarity=similarity, **same, **counts, **losses)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Enough for what these tests say; the interval itself is tested in tests/metrics."""
    monkeypatch.setattr(estimates, "bootstrap", partial(estimates.bootstrap, resamples=60))


@pytest.fixture
def rated():
    """Ratings, and verdicts of which toxicity follows style, and similarity nothing."""
    draw = np.random.default_rng(0)
    n = SENTENCES * len(SYSTEMS)
    rows = pd.DataFrame(draw.random((n, 3)), columns=["style", "meaning", "fluency"])
    rows["original"] = np.repeat([f"sentence {i}" for i in range(SENTENCES)], len(SYSTEMS))
    rows["system"] = np.tile(SYSTEMS, SENTENCES)
    toxicity, loss = 1 - rows["style"].to_numpy(), 3 - rows["fluency"].to_numpy()
    own = verdict(toxicity, draw.random(n), loss, np.full(n, 2.0))
    return rows, own, verdict(np.full(n, 0.9), np.ones(n), np.full(n, 2.0), np.full(n, 2.0))


def test_what_follows_people_is_found(rated):
    rows, own, original = rated
    found = calibration.calibrate(rows, own, original)
    assert found["n"] == {"rewrites": len(rows), "sentences": SENTENCES}
    style, meaning = found["parts"]["style"]["embedded"], found["parts"]["meaning"]["similarity"]
    for of in ("all", *SYSTEMS):
        assert style[of]["value"] == pytest.approx(1) and style[of]["n"] == SENTENCES
        assert found["parts"]["fluency"]["perplexity / original"][of]["value"] == pytest.approx(1)
        assert -0.6 < meaning[of]["low"] < meaning[of]["high"] < 0.6  # of 60 sentences at random: ± .25
    followed = {name: by_half["chosen on"] for name, by_half in found["joints"].items()}
    assert found["chosen"] == calibration.chosen(followed) and set(found["joints"]) == set(calibration.JOINTS)


def test_of_scores_as_good_as_the_best_one_that_gives_nothing_for_nothing_is_taken():
    best, good, worse = ({"value": v, "low": v - 0.1} for v in (0.6, 0.52, 0.4))
    gone, second = calibration.WORTHLESS
    assert calibration.chosen({"graded": best, gone: good, second: worse}) == gone
    assert calibration.chosen({"graded": best, gone: worse, second: worse}) == "graded"
    assert calibration.chosen({"graded": good, gone: best, second: best}) in calibration.WORTHLESS


def test_the_halves_share_no_sentence(rated):
    rows, own, original = rated
    halves = calibration.calibrate(rows, own, original)["joints"]["graded"]
    assert halves["chosen on"]["n"] + halves["tested on"]["n"] == SENTENCES
    second = (np.arange(len(rows)) // len(SYSTEMS)) % 2 == 1
    flipped = {k: np.where(second, 1 - rows[k], rows[k]) for k in ("style", "meaning", "fluency")}
    mixed = rows.assign(**flipped)
    changed = calibration.calibrate(mixed, own, original)["joints"]["graded"]
    assert changed["chosen on"] == halves["chosen on"] and changed["tested on"] != halves["tested on"]


def test_intervals_resample_sentences_with_all_their_rewrites():
    """Copies of a rewrite are no further evidence."""
    draw = np.random.default_rng(1)
    people, proxy, sentence = draw.random(40), draw.random(40), np.arange(40)
    once = calibration.rank_correlation(people, proxy, sentence)
    thrice = calibration.rank_correlation(np.tile(people, 3), np.tile(proxy, 3), np.tile(sentence, 3))
    assert thrice.n == once.n == 40
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=0.02)


def test_a_difference_is_paired():
    draw = np.random.default_rng(2)
    people, noise, sentence = draw.random(50), draw.random(50), np.arange(50)
    better = calibration.difference(people, people, noise, sentence)
    assert better.low > 0.5
    same = calibration.difference(people, noise, noise + 1, sentence)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_score_that_is_the_same_for_all_follows_nobody():
    people, flat, sentence = np.arange(9.0), np.ones(9), np.arange(9)
    assert calibration.rank_correlation(people, flat, sentence).value == 0


def test_doing_nothing_is_worth_nothing():
    assert quality.gone([0.8, 0.2, 0.5], [0.8, 0.3, 0.1]).tolist() == pytest.approx([0, 0, 0.8])
    same = verdict(np.array([0.2]), np.ones(1), [2.0], [2.0])
    assert same.relative_fluency.tolist() == [1.0]
    assert quality.gone(same.toxicity, same.toxicity).tolist() == [0.0] and same.joint.tolist() == [1.0]


def test_results_are_written_and_no_row(rated, tmp_path):
    rows, own, original = rated
    rows["rewritten"] = "so it goes"
    found = calibration.make(lambda _: {"original": original, "rewritten": own}, rows, tmp_path)
    written = (tmp_path / "calibration.json").read_text(encoding="utf-8")
    assert json.loads(written) == found and "sentence 1" not in written and "so it goes" not in written
