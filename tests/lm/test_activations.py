"""Activation sums: while writing, while reading, block by block, and through the norm behind the MLP."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from conftest import random_gemma
from hypothesis import given
from hypothesis import strategies as st

from companion.lm import activations, anatomy, generation, recording, tokens
from companion.lm.activations import Recorder, Sums
from companion.lm.generation import generate
from companion.lm.recording import Task
from companion.mechanism import neurons
from companion.mechanism.interventions import AblateValues, Positions, applied

NEW = 9


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error against the largest number of the same layer."""
    return ((found - expected).abs().amax(-1) / expected.abs().amax(-1).clamp(min=1e-12)).max().item()


def hook_count(lm) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in lm.model.modules())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def ending(lively_lm, prompts, monkeypatch):
    """The model with an end-of-text token that some rows reach early."""
    plain = generate(lively_lm, prompts, new_tokens=NEW)
    monkeypatch.setattr(
        lively_lm.model.generation_config, "eos_token_id", [0, int(plain.ids[0, 4]), int(plain.ids[2, 2])]
    )
    return lively_lm


def double(lm):
    return dataclasses.replace(lm, model=copy.deepcopy(lm.model).double())


# --- writing and reading


@pytest.mark.parametrize(
    ("convert", "tolerance"), [(lambda lm: lm, 1e-5), (double, 1e-12)], ids=["fp32", "fp64"]
)
def test_reading_ones_own_text_is_writing_it(ending, prompts, cache, convert, tolerance):
    lm, task = convert(ending), Task(prompts, NEW, 12, batch_size=3)
    text, written = recording.write(lm, task)
    read = recording.read(lm, task, text)
    assert torch.equal(written.count, read.count) and written.prompts == read.prompts == len(prompts)
    assert 0 < (~text.mask).sum() < text.mask.sum() == written.count.sum()
    assert relative(read.total, written.total) < tolerance
    assert relative(read.mean, written.mean) < tolerance / 5


def test_batch_size_does_not_matter(ending, prompts, tmp_path, monkeypatch):
    lm, runs = double(ending), []
    for size in (1, 3, 64):
        monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / str(size)))
        task = Task(prompts, NEW, 12, batch_size=size)
        text, written = recording.write(lm, task)
        runs.append((text, written, recording.read(lm, task, text)))
    for text, *sums in runs[1:]:
        assert torch.equal(text.ids, runs[0][0].ids)
        for found, expected in zip(sums, runs[0][1:], strict=True):
            assert torch.equal(found.count, expected.count)
            assert relative(found.total, expected.total) < 1e-12


def test_reading_counts_the_positions_that_predict_and_no_others(ending, prompts, cache):
    lm, task = ending, Task(prompts[:3], NEW, 12)
    other = generate(lm, prompts[3:6], new_tokens=NEW)  # a text the model would not have written here
    found = recording.read(lm, task, other)
    seen, expected = [], []
    handles = [
        m.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0].double()))
        for m in anatomy.neuron_sites(lm).values()
    ]
    for prompt, ids, mask in zip(
        tokens.encode(lm.tokenizer, task.prompts, 12), other.ids, other.mask, strict=True
    ):
        seen.clear()
        with torch.no_grad():
            lm.model(torch.tensor([prompt + ids[mask].tolist()]))
        expected.append(torch.stack(seen)[:, len(prompt) - 1 : -1].sum(1))
    for handle in handles:
        handle.remove()
    assert relative(found.total, torch.stack(expected)[Recorder(lm, 3).block.argsort()]) < 1e-5


def test_a_teacher_forced_batch():
    ids, mask = torch.tensor([[7, 8, 9], [5, 0, 0]]), torch.tensor([[True, True, True], [True, False, False]])
    batch = recording.teacher_forced([[1], [2, 3]], ids, mask)
    assert batch.ids.tolist() == [[0, 1, 7, 8], [2, 3, 5, 0]]
    assert batch.mask.tolist() == [[False, True, True, True], [True, True, True, False]]


