"""Whether a rewrite still speaks of whom the original spoke of, on sentences whose answer is plain."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from companion.marco.evaluation import group_terms

SENTENCES = st.lists(
    st.lists(st.sampled_from(["women", "train", "MEN", "late", "the", "x9", ",", "."]), max_size=6).map(
        " ".join
    ),
    max_size=6,
)


def test_a_kept_and_a_lost_group():
    groups, others = group_terms.survival(
        ["Women cannot park a car.", "Those Muslims ruined the park!", "the car is red"],
        ["Some women cannot park.", "Those people ruined the garden!", "the bus is red"],
    )
    assert groups.kept.tolist() == [1, 0] and groups.of.tolist() == [1, 1]
    assert others.of.tolist() == [2, 2]  # park, car; ruined, park: stop words are no content
    assert others.kept.tolist() == [1, 1]  # park; ruined


def test_only_sentences_with_a_mention_count_for_the_control():
    groups, others = group_terms.survival(
        ["the car is red", "my garden is green"], ["the car is red", "my garden is green"]
    )
    assert len(groups.of) == len(others.of) == 0


def test_a_known_term_counts_if_the_sentence_has_it():
    original, rewrite = ["The plumbers are late"] * 2, ["They are late", "The Plumbers, they come!"]
    groups, others = group_terms.survival(original, rewrite, ["plumbers", "Plumbers"])
    assert groups.kept.tolist() == [0, 1] and groups.of.tolist() == [1, 1]
    assert others.kept.tolist() == [1, 0] and others.of.tolist() == [1, 1]  # late
    assert len(group_terms.survival(original, rewrite, ["bakers", ""])[0].of) == 0


def test_case_punctuation_and_repetition_change_nothing():
    groups, _ = group_terms.survival(["WOMEN, women and (women)"], ["all women"])
    assert groups.kept.tolist() == groups.of.tolist() == [1]
    assert (
        group_terms.survival(["no womenfolk here"], [""])[0].of.tolist() == []
    )  # a whole word, not a part of one


def test_nothing_in_nothing_out():
    for survival in group_terms.survival([], []):
        assert survival.kept.shape == survival.of.shape == (0,)
    groups, others = group_terms.survival(["women"], ["men"])
    assert groups.kept.tolist() == [0] and others.of.tolist() == [0]


@given(SENTENCES)
def test_a_text_keeps_all_of_itself_and_an_empty_one_nothing(texts):
    for survival in group_terms.survival(texts, texts):
        assert np.array_equal(survival.kept, survival.of)
    for survival in group_terms.survival(texts, [""] * len(texts)):
        assert not survival.kept.any()
    for survival in group_terms.survival(texts, texts[::-1]):
        assert (survival.kept <= survival.of).all()


def test_words_for_groups_are_plain_single_words():
    assert all(word == word.lower() and word.isalpha() for word in group_terms.GROUPS)
