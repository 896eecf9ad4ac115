"""Experts trained together: likelihoods, the loss, batches, resumption; they learn to tell classes apart."""

import copy
import dataclasses
import math
import random

import numpy as np
import pytest
import torch

from companion.marco.denoisers.protocol import BASE
from companion.marco.experts import adapter_training, contrast_training, corpus, examples
from companion.marco.experts.contrast_training import EXPERTS, Corpus
from companion.marco.experts.noise import VARIED, Level, drawn

CONFIG = adapter_training.AdapterConfig(
    rank=2, batch_size=6, warmup=2, contrast_steps=60, contrast_rate=2e-2, precision="no"
)
ROWS = Corpus(
    [f"you are such a fool {w}" for w in "abcdefgh"],
    [f"you are such a friend {w}" for w in "ijklmnop"],
    [(f"that fool {w}", f"that friend {w}") for w in "abcdefgh"],
    frozenset({"fool", "friend"}),
)
HELD = {"non-toxic": ["you are a friend too", "my friend a"], "toxic": ["you are a fool too", "my fool a"]}


@pytest.fixture
def denoiser(tiny_llama):
    found = adapter_training.attach(
        dataclasses.replace(tiny_llama, model=copy.deepcopy(tiny_llama.model)), CONFIG
    )
    for k, role in enumerate(EXPERTS):
        found.model.add_adapter(role, found.model.peft_config[BASE])
        for name, p in found.model.named_parameters():
            if f".{role}." in name:
                p.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(k))
    return found


def batch(denoiser):
    return contrast_training.corrupted(denoiser, ROWS, contrast_training.batches(ROWS, CONFIG)[0], 7)


def test_both_experts_in_one_pass_say_what_each_says_alone(denoiser):
    rows = batch(denoiser)
    found = contrast_training.likelihoods(denoiser, rows)
    for k, role in enumerate(EXPERTS):
        alone = torch.cat([adapter_training.losses(denoiser, [row], role) for row in rows])
        assert torch.allclose(-found[:, k] / adapter_training.lengths(rows), alone, atol=1e-4)
    assert (found[:, 0] - found[:, 1]).abs().min() > 1e-3  # they are different models


def test_loss_by_hand():
    found = torch.tensor([[-3.0, -1.0], [-3.0, -1.0]])
    toxic, civil = contrast_training.loss(found, torch.tensor([1.0, 0.0])).tolist()
    assert toxic == pytest.approx(math.log1p(math.exp(-2)) + contrast_training.OWN * 1)
    assert civil == pytest.approx(math.log1p(math.exp(2)) + contrast_training.OWN * 3)


def test_only_the_experts_learn(denoiser):
    denoiser.model.base_model.set_adapter(list(EXPERTS))
    contrast_training._step(denoiser, batch(denoiser), CONFIG)
    moved = {
        name for name, p in denoiser.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert moved == set(adapter_training.weights(denoiser, *EXPERTS))


def test_gradients_do_not_depend_on_how_a_batch_is_cut(denoiser, monkeypatch):
    rows = batch(denoiser)

    def gradients(size):
        monkeypatch.setattr(adapter_training, "PART", size)
        denoiser.model.zero_grad()
        contrast_training._step(denoiser, rows, CONFIG)
        return torch.cat([p.grad.flatten() for p in adapter_training.weights(denoiser, *EXPERTS).values()])

    assert torch.allclose(gradients(10_000), gradients(1), atol=1e-5)


def test_a_batch_has_both_classes_and_whole_pairs(denoiser):
    for step in contrast_training.batches(ROWS, CONFIG):
        assert [len(part) for part in step] == [2, 2, 1]
    rows = batch(denoiser)
    assert sum(row.label for row in rows) * 2 == len(rows) == CONFIG.batch_size
    lengths = [len(row.target) for row in rows]
    assert lengths == sorted(lengths)
    assert all(denoiser.mask_id in row.source for row in rows)  # none is left intact


def test_varied_noise_masks_little_and_much():
    noise = random.Random(0)
    shares = [np.mean(drawn(30, noise, VARIED).gone) for _ in range(300)]
    assert min(shares) <= 0.05 and max(shares) >= 0.35
    assert np.mean(shares) == pytest.approx((VARIED.low + VARIED.high) / 2, abs=0.05)


def test_telling_words_are_those_of_one_class():
    toxic = [f"you are a fool and {i}" for i in range(60)]
    civil = [f"you are a friend and {i}" for i in range(60)]
    assert corpus.telling(toxic, civil) == {"fool", "friend"}
    assert corpus.telling(toxic, toxic) == frozenset()
    assert corpus.telling(["once"], ["never"]) == frozenset()  # a single word proves nothing


def test_half_of_the_telling_words_are_masked(denoiser):
    texts = ["you are a fool and so on and so forth"] * 200
    mask = Level(0.0, 0.0, 0.0)
    shares = []
    for telling in (frozenset(), frozenset({"fool"})):
        found = examples.corrupted(denoiser, texts, 5, mask, telling)
        shares.append(np.mean([" fool" not in denoiser.decode(e.source) for e in found]))
    assert shares[0] < 0.2 and 0.4 < shares[1] < 0.7


def test_parts_keep_order_and_size():
    rows = [examples.Example([], [0] * n) for n in (1, 2, 300, 5, 900, 1)]
    found = adapter_training.parts(rows)
    assert [row for part in found for row in part] == rows
    assert all(
        len(part) == 1 or len(part) * max(len(r.target) for r in part) <= adapter_training.PART
        for part in found
    )
    assert len(found) == 5


def test_experts_learn_to_tell_apart_and_resume_to_the_same_bits(denoiser, tmp_path, monkeypatch):
    fresh = {name: p.detach().clone() for name, p in denoiser.model.named_parameters()}
    before = contrast_training._held_out(
        denoiser,
        [examples.corrupted(denoiser, HELD[n], 0, label=k) for k, n in enumerate(adapter_training.CLASSES)],
    )
    plain, calls = contrast_training.likelihoods, []

    def run(name):
        (tmp_path / name).mkdir(exist_ok=True)
        for key, p in denoiser.model.named_parameters():
            p.data.copy_(fresh[key])
        history = contrast_training.train(denoiser, ROWS, HELD, CONFIG, tmp_path / name)
        return {key: p.detach().clone() for key, p in denoiser.model.named_parameters()}, history

    def stopping(*given):
        calls.append(1)
        if len(calls) == 37:
            raise KeyboardInterrupt
        return plain(*given)

    whole, history = run("whole")
    assert history[EXPERTS[0]][-1]["told_apart"] == 1 > before["told_apart"]
    assert all(history[role][-1]["loss"] < history[role][0]["loss"] for role in EXPERTS)
    assert {"non-toxic", "toxic"} <= set(history[EXPERTS[1]][-1])
    monkeypatch.setattr(contrast_training, "likelihoods", stopping)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    resumed, again = run("stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [row["loss"] for row in history[EXPERTS[1]]] == [row["loss"] for row in again[EXPERTS[1]]]