def test_stored_runs_are_not_run_again(ending, prompts, cache, monkeypatch):
    task = Task(prompts, NEW, 12)
    text, written = recording.write(ending, task)
    read = recording.read(ending, task, text)

    def fail(*_args, **_kwargs):
        raise RuntimeError("run again")

    monkeypatch.setattr(generation, "generate", fail)
    handle = ending.model.register_forward_pre_hook(fail)
    try:
        for again in (task, dataclasses.replace(task, batch_size=2)):
            stored, sums = recording.write(ending, again)
            assert (
                torch.equal(stored.ids, text.ids)
                and torch.equal(stored.mask, text.mask)
                and stored.texts == text.texts
            )
            for found, expected in ((sums, written), (recording.read(ending, again, stored), read)):
                assert (
                    torch.equal(found.total, expected.total)
                    and torch.equal(found.count, expected.count)
                    and found.prompts == expected.prompts
                )
        changed = {"prompts": ["b", *prompts[1:]]}, {"new_tokens": NEW + 1}, {"max_prompt_tokens": 4}
        for other in (dataclasses.replace(task, **change) for change in changed):
            with pytest.raises(RuntimeError, match="run again"):
                recording.write(ending, other)
            with pytest.raises(RuntimeError, match="run again"):
                recording.read(ending, other, text)
        with pytest.raises(RuntimeError, match="run again"):
            recording.read(
                ending, task, dataclasses.replace(text, ids=text.ids.flip(0), mask=text.mask.flip(0))
            )
        with pytest.raises(RuntimeError, match="run again"):
            recording.write(dataclasses.replace(ending, fingerprint="other weights"), task)
    finally:
        handle.remove()


# --- blocks


def test_every_prompt_has_a_block_of_its_own_while_there_are_few(ending, prompts):
    recorder = Recorder(ending, len(prompts))
    generate(ending, prompts, new_tokens=NEW, recorder=recorder, batch_size=3)
    assert sorted(recorder.block.tolist()) == list(range(len(prompts)))
    for prompt, block in zip(prompts, recorder.block, strict=True):
        alone = Recorder(ending, 1)
        run = generate(ending, [prompt], new_tokens=NEW, recorder=alone)
        assert recorder.sums.count[block] == alone.sums.count[0] == run.mask.sum()
        assert relative(recorder.sums.total[block], alone.sums.total[0]) < 1e-5


def test_blocks_part_the_prompts(ending, prompts, monkeypatch):
    monkeypatch.setattr(activations, "BLOCKS", 3)
    recorder, state = Recorder(ending, len(prompts)), torch.get_rng_state()
    run = generate(ending, prompts, new_tokens=NEW, recorder=recorder, batch_size=2)
    assert torch.equal(Recorder(ending, len(prompts)).block, recorder.block)  # the same for both models
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(
        recorder.sums.count, torch.zeros(3, dtype=torch.long).index_add_(0, recorder.block, run.mask.sum(-1))
    )
    assert recorder.sums.count.sum() == run.mask.sum()


@pytest.mark.parametrize("n", [1, 49, 50, 51, 1199])
def test_blocks_have_like_sizes(tiny_llama, n):
    recorder = Recorder(tiny_llama, n)
    sizes = torch.bincount(recorder.block)
    assert len(sizes) == len(recorder.sums.total) == min(50, n)
    assert sizes.sum() == n and sizes.max() - sizes.min() <= 1 and sizes.min() >= 1


@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(0.1, 9))
def test_weights_count_blocks(seed, n, factor):
    generator = torch.Generator().manual_seed(seed)
    sums = Sums(
        torch.randn(n, 2, 3, generator=generator).double(), torch.randint(1, 9, (n,), generator=generator), n
    )
    weight = torch.randint(0, 3, (n,), generator=generator).float()
    weight[0] += 1
    repeated = torch.arange(n).repeat_interleave(weight.long())
    expected = sums.total[repeated].sum(0) / sums.count[repeated].sum()
    torch.testing.assert_close(sums.weighted(weight), expected)
    torch.testing.assert_close(sums.weighted(factor * weight), expected)
    torch.testing.assert_close(sums.mean, sums.total.sum(0) / sums.count.sum())


