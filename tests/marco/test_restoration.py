"""What experts restore: for both kinds of denoiser as by the plainest calls, and statistics of known data."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from test_marco import adapters as random_adapters
from test_marco import bart, by_hand

from companion import profiles
from companion.marco.denoisers.protocol import BASE, EXPERT, ROLES
from companion.marco.evaluation import disagreement, restoration
from companion.marco.experts import adapter_training, examples, loading, training_history
from companion.marco.rewriting import masking, rewriter, script, words
from companion.marco.rewriting.masking import Masking
from companion.marco.rewriting.settings import Settings

TEXTS = [
    "so it goes, my friend, and so it went",
    "I am fed up.",
    "ok",
    "You (really) are the very best of them, you know!",
]


@pytest.fixture(scope="module", params=["causal", "encoder-decoder"])
def denoiser(request, lively_llama):
    return random_adapters(lively_llama) if request.param == "causal" else bart()


@pytest.fixture
def experts(denoiser, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))
    return loading.Experts(
        denoiser, *[Settings(Masking(0.0), 1.0, 1.0, 1.0)] * 3, f"test {type(denoiser).__name__}"
    )


def test_noise_masks_every_text_and_belongs_to_it(denoiser):
    masked = restoration.corrupt(denoiser, TEXTS, seed=1)
    assert all(denoiser.mask_id in c.source for c in masked)
    assert restoration.corrupt(denoiser, TEXTS[2:], seed=1) == masked[2:]
    assert restoration.corrupt(denoiser, TEXTS, seed=2) != masked


def test_what_is_hidden_put_back_gives_the_text(denoiser):
    for seed in range(5):
        for c in restoration.corrupt(denoiser, TEXTS, seed):
            whole, hidden = [], iter(c.hidden)
            for token, following in zip(c.source, [*c.source[1:], None], strict=True):
                if token != denoiser.mask_id:
                    whole.append(token)
                elif following != denoiser.mask_id:
                    whole += next(hidden)
            assert whole == c.sentence.ids
            assert next(hidden, None) is None


def test_losses_equal_next_token_scores_by_hand(denoiser):
    masked = restoration.corrupt(denoiser, TEXTS[:3], seed=0)
    sources, targets = [c.source for c in masked], [c.sentence.ids for c in masked]
    found = restoration.losses(denoiser, sources, targets)
    assert found.shape == (len(ROLES), 3)
    for r, role in enumerate(ROLES):
        for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
            steps = [
                by_hand(denoiser, role, source, target[:k]).log_softmax(-1)[token]
                for k, token in enumerate([*target, denoiser.end_id])
            ]
            assert found[r, i] == pytest.approx(-float(torch.stack(steps).mean()), rel=1e-3)


def test_losses_are_those_of_training(lively_llama):
    denoiser = random_adapters(lively_llama)
    masked = restoration.corrupt(denoiser, TEXTS, seed=0)
    sources, targets = [c.source for c in masked], [c.sentence.ids for c in masked]
    with torch.no_grad():
        expected = adapter_training.losses(
            denoiser, [examples.Example(*row) for row in zip(sources, targets, strict=True)], EXPERT
        )
    assert restoration.losses(denoiser, sources, targets, (EXPERT,))[0] == pytest.approx(
        expected.numpy(), rel=1e-3
    )


def test_the_base_model_fills_blanks_with_the_argmax(denoiser):
    masked = restoration.corrupt(denoiser, TEXTS[:2], seed=0)
    said = restoration.write(denoiser, [c.source for c in masked], [c.sentence for c in masked])
    for c, answers in zip(masked, said, strict=True):
        assert len(answers) == len(c.hidden)
        first = c.source.index(denoiser.mask_id)
        scores = by_hand(denoiser, BASE, c.source, c.source[:first])
        scores[
            [mark for mark in denoiser.marks if mark != denoiser.end_id or c.source[-1] != denoiser.mask_id]
        ] = -torch.inf
        follows = next(t for t in [*c.source[first:], denoiser.end_id] if t != denoiser.mask_id)
        assert scores.argmax() == (answers[0] or [follows])[0]


def copying(denoiser, right, monkeypatch) -> None:
    """Let the model always expect the next token of its source, if ``right`` accepts the source."""
    plain = denoiser.next_logits

    def next_logits(roles, sources, targets):
        done = 0
        for logits in plain(roles, sources, targets):
            for row in range(logits.shape[1]):
                source, target = sources[done + row], targets[done + row]
                logits[:, row, [*source, denoiser.end_id][len(target)]] += 1e6 * right(source)
                logits[:, row, [m for m in denoiser.marks if m != denoiser.end_id]] = 1e9  # never written
            done += logits.shape[1]
            yield logits

    monkeypatch.setattr(denoiser, "next_logits", next_logits)


def test_a_copy_is_what_greedy_writing_would_return(denoiser, monkeypatch):
    sentences = [words.split(denoiser, text) for text in [*TEXTS, ""]]
    sources = [sentence.ids for sentence in sentences]
    scripts = [script.Script(sentence.ids, sentence, denoiser, anchored=False) for sentence in sentences]
    written = rewriter.write(denoiser, scripts, [rewriter.Reader(BASE, 1.0, sources)])
    assert restoration.copies(denoiser, sentences) == [
        ids == source for ids, source in zip(written, sources, strict=True)
    ]
    copying(denoiser, lambda source: len(source) % 2, monkeypatch)
    found = restoration.copies(denoiser, sentences)
    assert found == [len(source) % 2 == 1 for source in sources] and len(set(found)) == 2


def test_measure_counts_exact_blanks_and_copies(experts, monkeypatch):
    found = restoration.measure(experts, TEXTS, seed=0)
    assert set(found.loss) == set(ROLES) and all(row.shape == (len(TEXTS),) for row in found.loss.values())
    assert (found.exact <= found.blanks).all() and (found.blanks >= 1).all()
    monkeypatch.setattr(restoration, "losses", None)  # the second time comes from the store
    monkeypatch.setattr(restoration, "write", None)
    again = restoration.measure(experts, TEXTS, seed=0)
    assert (again.loss[EXPERT] == found.loss[EXPERT]).all() and (again.exact == found.exact).all()


def test_a_perfect_denoiser_scores_one(experts, monkeypatch):
    hidden = [c.hidden for c in restoration.corrupt(experts.denoiser, TEXTS, 0)]
    monkeypatch.setattr(restoration, "write", lambda *_: hidden)
    copying(experts.denoiser, lambda source: True, monkeypatch)
    found = restoration.measure(experts, TEXTS, seed=0)
    assert found.copied.tolist() == [1.0] * len(TEXTS)
    assert (found.exact == found.blanks).all()
    assert found.elsewhere.sum() < found.exact.sum()


def test_swing_and_its_null():
    labels = np.array([0, 1] * 50)
    generator = np.random.default_rng(0)
    difference = np.where(labels == 1, 0.5, -0.5) + 0.1 * generator.standard_normal(100)
    effect, null = disagreement.swing(difference, labels), disagreement.shuffled_swing(difference, labels)
    assert effect.low < 1.0 < effect.high and effect.low > null.high
    assert null.low < 0 < null.high and abs(null.value) < 0.02


def test_disagreement_by_position(experts):
    scores = disagreement.disagreement(experts, TEXTS)
    sentence = words.split(experts.denoiser, TEXTS[0])
    expected = masking.divergences(experts.denoiser, [sentence])[0]
    assert scores[0] == pytest.approx(expected[~np.isnan(expected)], rel=1e-3)
    share = disagreement.relative(scores)
    assert len(share) == 3  # "ok" has one word only
    assert all(row.mean() == pytest.approx(1) for row in share)
    positions = disagreement.by_position(scores, 50)
    assert positions[0].value == pytest.approx(np.mean([row[0] for row in share]))
    assert positions[-1].n >= 2
    flat = [np.full(6, 0.2)] * 4 + [np.zeros(6)]
    assert (
        disagreement.by_position(flat, 3)[0].value == pytest.approx(1) == disagreement.random_word(flat).value
    )


def test_opinions_are_the_next_tokens_of_each_role(denoiser):
    table = disagreement.opinions(denoiser, [("You are so silly.", "silly")], k=2)
    assert table.sentence.tolist() == ["You are so ___."]
    sentence = words.split(denoiser, "You are so silly.")
    source, target = sentence.masked([3], denoiser.mask_id), sentence.ids[: sentence.words[3].tokens.start]
    best = by_hand(denoiser, BASE, source, target).softmax(-1).max()
    assert f"{float(best):.2f}" in table.base[0]


def test_held_out_comments_are_halves_of_both_labels():
    held = restoration.held_out(profiles.load("smoke"))
    assert held.label.tolist() == [0, 1] * (len(held) // 2)
    assert held.text.is_unique and len(held) == profiles.load("smoke").infilled_comments


def test_history_goes_on_from_the_base(tmp_path):
    rows = [{"step": k, "loss": 1.0, "seconds": 0.1} for k in range(3)]
    config = dataclasses.asdict(adapter_training.AdapterConfig(base_steps=3, expert_steps=3))
    (tmp_path / "history.json").write_text(
        json.dumps({"config": config, "history": dict.fromkeys(ROLES, rows)}), encoding="utf-8"
    )
    found = training_history.load(tmp_path)
    assert found.of(BASE).step.tolist() == [1, 2, 3]
    assert found.of(EXPERT).step.tolist() == [4, 5, 6]


def test_student_starts_as_the_frozen_model(tiny_llama):
    profile = profiles.load("smoke", model="tiny-llama")
    student = restoration.student(profile, adapter_training.AdapterConfig(rank=2, alpha=2))
    learned = [name for name, p in student.model.named_parameters() if p.requires_grad]
    assert learned and all(f".{BASE}." in name for name in learned)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.allclose(student.model(ids).logits, tiny_llama.model(ids).logits, atol=1e-5)
