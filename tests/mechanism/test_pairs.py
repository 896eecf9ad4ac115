"""PPLM and preference pairs."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion.lm import tokens
from companion.lm.generation import generate
from companion.lm.recording import Task
from companion.mechanism import pplm
from companion.mechanism.pairs import Pair, make_pairs, read, write
from companion.mechanism.pplm import PPLM, sample, steered
from companion.mechanism.probe import Probe

NEW = 6
QUICK = PPLM(iterations=2)


def random_probe(lm, seed: int) -> Probe:
    """A probe of a random direction, so short that its verdict never saturates (where gradients would be
    rounding noise)."""
    weight = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return Probe(0.02 * weight / weight.norm(), torch.tensor(0.0), lm.n_layers - 1)


@pytest.fixture(scope="module")
def direction(lively_lm) -> Probe:
    return random_probe(lively_lm, seed=0)


@pytest.fixture
def rows(lively_lm, prompts) -> list[list[int]]:
    return tokens.encode(lively_lm.tokenizer, prompts)


def test_seed_decides(lively_lm, direction, rows):
    one, again, other = (
        sample(lively_lm, direction, rows, QUICK, toxic=True, new_tokens=NEW, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert one.shape == (len(rows), NEW)
    assert (one != other).any()


@pytest.mark.parametrize("toxic", [True, False])
def test_batched_equals_one_by_one(lively_lm, direction, rows, toxic):
    settings = PPLM(iterations=2, top_k=1, step_size=0.2)
    together = sample(lively_lm, direction, rows, settings, toxic=toxic, new_tokens=NEW, seed=0)
    alone = [
        sample(lively_lm, direction, [row], settings, toxic=toxic, new_tokens=NEW, seed=0) for row in rows
    ]
    assert torch.equal(together, torch.cat(alone))


def greedy_without_end(lm, row: list[int]) -> list[int]:
    """The plainest greedy decoding: no cache, no batch; end-of-text is never chosen."""
    ids = list(row)
    for _ in range(NEW):
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids])).logits[0, -1]
        logits[lm.eos_ids] = -torch.inf
        ids.append(int(logits.argmax()))
    return ids[len(row) :]


@pytest.mark.parametrize(
    "settings",
    [PPLM(iterations=0, top_k=1), PPLM(iterations=2, gm_scale=0.0, top_k=1)],
    ids=["no steps", "no share"],
)
def test_without_steering_it_is_greedy_decoding(lively_lm, direction, rows, settings):
    ids = sample(lively_lm, direction, rows, settings, toxic=True, new_tokens=NEW, seed=0)
    assert ids.tolist() == [greedy_without_end(lively_lm, row) for row in rows]


def test_end_of_text_is_never_sampled(lively_lm, direction, rows, monkeypatch):
    settings = PPLM(iterations=0, top_k=1)
    before = sample(lively_lm, direction, rows, settings, toxic=True, new_tokens=NEW, seed=0)
    end = int(before[0, 2])
    monkeypatch.setattr(lively_lm.model.generation_config, "eos_token_id", [0, end])
    after = sample(lively_lm, direction, rows, settings, toxic=True, new_tokens=NEW, seed=0)
    assert not (after == end).any()
    assert torch.equal(before[0, :2], after[0, :2])


def verdict(lm, probe: Probe, rows, ids) -> float:
    """Mean logit of the probe on the mean residual stream of the continuations."""
    total = 0.0
    for row, new in zip(rows, ids.tolist(), strict=True):
        with torch.no_grad():
            hidden = lm.model(torch.tensor([row + new]), output_hidden_states=True).hidden_states[probe.layer]
        total += probe.logits(hidden[:, len(row) :].mean(1)).item()
    return total / len(rows)


def test_steering_moves_the_text_towards_the_probe(tiny, rows):
    for seed in range(3):
        probe = random_probe(tiny, seed)
        towards, away = (
            verdict(
                tiny,
                probe,
                rows,
                sample(tiny, probe, rows, PPLM(iterations=3), toxic=toxic, new_tokens=NEW, seed=seed),
            )
            for toxic in (True, False)
        )
        assert towards > away


def test_steps_lower_the_loss(lively_lm, rows):
    """One call of ``perturb`` moves the cache, but not its padding, to where the probe agrees more."""
    probe, batch = random_probe(lively_lm, 0), tokens.pad(rows, "left")
    pooled = torch.zeros(len(rows), 32)
    for toxic in (True, False):
        step = pplm._Step(lively_lm, probe, PPLM(iterations=3, step_size=0.05, kl_scale=0.0), toxic)
        with torch.no_grad():
            cache, _, _ = step.forward(None, batch.ids[:, :-1], batch.mask[:, :-1])
            _, plain, _ = step.forward(cache, batch.ids[:, -1:], batch.mask)
        moved = step.perturb(cache, batch.ids[:, -1:], batch.mask, plain, pooled, 0)
        with torch.no_grad():
            before, after = (
                step._loss(c, batch.ids[:, -1:], batch.mask, plain, pooled, 0) for c in (cache, moved)
            )
        assert after < before
        real = batch.mask[:, None, :-1, None]
        for (k, v), (k2, v2) in zip(cache, moved, strict=True):
            for old, new in ((k, k2), (v, v2)):
                change = (new - old).flatten(1).norm(dim=1)
                assert (change <= 3 * 0.05 * 1.001).all()
                assert (change[torch.tensor([len(r) > 1 for r in rows])] > 0).all()
                assert torch.equal((new - old) * ~real, torch.zeros_like(new))  # padding stays


def test_larger_kl_scale_stays_nearer(lively_lm, direction, rows):
    def share(kl_scale: float) -> float:
        settings = PPLM(iterations=4, kl_scale=kl_scale, top_k=1, step_size=0.3)
        plain = sample(
            lively_lm, direction, rows, PPLM(iterations=0, top_k=1), toxic=True, new_tokens=1, seed=0
        )
        return float(
            (sample(lively_lm, direction, rows, settings, toxic=True, new_tokens=1, seed=0) == plain)
            .float()
            .mean()
        )

    assert share(1000.0) >= share(0.0)
    assert share(1000.0) >= 0.5


def test_model_is_untouched(lively_lm, direction, rows):
    before = copy.deepcopy(lively_lm.model.state_dict())
    sample(lively_lm, direction, rows, QUICK, toxic=True, new_tokens=3, seed=0)
    for name, value in lively_lm.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None and p.requires_grad for p in lively_lm.model.parameters())


def test_single_token_prompts(lively_lm, direction):
    ids = sample(
        lively_lm, direction, [[5], [9]], PPLM(iterations=0, top_k=1), toxic=True, new_tokens=NEW, seed=0
    )
    assert ids.tolist() == [greedy_without_end(lively_lm, row) for row in ([5], [9])]


def test_steered_goes_on_from_its_file(lively_lm, direction, rows, tmp_path, monkeypatch):
    path, calls = tmp_path / "steered.jsonl", []
    common = {"settings": QUICK, "toxic": True, "new_tokens": NEW, "seed": 3, "batch_size": 2}
    whole = steered(lively_lm, direction, rows, path=path, **common)
    assert whole == steered(lively_lm, direction, rows, **common)  # without a file
    written = path.read_bytes()
    assert written.count(b"\n") == 4  # seven prompts, two each
    path.write_bytes(b"".join(written.splitlines(keepends=True)[:-1]))
    monkeypatch.setattr(pplm, "sample", lambda *args, **kwargs: calls.append(1) or sample(*args, **kwargs))
    assert steered(lively_lm, direction, rows, path=path, **common) == whole
    assert path.read_bytes() == written
    assert len(calls) == 1
    assert steered(lively_lm, direction, rows, path=path, **common) == whole
    assert len(calls) == 1


def test_steered_reads_unusual_line_breaks_back(lively_lm, direction, tmp_path, monkeypatch):
    texts = ["a\u2028b", "c\x85d", "e\nf\r\ng", "\x1c"]
    ids = torch.tensor([[5], [6]])
    decoded = iter([texts[:2], texts[2:]])
    monkeypatch.setattr(pplm, "sample", lambda *args, **kwargs: ids)
    monkeypatch.setattr(lively_lm.tokenizer, "batch_decode", lambda *args, **kwargs: next(decoded))
    common = {
        "settings": QUICK,
        "toxic": True,
        "new_tokens": 1,
        "seed": 0,
        "batch_size": 2,
        "path": tmp_path / "steered.jsonl",
    }
    assert steered(lively_lm, direction, [[1]] * 4, **common) == texts
    assert steered(lively_lm, direction, [[1]] * 4, **common) == texts


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["\u2028", "\x85", "\r\n", "\x1d", '"\\']
)
PAIR = st.builds(Pair, TEXT, TEXT, TEXT, st.floats(0, 1), st.floats(0, 1))


@given(pairs=st.lists(PAIR, max_size=4))
def test_write_and_read(pairs, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "pairs.jsonl"
    write(pairs, path)
    assert read(path) == pairs


def test_swapping_a_pair_twice_gives_it_back():
    pair = Pair("p", "c", "r", 0.1, 0.9)
    assert pair.swapped() == Pair("p", "r", "c", 0.9, 0.1) and pair.swapped().swapped() == pair


class ByteScorer:
    """Scores a text by its bytes: arbitrary, but the same for the same text."""

    name = fingerprint = "bytes"

    def __call__(self, texts):
        return np.array([sum(text.encode()) % 101 / 100 for text in texts])


def test_make_pairs(lively_lm, direction, prompts, tmp_path, monkeypatch):
    plain = generate(lively_lm, prompts, new_tokens=NEW)
    monkeypatch.setattr(
        lively_lm.model.generation_config, "eos_token_id", [0, int(plain.ids[2, 1])]
    )  # this prompt's greedy text ends early
    greedy = generate(lively_lm, prompts, new_tokens=NEW)
    whole = greedy.mask.all(dim=1).tolist()
    assert 0 < sum(whole) < len(prompts)
    scorer, task = ByteScorer(), Task(prompts, NEW, 50)
    common = {"rounds": 2, "seed": 0, "folder": tmp_path}
    made = {
        margin: make_pairs(lively_lm, direction, task, scorer, QUICK, margin=margin, **common)
        for margin in (-1.0, 0.2)
    }

    civil, *toxic = (
        json.loads((tmp_path / name).read_text(encoding="utf-8"))
        for name in ("civil.jsonl", "toxic_0.jsonl", "toxic_1.jsonl")
    )
    score = {text: scorer([text])[0] for text in (*civil, *toxic[0], *toxic[1], *greedy.texts)}
    for margin, found in made.items():
        expected = []
        for i, prompt in enumerate(prompts):
            chosen = min(greedy.texts[i], civil[i], key=score.get)
            for rejected in (toxic[0][i], toxic[1][i], greedy.texts[i]):
                if whole[i] and rejected != chosen and score[rejected] - score[chosen] >= margin:
                    expected.append((prompt, chosen, rejected))
        assert [(pair.prompt, pair.chosen, pair.rejected) for pair in found] == expected
        assert len(expected) > 3
        for pair in found:
            assert pair.chosen_toxicity == pytest.approx(score[pair.chosen], abs=1e-4)
            assert pair.rejected_toxicity == pytest.approx(score[pair.rejected], abs=1e-4)
    assert len(made[0.2]) < len(made[-1.0])