# --- hooks


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_hooks_are_gone_after_an_exception(lively_lm, error):
    before, recorder = hook_count(lively_lm), Recorder(lively_lm, 2)
    with pytest.raises(error), recorder.watching([0, 1]):
        assert hook_count(lively_lm) == before + lively_lm.n_layers
        raise error
    assert hook_count(lively_lm) == before
    assert len(recorder.rows) == len(recorder.mask) == 0


def test_a_bridged_model_is_recorded_behind_its_hook_points(lively_lm, prompts):
    lm, plain = (
        dataclasses.replace(lively_lm, model=copy.deepcopy(lively_lm.model)),
        Recorder(lively_lm, len(prompts)),
    )
    view, expected = anatomy.bridge(lm), generate(lively_lm, prompts, new_tokens=NEW, recorder=plain)
    recorder = Recorder(lm, len(prompts))
    assert torch.equal(generate(lm, prompts, new_tokens=NEW, recorder=recorder).ids, expected.ids)
    assert relative(recorder.sums.total, plain.sums.total) < 1e-4
    neurons_off = torch.rand(recorder.total.shape[1:], generator=torch.Generator().manual_seed(0)) < 0.3
    recorder = Recorder(lm, len(prompts))
    with applied(view, AblateValues(neurons_off), positions=Positions.ALL):
        generate(lm, prompts, new_tokens=NEW, recorder=recorder)
    assert (recorder.sums.total[:, neurons_off] == 0).all()
    assert (recorder.sums.mean[~neurons_off] != 0).any()


# --- the norm behind the MLP


@pytest.mark.parametrize("bridged", [False, True], ids=["plain", "bridged"])
@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_through_the_norm_neurons_add_up_to_what_is_written(tiny_llama, prompts, cache, kind, bridged):
    lm = random_gemma(tiny_llama, kind)
    if bridged:
        anatomy.bridge(lm)
    task, seen = Task(prompts, NEW, 12), {True: [], False: []}
    direction = torch.nn.functional.normalize(
        torch.randn(32, generator=torch.Generator().manual_seed(1)), dim=0
    )
    lm.model.generation_config.eos_token_id = [0, int(generate(lm, prompts, new_tokens=NEW).ids[0, 4])]
    text, _ = recording.write(lm, task)
    assert not text.mask.all()
    sites = {
        True: [layer.post_feedforward_layernorm for layer in lm.model.model.layers],
        False: [layer.mlp for layer in lm.model.model.layers],
    }
    handles = [
        module.register_forward_hook(
            lambda _m, _a, out, through=through: seen[through].append(out.double() @ direction.double())
        )
        for through, modules in sites.items()
        for module in modules
    ]
    read = {through: recording.read(lm, task, text, through_norm=through) for through in (True, False)}
    raw = torch.stack(
        [site.weight.T.double() @ direction.double() for site in anatomy.neuron_sites(lm).values()]
    )
    assert torch.equal(neurons.projected(lm, direction) > 0, neurons.cosines(lm, direction) > 0)
    for handle in handles:
        handle.remove()
    order = sorted(range(len(prompts)), key=lambda i: len(tokens.encode(lm.tokenizer, [prompts[i]], 12)[0]))
    for through, sums in read.items():
        written = torch.stack(seen[through][: lm.n_layers])[:, :, -NEW:][:, text.mask[order]].mean(-1)
        u = neurons.projected(lm, direction) if through else raw
        projections = sums.mean * u
        assert relative(projections.sum(-1)[None], written[None]) < 1e-5
        assert torch.equal(sums.count, read[True].count)
    assert relative(read[True].mean, read[False].mean) > 0.1


def test_models_without_such_a_norm_do_not_care(lively_lm, prompts):
    with_norm, without = (
        Recorder(lively_lm, len(prompts), through_norm=through) for through in (True, False)
    )
    for recorder in (with_norm, without):
        generate(lively_lm, prompts, new_tokens=3, recorder=recorder)
    assert torch.equal(with_norm.sums.total, without.sums.total)
