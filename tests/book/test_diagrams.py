"""Diagrams show what they are given, masked, and draw for any sentence."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import pytest
import torch

from companion.book import diagrams


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_the_block_has_a_line_for_every_mark():
    said = texts(diagrams.block())
    marks = [text for text in said if len(text) == 1]
    assert sorted(marks) == sorted("PACK" * 2) and sum("chapter" in text for text in said) == 4


def test_the_quadrant_counts_the_groups_by_their_signs():
    cosine = torch.tensor([[0.1, 0.1, 0.1, 0.1, 0.1, -0.1, -0.1, -0.1, -0.1, -0.1]])
    mean = torch.tensor([[1.0, 1.0, 1.0, 1.0, -1.0, 1.0, 1.0, -1.0, -1.0, -1.0]])
    said = [text for text in texts(diagrams.quadrant(cosine, mean)) if text]
    assert sorted(said) == [
        "AN · 30%\nadds toxicity",
        "AP · 20%\ntakes away toxicity",
        "TN · 10%\ntakes away toxicity",
        "TP · 40%\nadds toxicity",
    ]


def test_marco_goes_from_scores_over_blanks_to_the_rewrite():
    words = ["What", "a", "stupid", "idea!"]
    said = texts(diagrams.marco(words, [0.2, math.nan, 5.0, -0.4], [2], "What a good idea!"))
    assert said.count("What") == 3 and said.count(diagrams.BLANK) == 1 and said.count("good") == 1
    assert {"+0.2", "+5.0", "-0.4"} <= set(said) and not any("nan" in text for text in said)


def test_marco_masks_words_and_survives_odd_texts():
    said = texts(diagrams.marco(["fuck", "$x_1$", "\x07"], [1.0, 2.0, 3.0], [0], ""))
    assert not any("fuck" in text for text in said) and "f***" in said
    figure = diagrams.marco([f"word{j}" for j in range(60)], [0.0] * 60, [], "the same")
    figure.canvas.draw()
    lines = {y for text in figure.axes[0].texts for _, y in [text.get_position()]}
    assert len(lines) > 10
