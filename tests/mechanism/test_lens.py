"""The logit lens: behind the last layer it is the model itself, and it sees only what it is asked about."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import PROMPTS, lively, random_gemma

from companion.lm import generation, models, recording, tokens
from companion.lm.models import LanguageModel
from companion.mechanism import lens

NEW = 6
TASK = recording.Task(PROMPTS, NEW, 32, batch_size=3)


@pytest.fixture(params=["tiny-gpt2", "tiny-llama", "gemma2", "gemma3"])
def lm(request, tiny_llama) -> LanguageModel:
    if request.param.startswith("tiny"):
        return lively(models.load(request.param))
    return random_gemma(tiny_llama, request.param)


@pytest.fixture
def written(lm):
    return generation.generate(lm, PROMPTS, new_tokens=NEW, max_prompt_tokens=32)


def logits_of(lm, prompt: str, ids: list[int]) -> torch.Tensor:
    read = [*tokens.encode(lm.tokenizer, [prompt], 32)[0], *ids]
    with torch.no_grad():
        return lm.model(torch.tensor([read])).logits[0, -1].double()


def test_behind_the_last_layer_it_is_the_model(lm, written):
    seen = lens.probabilities(lm, TASK, written, written.mask)
    assert seen.shape == (int(written.mask.sum()), lm.n_layers) and (seen >= 0).all() and (seen <= 1).all()
    for (row, at), found in zip(written.mask.nonzero().tolist(), seen, strict=True):
        ids = written.ids[row].tolist()
        expected = logits_of(lm, PROMPTS[row], ids[:at]).softmax(-1)[ids[at]]
        assert found[-1].item() == pytest.approx(expected.item(), abs=1e-5)


def test_an_earlier_layer_is_the_model_cut_there(tiny_llama, written):
    lm = lively(tiny_llama)
    text = generation.generate(lm, PROMPTS, new_tokens=NEW, max_prompt_tokens=32)
    whole = lens.probabilities(lm, TASK, text, text.mask)
    cut = lively(tiny_llama)
    cut.model.model.layers = cut.model.model.layers[:1]
    assert torch.allclose(lens.probabilities(cut, TASK, text, text.mask)[:, -1], whole[:, 0], atol=1e-6)


def test_what_is_not_chosen_is_not_read(lm, written):
    some = torch.zeros_like(written.mask)
    some[2, 1] = some[5, 0] = True
    few, every = (
        lens.probabilities(lm, TASK, written, some),
        lens.probabilities(lm, TASK, written, written.mask),
    )
    where = [i for i, place in enumerate(written.mask.nonzero().tolist()) if place in ([2, 1], [5, 0])]
    assert torch.allclose(few, every[where], atol=1e-6)
    assert lens.probabilities(lm, TASK, written, torch.zeros_like(some)).shape == (0, lm.n_layers)


def test_sums_are_of_each_text_and_a_model_falls_by_nothing_against_itself(tiny_llama):
    lm = lively(tiny_llama)
    text = generation.generate(lm, PROMPTS, new_tokens=NEW, max_prompt_tokens=32)
    some = text.mask & (torch.arange(len(PROMPTS)) % 3 == 1)[:, None]
    seen, each = lens.read(lm, TASK, text, some), lens.probabilities(lm, TASK, text, some)
    assert seen.count.tolist() == some.sum(1)[some.any(1)].tolist()
    start = 0
    for total, count in zip(seen.total, seen.count.tolist(), strict=True):
        assert torch.allclose(total, each[start : start + count].double().sum(0), atol=1e-6)
        start += count
    assert [e.value for e in seen.by_layer()] == pytest.approx(each.double().mean(0).tolist(), rel=1e-5)
    same = lens.fall(seen, seen)
    assert (same.value, same.low, same.high, same.n) == (0, 0, 0, len(seen.count))


def test_where_no_word_is_there_nothing_is_said(tiny_llama):
    lm = lively(tiny_llama)
    text = generation.generate(lm, PROMPTS, new_tokens=NEW, max_prompt_tokens=32)
    seen = lens.read(lm, TASK, text, torch.zeros_like(text.mask))
    assert [e.n for e in seen.by_layer()] == [0] * lm.n_layers
    assert math.isnan(lens.fall(seen, seen).value)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("such a peace of mind, Peaceful peace", [" peace", " Peace", " peace"]),
        ("peace is", ["peace"]),
        ("appeased, war-peace", ["peace"]),
        ("nothing of that kind", []),
    ],
)
def test_words_are_found_where_they_begin(embedded_lm, sentence, expected):
    ids = torch.tensor([tokens.bare(embedded_lm.tokenizer, [sentence])[0]])
    text = generation.Generated(ids, torch.ones_like(ids, dtype=torch.bool), [sentence])
    found = lens.beginning(embedded_lm, text, ["peace"])
    begun = [embedded_lm.tokenizer.decode([i]) for i in ids[0, found[0]].tolist()]
    assert [one.strip().lower()[:2] for one in begun] == ["pe"] * len(expected)
