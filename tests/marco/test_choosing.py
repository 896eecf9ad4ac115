"""Which of several rewrites the experts choose, and when they leave a sentence as it is."""

from __future__ import annotations

import dataclasses
import math

import pytest
from test_marco import TEXTS, adapters, bart

from companion.marco.denoisers.protocol import ANTI_EXPERT, BASE, EXPERT
from companion.marco.rewriting import choosing, masking, words
from companion.marco.rewriting.choosing import Candidate, Choice
from companion.marco.rewriting.rewriter import Rewriter
from companion.marco.rewriting.settings import Settings

STRENGTHS = ((2.0, 1.5, 2.5), (4.25, 3.0, 2.5), (0.0, 2.0, 1.0))
PLAIN = Settings(masking.ours(-math.inf), 1.0, 0.5, 1.0)  # every content word is masked


def choosing_settings(least: float, strengths=STRENGTHS) -> Settings:
    return dataclasses.replace(PLAIN, choice=Choice(strengths, least, 0.1))


@pytest.fixture(scope="module", params=["causal", "encoder-decoder"])
def denoiser(request, lively_llama):
    return adapters(lively_llama) if request.param == "causal" else bart()


def test_a_gain_is_what_the_three_models_say_of_the_whole_text_one_by_one(denoiser):
    sentences = [words.split(denoiser, text) for text in TEXTS[:2]]
    blanks = [sentence.content for sentence in sentences]
    others = ["I am so glad to see you.", "You are late."]
    found = choosing.candidates(denoiser, sentences, blanks, [others, others[:1]], 0.5)
    assert [{one.text for one in ranked} for ranked in found] == [set(others), set(others[:1])]
    for sentence, masked, ranked in zip(sentences, blanks, found, strict=True):
        assert [one.gain for one in ranked] == sorted((one.gain for one in ranked), reverse=True)
        source = [sentence.masked(masked, denoiser.mask_id)]

        def nats(role, text, source=source):
            return denoiser.surprise((role,), source, [denoiser.encode(text).ids]).item()

        for text, gain in ranked:
            expert, anti, base = (
                nats(role, sentence.text) - nats(role, text) for role in (EXPERT, ANTI_EXPERT, BASE)
            )
            assert gain == pytest.approx(expert - anti + 0.5 * min(0, base), abs=1e-3)


def test_the_sentence_itself_and_doubles_are_no_candidates(denoiser):
    sentence = words.split(denoiser, TEXTS[0])
    [found] = choosing.candidates(denoiser, [sentence], [[3]], [[TEXTS[0], "x", "x"]], 0.1)
    assert [one.text for one in found] == ["x"]
    assert choosing.candidates(denoiser, [sentence], [[]], [[TEXTS[0]]], 0.1) == [[]]


def test_a_rewrite_takes_the_place_of_its_original_if_it_gains_enough():
    ranked = [Candidate("better", 4.0), Candidate("good", 1.0)]
    assert choosing.best("old", ranked, 4.0) == "better"
    assert choosing.best("old", ranked, 4.1) == "old"
    assert choosing.best("old", [], -math.inf) == "old"


def test_a_rewriter_gives_the_best_or_leaves_the_sentence(denoiser):
    anything = Rewriter(denoiser, choosing_settings(-math.inf))(TEXTS)
    assert any(len(r.candidates) > 1 for r in anything)
    for r in anything:
        assert r.text == (r.candidates[0].text if r.candidates else r.original)
        assert bool(r.masked) == (r.text != r.original)
    for r in Rewriter(denoiser, choosing_settings(math.inf))(TEXTS):
        assert r.text == r.original and r.masked == []
    gains = sorted(r.candidates[0].gain for r in anything if r.candidates)
    least = (gains[0] + gains[-1]) / 2
    some = Rewriter(denoiser, choosing_settings(least))(TEXTS)
    assert [r.text != r.original for r in some] == [
        bool(r.candidates) and r.candidates[0].gain >= least for r in anything
    ]


def test_with_one_way_to_fill_the_candidate_is_the_plain_rewrite(denoiser):
    [strengths] = STRENGTHS[:1]
    plain = dataclasses.replace(
        PLAIN, alpha_expert=strengths[0], alpha_anti=strengths[1], temperature=strengths[2]
    )
    chosen = Rewriter(denoiser, choosing_settings(-math.inf, (strengths,)))(TEXTS)
    assert [r.text for r in chosen] == [r.text for r in Rewriter(denoiser, plain)(TEXTS)]


def test_alone_and_in_company_a_sentence_gets_the_same(denoiser):
    rewriter = Rewriter(denoiser, choosing_settings(0.0))
    together = rewriter(TEXTS)
    assert [r.text for r in together] == [rewriter([text])[0].text for text in TEXTS]
