"""DPO with a KL term and early stopping."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from companion import profiles
from companion.lm import checkpoint
from companion.mechanism import dpo, kl_dpo
from companion.mechanism.dpo import DPOConfig, Triple, collate, encode_pairs
from companion.mechanism.kl_dpo import KLConfig
from companion.mechanism.pairs import Pair

SHORT = DPOConfig(learning_rate=1e-3, batch_size=4, steps=6, warmup=2, max_new_tokens=8, precision="no")
FAST = KLConfig(SHORT, gamma=0.5, held_out=4, every=2, patience=2)


@pytest.fixture
def triples(tiny) -> list[Triple]:
    prompts = ["The cat", "I said that", "a", "When it rains in the", "No", "You are"]
    pairs = [
        Pair(f"{prompts[i % 6]} {i // 2}", f" {i} and {'so ' * (i % 3)}", "!" * (2 + i % 7), 0.1, 0.9)
        for i in range(16)
    ]
    return encode_pairs(tiny.tokenizer, pairs, 10, 8)


def moved(model):
    """A copy with other weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for i, p in enumerate(other.parameters()):
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return other


def test_the_term_equals_the_sum_over_the_vocabulary_token_by_token(tiny, triples):
    policy, batch = moved(tiny.model), collate(triples[:3])
    found = kl_dpo.losses(policy, tiny.model, batch, FAST)
    for i, (prompt, *sides) in enumerate(triples[:3]):
        expected = 0.0
        for side in sides:
            ids = torch.tensor([prompt + side])
            with torch.no_grad():
                ours, theirs = (m(ids).logits[0, len(prompt) - 1 : -1] for m in (policy, tiny.model))
            p, q = theirs.double().softmax(-1), ours.double().softmax(-1)
            expected += (p * (p / q).log()).sum(-1).mean().item()
        assert found["kl"][i].item() == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(found["loss"], found["dpo"] + 0.5 * found["kl"])


def test_before_the_first_step_nothing_is_apart(tiny, triples):
    found = kl_dpo.losses(copy.deepcopy(tiny.model), tiny.model, collate(triples[:4]), FAST)
    assert found["kl"].abs().max() < 1e-6
    assert found["loss"].mean().item() == pytest.approx(0.693147, abs=1e-5)


def test_without_the_term_it_is_plain_dpo(tiny, triples, tmp_path):
    config = dataclasses.replace(FAST, gamma=0.0, patience=100)
    with_term = kl_dpo.train(copy.deepcopy(tiny.model), tiny.model, triples, config, tmp_path)
    learned, _ = kl_dpo.held_out(triples, 4, SHORT.seed)
    plain = dpo.train(copy.deepcopy(tiny.model), learned, SHORT, tmp_path)
    assert [r["loss"] for r in with_term[:-1]] == pytest.approx([r["loss"] for r in plain], abs=1e-5)


def test_the_term_keeps_the_policy_near_the_reference(tiny, triples, tmp_path):
    ends = []
    for gamma in (0.0, 5.0):
        config = dataclasses.replace(FAST, gamma=gamma, patience=100)
        ends.append(kl_dpo.train(copy.deepcopy(tiny.model), tiny.model, triples, config, tmp_path)[-2])
    assert ends[1]["kl"] < ends[0]["kl"]


def test_no_prompt_is_on_both_sides(triples):
    learned, aside = kl_dpo.held_out(triples, 2, 0)
    assert len(aside) >= 2
    few, _ = kl_dpo.held_out(triples, 64, 0)
    assert len(few) >= len(triples) // 2  # something is left to learn from
    assert sorted(learned + aside) == sorted(triples)
    assert not {tuple(t.prompt) for t in learned} & {tuple(t.prompt) for t in aside}


def test_it_stops_and_gives_back_the_best_weights(tiny, triples, tmp_path):
    rough = dataclasses.replace(SHORT, learning_rate=1.0, steps=40)  # far too large: it only gets worse
    config = dataclasses.replace(FAST, dpo=rough)
    model = copy.deepcopy(tiny.model)
    history = kl_dpo.train(model, tiny.model, triples, config, tmp_path)
    measured = [row["validation"] for row in history if "validation" in row]
    assert measured.index(min(measured)) == 0
    assert len(measured) == 1 + config.patience
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny.model.parameters(), strict=True))
    assert not list(tmp_path.iterdir())


def test_resumed_training_ends_with_the_same_bits(tiny, triples, tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
    undisturbed = copy.deepcopy(tiny.model)
    expected = kl_dpo.train(undisturbed, tiny.model, triples, FAST, tmp_path / "a")
    saved = checkpoint.Checkpoint.save

    def killed(self, history, **besides):
        saved(self, history, **besides)
        if len(history) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        kl_dpo.train(copy.deepcopy(tiny.model), tiny.model, triples, FAST, tmp_path / "b")
    monkeypatch.setattr(checkpoint.Checkpoint, "save", saved)
    resumed = copy.deepcopy(tiny.model)
    assert kl_dpo.train(resumed, tiny.model, triples, FAST, tmp_path / "b") == expected
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), undisturbed.parameters(), strict=True))


def test_only_complete_profiles_train_so():
    assert not KLConfig.variants(profiles.load("embedded"))
    assert {c.gamma for c in KLConfig.variants(profiles.load("full")).values()} == {0.0, 0.1}
