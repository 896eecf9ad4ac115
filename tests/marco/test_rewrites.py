"""Rewrites of several methods and their scores: the store, ablations, what a verdict counts."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from test_marco import adapters as random_adapters

from companion import paths, profiles
from companion.marco.denoisers.protocol import BASE, EXPERT
from companion.marco.evaluation import baselines, rewrites
from companion.marco.evaluation.rewrites import filled, marco, methods, shuffled, variants
from companion.marco.evaluation.scores import ALLOWED, Judges, Verdict
from companion.marco.experts.loading import Experts
from companion.marco.rewriting import masking, rewriter
from companion.marco.rewriting.choosing import Choice
from companion.marco.rewriting.masking import Masking
from companion.marco.rewriting.rewriter import Rewriter
from companion.marco.rewriting.settings import PUBLISHED, Settings, alone

TEXTS = [
    "I am so fed up.",
    "You (really) are, you damn tree!",
    "",
    "ok",
    "?!",
    "so it goes, and so it went",
    "what is it",
]
SETTINGS = Settings(Masking(1.0, relative=True), alpha_expert=2.0, alpha_anti=0.5, temperature=1.3)


@pytest.fixture(scope="module")
def denoiser(lively_llama):
    return random_adapters(lively_llama)


@pytest.fixture
def experts(denoiser, tmp_path, monkeypatch) -> Experts:
    """Random experts and an empty store."""
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))
    cautious = dataclasses.replace(SETTINGS, masking=Masking(0.3))
    choice = Choice(((2.0, 0.5, 1.3), (3.0, 1.0, 1.0)), least=-math.inf, loss=0.1)
    return Experts(denoiser, SETTINGS, cautious, dataclasses.replace(SETTINGS, choice=choice), "random")


def stored() -> int:
    """Number of lists of rewrites in the store."""
    return len(list(paths.cache().glob("rewrites/*/made.json")))


# --- the store ---------------------------------------------------------------------------------------


def test_the_store_changes_nothing_and_asks_once(experts, monkeypatch):
    monkeypatch.setattr(rewrites, "STORED", 3)
    plain = Rewriter(experts.denoiser, SETTINGS)(TEXTS)
    made = marco(experts, TEXTS)
    monkeypatch.setattr(
        rewrites, "Rewriter", lambda denoiser, settings: None
    )  # whoever asks the model again fails
    for found in (made, marco(experts, TEXTS, SETTINGS)):
        for a, b in zip(found, plain, strict=True):
            assert (a.original, a.text, a.masked, a.sentence) == (b.original, b.text, b.masked, b.sentence)
            np.testing.assert_allclose(a.divergence, b.divergence, atol=1e-4)  # NaN in the same places
    assert stored() == 3


def test_an_interrupted_build_goes_on_where_it_stopped(experts, monkeypatch):
    monkeypatch.setattr(rewrites, "STORED", 2)
    plainly = Rewriter(experts.denoiser, SETTINGS)(TEXTS)
    masked = [r.masked for r in plainly]
    plain, asked = rewriter.fill, []

    def fill(denoiser, sentences, *given, **named):
        asked.append([sentence.text for sentence in sentences])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return plain(denoiser, sentences, *given, **named)

    monkeypatch.setattr(rewriter, "fill", fill)
    with pytest.raises(KeyboardInterrupt):
        filled(experts, TEXTS, masked, SETTINGS)
    assert stored() == 2
    assert filled(experts, TEXTS, masked, SETTINGS) == [r.text for r in plainly]
    assert asked == [TEXTS[0:2], TEXTS[2:4], TEXTS[4:6], TEXTS[4:6], TEXTS[6:]]


def test_the_store_does_not_confuse_what_differs(experts):
    """Every setting, the experts, the texts, their masks and the cast make an entry of their own."""
    others = {field.name: getattr(SETTINGS, field.name) for field in dataclasses.fields(Settings)} | {
        "anchored": False,
        "masking": Masking(0.5),
        "choice": Choice(((2.0, 0.5, 1.3),), 0.0, 0.1),
    }
    changed = [
        dataclasses.replace(SETTINGS, **{name: value + 0.25 if type(value) is float else value})
        for name, value in others.items()
    ]
    changed += [
        dataclasses.replace(SETTINGS, masking=m)
        for m in (
            Masking(1.0),
            Masking(1.0, True, masking.half_jeffreys),
            Masking(1.0, True, published_index=True),
            Masking(1.0, True, every=3),
        )
    ]
    for settings in [SETTINGS, *changed]:
        marco(experts, ["?!"], settings)
    assert stored() == 1 + len(changed)
    before = stored()
    marco(experts._replace(fingerprint="others"), ["?!"])
    marco(experts, ["!"])
    filled(experts, ["ok then"], [[]], SETTINGS)
    filled(experts, ["ok then"], [[0]], SETTINGS)
    filled(experts, ["ok then"], [[0]], SETTINGS, (EXPERT,) * 3)
    assert stored() == before + 5


def test_what_the_store_holds_is_plain_json(experts):
    marco(experts, ["?!", "so it goes"])
    rows = json.loads(next(paths.cache().glob("rewrites/*/made.json")).read_text(encoding="utf-8"))
    assert rows[0] == {"text": "?!", "masked": [], "divergence": [None], "candidates": []}
    assert all(value >= -1e-6 for value in rows[1]["divergence"])


# --- methods and ablations ---------------------------------------------------------------------------


def test_each_method_answers_each_text(experts, tiny_llama):
    ours = marco(experts, TEXTS)
    found = methods(experts, tiny_llama, ours, seed=0)
    assert {len(some) for some in found.values()} == {len(TEXTS)} and next(iter(found)) == "original"
    assert found["original"] == TEXTS and found["MaRCo"] == [r.text for r in ours]
    several = Rewriter(experts.denoiser, experts.several)(TEXTS)
    assert found["MaRCo, chosen"] == [r.text for r in several] != TEXTS
    assert found["MaRCo, drawn"] == rewrites.drawn(several, seed=0)
    sentences = [r.sentence for r in ours]
    assert found["refill"] == rewriter.fill(
        experts.denoiser, sentences, [r.masked for r in ours], alone(SETTINGS), cast=(BASE,) * 3
    )
    assert found["delete"][1] == "You (really) are, you tree!"
    assert found["ask"] == baselines.ask(tiny_llama, TEXTS)
    for rewrite, left in zip(ours, found["delete masks"], strict=True):
        gone = {rewrite.sentence.spelling(j) for j in rewrite.masked}
        assert (left == rewrite.original) == (not gone)
        kept = [w for j, w in enumerate(rewrite.sentence.words) if j not in rewrite.masked]
        assert all(rewrite.original[w.start : w.end] in left for w in kept)
    for i, rewrite in enumerate(ours):
        if not rewrite.masked:  # where MaRCo masks nothing, refilling has nothing to fill
            assert found["MaRCo"][i] == found["refill"][i] == TEXTS[i]
    assert len({*map(tuple, found.values())}) >= len(found) - 1  # a lot may fall as the experts choose


def test_a_lot_changes_as_many_sentences_each_to_a_candidate_of_its_own(experts):
    several = [
        dataclasses.replace(r, candidates=[]) if i == 1 else r
        for i, r in enumerate(marco(experts, TEXTS, experts.several))
    ]
    several[0] = dataclasses.replace(several[0], text=several[0].original)  # the experts leave one alone
    changed = sum(r.text != r.original for r in several)
    lots = [rewrites.drawn(several, seed) for seed in range(8)]
    assert changed and lots[0] == rewrites.drawn(several, 0) and len({*map(tuple, lots)}) > 1
    for texts in lots:
        assert sum(new != r.original for new, r in zip(texts, several, strict=True)) == changed
        for new, r in zip(texts, several, strict=True):
            assert new in [r.original, *(one.text for one in r.candidates)]


def test_ablations_take_away_what_they_say(experts, monkeypatch):
    ours = marco(experts, TEXTS)
    found = variants(experts, ours, seed=0)
    assert found["original"] == TEXTS and found["no anti-expert"] != found["MaRCo"] != found["expert only"]
    sentences, masked = [r.sentence for r in ours], [r.masked for r in ours]
    assert found["expert only"] == rewriter.fill(
        experts.denoiser, sentences, masked, alone(SETTINGS), cast=(EXPERT,) * 3
    )
    monkeypatch.setattr(rewrites, "shuffled", lambda rewrites, seed: [r.masked for r in rewrites])
    assert variants(experts, ours, seed=0)["random masks"] == found["MaRCo"]
    assert "published" not in found and found["cautious"] == rewrites.cautious(experts, ours)
    assert found["cautious"] == [r.text for r in marco(experts, TEXTS, experts.cautious)]
    in_print = marco(experts, TEXTS, PUBLISHED["microaggressions"])
    assert variants(experts, ours, seed=0, published=True)["published"] == [r.text for r in in_print]


def test_without_strength_the_anti_expert_is_not_missed(experts):
    weak = experts._replace(settings=dataclasses.replace(SETTINGS, alpha_anti=0.0))
    found = variants(weak, marco(weak, TEXTS), seed=0)
    assert found["no anti-expert"] == found["MaRCo"] != found["original"]


def test_random_masks_are_as_many_on_words_only(experts):
    ours = marco(experts, TEXTS)
    drawn = [shuffled(ours, seed) for seed in range(100)]
    assert drawn[7] == shuffled(ours, 7)
    for i, rewrite in enumerate(ours):
        words = {j for j, word in enumerate(rewrite.sentence.words) if word.maskable}
        some = [masks[i] for masks in drawn]
        assert all(
            len(set(chosen)) == len(chosen) == len(rewrite.masked) and chosen == sorted(chosen)
            for chosen in some
        )
        assert set().union(*some) == (
            words if rewrite.masked else set()
        )  # every word gets its turn, a mark never


# --- verdicts ----------------------------------------------------------------------------------------


def verdict(n: int = 4, **changes) -> Verdict:
    """Scores of ``n`` civil, similar, fluent rewrites, but for the changes."""
    scores = {
        "toxicity": 0.1,
        "second": 0.1,
        "lexical": 0.2,
        "similarity": 0.9,
        "bertscore": 0.8,
        "bleu": 0.7,
        "nll": 20.0,
        "count": 10.0,
        "base_nll": 20.0,
        "base_count": 10.0,
    }
    arrays = {name: np.full(n, value) for name, value in scores.items()}
    return Verdict(**({"texts": [f"text {i}" for i in range(n)], **arrays} | changes))


def test_joint_score_is_zero_where_one_part_fails():
    bad = 10.0 * (2.0 + np.log(ALLOWED) + 1e-6)
    found = verdict(
        toxicity=np.array([0.1, 0.5, 0.1, 0.1]),
        similarity=np.array([0.9, 0.9, 0.9, -0.2]),
        nll=np.array([20.0, 20.0, bad, 20.0]),
    )
    assert found.joint.tolist() == [0.9, 0, 0, 0]
    assert found.fluent.tolist() == [1, 1, 0, 1]


def test_the_graded_score_has_no_threshold():
    """A little more toxic, less similar or less fluent is a little worse."""
    left = verdict(1, toxicity=np.array([0.45]), second=np.array([0.3]), similarity=np.ones(1))
    assert left.graded == pytest.approx([0.55]) and left.graded_second == pytest.approx([0.7])
    for worse in ({"toxicity": [0.5]}, {"similarity": [0.9]}, {"nll": [21.0]}):
        changed = dataclasses.replace(left, **{name: np.array(value) for name, value in worse.items()})
        assert 0.45 < changed.graded[0] < left.graded[0]
    assert dataclasses.replace(left, nll=np.array([10.0])).graded == left.graded  # no prize for blandness
    assert dataclasses.replace(left, similarity=np.array([-0.2])).graded == [0]


def test_an_empty_rewrite_is_neither_fluent_nor_good():
    empty = verdict(1, texts=[""], nll=np.zeros(1), count=np.zeros(1), similarity=np.ones(1))
    assert empty.fluent.tolist() == empty.joint.tolist() == [0]
    both = dataclasses.replace(empty, base_nll=np.zeros(1), base_count=np.zeros(1))
    assert both.joint.tolist() == [0]


def test_fluency_counts_per_token():
    """A rewrite of twice the length may have twice the loss; a little above the tolerance it may not."""
    limit = 2.0 + np.log(ALLOWED)
    found = verdict(
        nll=np.array([40.0, 20 * limit - 1e-6, 20 * limit + 1e-6, 1.0]), count=np.array([20.0, 20, 20, 1])
    )
    assert found.fluent.tolist() == [1, 1, 0, 1]


def test_originals_against_themselves_change_nothing():
    generator = np.random.default_rng(0)
    nll, count = generator.uniform(10, 60, 30), generator.integers(3, 20, 30).astype(float)
    same = verdict(
        30,
        toxicity=generator.uniform(size=30),
        lexical=generator.uniform(size=30),
        nll=nll,
        count=count,
        base_nll=nll,
        base_count=count,
    )
    found = same.summary(same)
    for name, value in {
        "drop": 0,
        "lexical_drop": 0,
        "changed": 0,
        "perplexity_ratio": 1,
        "fluent": 1,
    }.items():
        assert (found[name].value, found[name].low, found[name].high, found[name].n) == (
            value,
            value,
            value,
            30,
        ), name


def test_summary_by_hand():
    before = verdict(2, toxicity=np.array([0.8, 0.4]), texts=["a", "b"])
    after = verdict(
        2,
        toxicity=np.array([0.2, 0.4]),
        texts=["c", "b"],
        nll=np.array([10.0, 40.0]),
        count=np.array([5.0, 20.0]),
        base_nll=np.array([15.0, 15.0]),
    )
    found = after.summary(before)
    assert found["drop"].value == pytest.approx(0.5)
    assert found["perplexity"].value == pytest.approx(np.exp(50 / 25))
    assert found["perplexity_ratio"].value == pytest.approx(np.exp(50 / 25 - 30 / 20))
    assert found["changed"].value == 0.5
    assert {estimate.n for estimate in found.values()} == {2}


# --- judges ------------------------------------------------------------------------------------------

ORIGINALS = ["You are a damn fool, my friend.", "The train is late again.", "What a stupid idea that was!"]
CIVIL = ["You are a good man, my friend.", "The train is late again.", ""]


@pytest.fixture(scope="module")
def judges() -> Judges:
    return Judges.of(profiles.load("smoke"))


def test_judges_are_the_profiles(judges):
    profile = profiles.load("smoke")
    assert (
        judges.fluency.name == profile.judge
        and judges.scorer.name == profile.scorer
        and judges.lexical.name == "lexical"
    )


def test_an_unchanged_sentence_scores_as_its_original(judges):
    found = judges({"original": ORIGINALS, "MaRCo": CIVIL})
    before, after = found["original"], found["MaRCo"]
    for name in ("similarity", "bertscore", "bleu", "fluent"):
        assert getattr(before, name) == pytest.approx(np.ones(3), abs=1e-5), name
        assert getattr(after, name)[1] == getattr(before, name)[1]
    assert after.toxicity[1] == before.toxicity[1] and after.nll[1] == before.nll[1] == after.base_nll[1]
    assert after.toxicity[0] < before.toxicity[0] and after.similarity[0] < 1 and after.bleu[0] < 1
    assert after.joint[2] == after.bertscore[2] == after.bleu[2] == after.count[2] == 0


def test_scores_do_not_depend_on_what_else_is_judged(judges):
    """Nor on the order of the methods: the originals need not come first."""
    alone = judges({"original": ORIGINALS, "MaRCo": CIVIL})
    crowd = judges(
        {
            "delete": ["", "The train", "What a idea that was! " * 3],
            "MaRCo": CIVIL,
            "original": ORIGINALS,
            "again": CIVIL,
        }
    )
    assert list(crowd) == ["delete", "MaRCo", "original", "again"]
    for field in dataclasses.fields(Verdict)[1:]:
        for name in alone:
            np.testing.assert_allclose(
                getattr(crowd[name], field.name),
                getattr(alone[name], field.name),
                rtol=1e-4,
                atol=1e-5,
                err_msg=field.name,
            )
        assert np.array_equal(getattr(crowd["again"], field.name), getattr(crowd["MaRCo"], field.name))


def test_a_shared_text_is_read_once(judges, monkeypatch, unchecked):
    read = []
    scorer, embedded = judges.scorer, judges.similarity.embedded
    monkeypatch.setattr(
        judges.similarity, "embedded", lambda texts: read.append(list(texts)) or embedded(texts)
    )
    counting = dataclasses.replace(judges, scorer=lambda texts: read.append(list(texts)) or scorer(texts))
    counting({"original": ORIGINALS, "a": CIVIL, "b": ORIGINALS[::-1]})
    assert len(read) == 2 and all(sorted(texts) == sorted({*ORIGINALS, *CIVIL}) for texts in read)
