"""The line between two models: its ends, bit for bit, what lies between and beyond, what it leaves alone."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from companion.errors import CompanionError
from companion.lm import models
from companion.lm.models import LanguageModel
from companion.mechanism.line import along


def weights(lm: LanguageModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in lm.model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def tuned(tiny) -> LanguageModel:
    """A model next to the tiny one."""
    model, generator = copy.deepcopy(tiny.model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return dataclasses.replace(tiny, name="tuned", model=model, fingerprint="tuned")


def test_the_ends_are_the_models(tiny, tuned):
    for weight, end in ((0.0, tiny), (1.0, tuned)):
        found = along(tiny, tuned, weight)
        assert same(weights(found), weights(end)) and found.fingerprint == end.fingerprint
        assert found.model is not end.model and not found.model.training


@pytest.mark.parametrize("weight", [-1.0, -0.5, 0.25, 0.5, 1.5, 2.0])
def test_a_point_of_the_line(tiny, tuned, weight):
    for a, b, found in zip(*map(weights, (tiny, tuned, along(tiny, tuned, weight))), strict=True):
        torch.testing.assert_close(found.double(), a.double() + weight * (b.double() - a.double()))


def test_the_models_are_left_alone(tiny, tuned):
    before = [weights(tiny), weights(tuned)]
    with torch.no_grad():
        for parameter in along(tiny, tuned, 2.0).model.parameters():
            parameter.zero_()
    assert same(before[0], weights(tiny)) and same(before[1], weights(tuned))


def test_each_place_has_a_fingerprint_of_its_own(tiny, tuned):
    places = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0)
    found = [along(tiny, tuned, weight).fingerprint for weight in places]
    found += [along(tuned, tiny, weight).fingerprint for weight in (-1.0, 0.5, 2.0)]
    assert len(set(found)) == len(found)
    assert found[2] == along(tiny, tuned, 0.5).fingerprint


def test_tied_weights_stay_tied(tiny, tuned):
    def tied(lm: LanguageModel) -> bool:
        return lm.model.get_output_embeddings().weight is lm.model.get_input_embeddings().weight

    assert tied(tiny) and tied(along(tiny, tuned, 1.5))


def test_what_is_no_line_is_refused(tiny, tuned):
    other = models.load("tiny-llama" if tiny.name == "tiny-gpt2" else "tiny-gpt2")
    with pytest.raises(CompanionError, match="differ in name or shape"):
        along(tiny, other, 0.5)
    for weight in (float("nan"), float("inf")):
        with pytest.raises(CompanionError, match="finite number"):
            along(tiny, tuned, weight)
