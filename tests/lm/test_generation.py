"""Decoding: batches against single prompts, against Hugging Face, and the sums of activations."""

from __future__ import annotations

import dataclasses
import inspect
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from companion.lm import generation, tokens
from companion.lm.activations import Recorder
from companion.lm.anatomy import neuron_sites
from companion.lm.generation import Sampling, draw, generate

NEW = 12


def hook_count(lm) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in lm.model.modules())


def ends_early(lm, prompts, monkeypatch):
    """Make a token that greedy decoding produces in the middle of several rows an end-of-text token."""
    plain = generate(lm, prompts, new_tokens=NEW)
    ends = {int(plain.ids[0, 4]), int(plain.ids[2, 2])}
    monkeypatch.setattr(lm.model.generation_config, "eos_token_id", [0, *ends])
    assert set(lm.eos_ids) == {0, *ends}
    return plain, ends


@pytest.mark.parametrize(
    "sampling",
    [None, Sampling(seed=3), Sampling(seed=3, temperature=0.7, top_p=0.5)],
    ids=["greedy", "sampled", "cool"],
)
def test_batched_equals_one_by_one(lively_lm, prompts, sampling, monkeypatch):
    ends_early(lively_lm, prompts, monkeypatch)
    runs = [
        generate(lively_lm, prompts, new_tokens=NEW, sampling=sampling, batch_size=size)
        for size in (64, 3, 1)
    ]
    for run in runs[:2]:
        assert torch.equal(run.ids, runs[2].ids)
        assert torch.equal(run.mask, runs[2].mask)
        assert run.texts == runs[2].texts
    assert (
        len({tuple(row) for row in runs[0].ids.tolist()}) >= len(prompts) - 1
    )  # two may end at once, with the same token


def test_greedy_does_not_depend_on_the_other_prompts(lively_lm, prompts):
    together = generate(lively_lm, prompts, new_tokens=NEW)
    alone = [generate(lively_lm, [prompt], new_tokens=NEW) for prompt in prompts]
    assert torch.equal(together.ids, torch.cat([run.ids for run in alone]))
    assert together.texts == [run.texts[0] for run in alone]


@pytest.mark.parametrize("sampling", [None, Sampling(seed=3)], ids=["greedy", "sampled"])
def test_a_shared_beginning_changes_nothing(lively_lm, prompts, sampling, monkeypatch):
    asked = [f"Continue, please, this sentence: {prompt}" for prompt in prompts]
    assert generation._shared(tokens.encode(lively_lm.tokenizer, asked))
    shared = generate(lively_lm, asked, new_tokens=NEW, sampling=sampling, batch_size=3)
    monkeypatch.setattr(generation, "SHARED", 999)
    plain = generate(lively_lm, asked, new_tokens=NEW, sampling=sampling)
    assert torch.equal(shared.ids, plain.ids) and shared.texts == plain.texts


def test_equal_prompts_keep_a_token_of_their_own(lively_lm):
    asked = ["Continue, please, this sentence:"] * 2
    assert (
        generate(lively_lm, asked, new_tokens=3).texts
        == generate(lively_lm, asked[:1], new_tokens=3).texts * 2
    )


def test_greedy_equals_hugging_face(lively_lm, prompts, monkeypatch):
    _, ends = ends_early(lively_lm, prompts, monkeypatch)
    ours = generate(lively_lm, prompts, new_tokens=NEW)
    batch = tokens.pad(tokens.encode(lively_lm.tokenizer, prompts), "left")
    theirs = lively_lm.model.generate(
        batch.ids,
        attention_mask=batch.mask.long(),
        do_sample=False,
        max_new_tokens=NEW,
        min_new_tokens=0,
        pad_token_id=0,
        eos_token_id=lively_lm.eos_ids,
    )[:, batch.ids.shape[1] :]
    for row, kept, reference in zip(ours.ids, ours.mask, theirs, strict=True):
        n = int(kept.sum())
        assert row[kept].tolist() == reference[:n].tolist()
        assert n == NEW or int(row[n - 1]) in ends
    assert 0 < (~ours.mask.all(dim=1)).sum() < len(prompts)  # some rows end early and some do not


def test_stops_after_end_of_text(lively_lm, prompts, monkeypatch):
    plain, ends = ends_early(lively_lm, prompts, monkeypatch)
    ended = generate(lively_lm, prompts, new_tokens=NEW)
    for before, ids, mask in zip(plain.ids.tolist(), ended.ids, ended.mask, strict=True):
        n = next((i + 1 for i, token in enumerate(before) if token in ends), NEW)
        assert mask.tolist() == [True] * n + [False] * (NEW - n)
        assert ids.tolist() == before[:n] + [0] * (NEW - n)


def test_more_tokens_may_end_a_continuation(lively_lm, prompts):
    plain = generate(lively_lm, prompts, new_tokens=NEW)
    stop = [int(plain.ids[0, 4]), int(plain.ids[2, 2])]
    ended = generate(lively_lm, prompts, new_tokens=NEW, stop=stop)
    for before, ids, mask in zip(plain.ids.tolist(), ended.ids, ended.mask, strict=True):
        n = next((i + 1 for i, token in enumerate(before) if token in stop), NEW)
        assert ids[mask].tolist() == before[:n] and int(mask.sum()) == n


def test_prompts_that_end_in_a_space_are_counted_in_one_warning(lively_lm):
    """B14."""
    prompts = ["The cat ", "a", "Tab\t", "", "x  "]
    with pytest.warns(UserWarning, match=r"^3 of the prompts end in white space: [^\n]*\.$") as found:
        spaced = inspect.unwrap(generate)(
            lively_lm, prompts, new_tokens=3, batch_size=2
        )  # without the check of types
    assert [warning.filename for warning in found] == [__file__]
    rows = tokens.encode(lively_lm.tokenizer, prompts)
    assert [len(row) for row in rows] == [8, 1, 4, 1, 3]  # read as they stand
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a line end may be meant, and what is cut off does no harm
        generate(lively_lm, ["The cat", "Answer:\n", "\n", "abcde  "], new_tokens=2, max_prompt_tokens=5)
        generate(lively_lm, [], new_tokens=2)
        assert torch.equal(generate(lively_lm, ["a"], new_tokens=3).ids[0], spaced.ids[1])


def test_prompts_are_cut(lively_lm):
    cut = generate(lively_lm, ["abcdefgh", "xy"], new_tokens=4, max_prompt_tokens=5)
    short = generate(lively_lm, ["abcde", "xy"], new_tokens=4)
    assert torch.equal(cut.ids, short.ids)
    assert not torch.equal(cut.ids, generate(lively_lm, ["abcdefgh", "xy"], new_tokens=4).ids)


def test_activation_sums_equal_teacher_forcing(lively_lm, prompts, monkeypatch):
    ends_early(lively_lm, prompts, monkeypatch)
    recorder = Recorder(lively_lm, len(prompts))
    run = generate(lively_lm, prompts, new_tokens=NEW, recorder=recorder, batch_size=3)
    expected, seen = torch.zeros_like(recorder.sums.total[0]), {}
    sites = neuron_sites(lively_lm).values()
    handles = [
        module.register_forward_pre_hook(
            lambda _m, args, layer=layer: seen.__setitem__(layer, args[0][0].double())
        )
        for layer, module in enumerate(sites)
    ]
    try:
        for prompt, ids, mask in zip(
            tokens.encode(lively_lm.tokenizer, prompts), run.ids, run.mask, strict=True
        ):
            with torch.no_grad():
                lively_lm.model(torch.tensor([prompt + ids[mask].tolist()]))
            for layer, activations in seen.items():
                expected[layer] += activations[len(prompt) - 1 : len(prompt) - 1 + int(mask.sum())].sum(0)
    finally:
        for handle in handles:
            handle.remove()
    sums = recorder.sums
    assert sums.total.dtype == torch.float64 and sums.prompts == len(prompts)
    assert sums.count.sum() == run.mask.sum() and not run.mask.all()
    for found, layer in zip(sums.total.sum(0), expected, strict=True):
        assert (found - layer).abs().max() <= 1e-5 * layer.abs().max()
    torch.testing.assert_close(sums.mean, expected / run.mask.sum(), rtol=1e-4, atol=1e-5)


def test_capturing_changes_nothing_and_leaves_no_hooks(lively_lm, prompts):
    before = hook_count(lively_lm)
    for sampling in (None, Sampling(seed=1)):
        plain = generate(lively_lm, prompts, new_tokens=NEW, sampling=sampling)
        captured = generate(
            lively_lm, prompts, new_tokens=NEW, sampling=sampling, recorder=Recorder(lively_lm, len(prompts))
        )
        assert torch.equal(plain.ids, captured.ids)
    assert hook_count(lively_lm) == before


def test_hooks_are_gone_after_an_error(lively_lm, prompts):
    before, calls = hook_count(lively_lm), []

    def fail(*_):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("in the middle")

    handle = lively_lm.model.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="in the middle"):
            generate(lively_lm, prompts, new_tokens=NEW, recorder=Recorder(lively_lm, len(prompts)))
    finally:
        handle.remove()
    assert hook_count(lively_lm) == before


def test_seed_decides(lively_lm, prompts):
    one, again, other = (
        generate(lively_lm, prompts, new_tokens=NEW, sampling=Sampling(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.ids, again.ids)
    assert one.texts == again.texts
    assert all((a != b).any() for a, b in zip(one.ids, other.ids, strict=True))


def test_same_prompt_twice_gives_two_samples(lively_lm):
    run = generate(lively_lm, ["The cat"] * 3, new_tokens=NEW, sampling=Sampling(seed=0))
    assert len({tuple(row) for row in run.ids.tolist()}) == 3


def test_random_state_of_torch_is_left_alone(tiny, prompts):
    state = torch.get_rng_state()
    generate(tiny, prompts, new_tokens=3, sampling=Sampling(seed=0))
    assert torch.equal(torch.get_rng_state(), state)


def test_sampling_at_low_temperature_is_greedy(lively_lm, prompts):
    cold = generate(
        lively_lm, prompts, new_tokens=NEW, sampling=Sampling(seed=5, temperature=1e-4, top_p=1.0)
    )
    assert torch.equal(cold.ids, generate(lively_lm, prompts, new_tokens=NEW).ids)


GRID = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


def frequencies(probability: list[float], sampling: Sampling) -> np.ndarray:
    logits = torch.tensor(probability, dtype=torch.float64).log().expand(len(GRID), -1)
    return torch.bincount(draw(logits, sampling, GRID), minlength=len(probability)).numpy() / len(GRID)


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.15, 0.5, 0.1, 0.25]),
        (
            1.0,
            0.8,
            [0.15 / 0.9, 0.5 / 0.9, 0, 0.25 / 0.9],
        ),  # .5 + .25 is too little, .5 + .25 + .15 is enough
        (1.0, 0.7, [0, 2 / 3, 0, 1 / 3]),
        (1.0, 0.4, [0, 1, 0, 0]),
        (1.0, 0.0, [0, 1, 0, 0]),
        (0.5, 1.0, np.square([0.15, 0.5, 0.1, 0.25]) / np.square([0.15, 0.5, 0.1, 0.25]).sum()),
    ],
)
def test_draw_frequencies(temperature, top_p, expected):
    found = frequencies([0.15, 0.5, 0.1, 0.25], Sampling(0, temperature, top_p))
    np.testing.assert_allclose(found, expected, atol=2 / len(GRID))


LOGITS = hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(-8, 8, width=32))


@given(LOGITS, st.floats(0, 1, exclude_max=True), st.floats(0.01, 1), st.floats(0.2, 3))
def test_draw_stays_in_the_nucleus(logits, u, top_p, temperature):
    token = int(draw(torch.tensor(logits)[None], Sampling(0, temperature, top_p), torch.tensor([u]))[0])
    probability = np.exp((logits - logits.max()) / temperature)
    probability /= probability.sum()
    more_likely = probability[probability > probability[token] * (1 + 1e-9)].sum()
    assert more_likely < top_p + 1e-9  # the tokens before it did not yet fill the nucleus
    assert probability[token] > 0


@given(LOGITS, st.floats(0, 1, exclude_max=True))
def test_draw_from_a_tiny_nucleus_is_argmax(logits, u):
    token = int(draw(torch.tensor(logits)[None], Sampling(0, top_p=1e-9), torch.tensor([u]))[0])
    assert logits[token] == logits.max()


@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.9, 1.0])
def test_a_shortlist_changes_no_draw(monkeypatch, top_p):
    """Flat and peaked distributions, with ties at the end of the shortlist."""
    generator = torch.Generator().manual_seed(0)
    logits = (
        torch.randn(400, 60, generator=generator, dtype=torch.float64)
        * torch.linspace(0.1, 6, 400, dtype=torch.float64)[:, None]
    )
    logits[::2] = logits[::2].round()
    u = torch.rand(400, generator=generator)
    whole = draw(logits, Sampling(0, top_p=top_p), u)
    for size in (1, 5, 20):
        monkeypatch.setattr(generation, "SHORTLIST", size)
        rows = [
            draw(logits[i : i + 1], Sampling(0, top_p=top_p), u[i : i + 1]) for i in range(400)
        ]  # each with or without a full sort
        assert torch.equal(torch.cat(rows), whole)


def test_draw_from_the_largest_uniform_number():
    logits = torch.tensor([[0.0, 3.0, 1.0, -torch.inf]])
    almost_one = torch.tensor([1 - 2**-24])
    assert draw(logits, Sampling(0, top_p=1.0), almost_one).item() == 0  # the least likely that can occur
    assert draw(logits, Sampling(0, top_p=0.9), almost_one).item() == 2
    assert draw(logits, Sampling(0, top_p=1.0), torch.tensor([0.0])).item() == 1


def test_noise_belongs_to_prompt_and_seed():
    noise = generation.uniform([0, 1, 2], 5, Sampling(seed=7))
    assert torch.equal(generation.uniform([2, 0], 5, Sampling(seed=7)), noise[[2, 0]])
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(generation.uniform([0], 5, Sampling(seed=8)), noise[:1])


def test_real_model_batched_equals_one_by_one(embedded_lm):
    texts = [
        "The weather today is",
        "You",
        "In 1969 the crew of Apollo 11",
        "I can't believe that he",
        "Once upon a time, in a land far away,",
        "2 + 2 =",
    ]
    assert next(embedded_lm.model.parameters()).dtype == torch.float32
    together = generate(embedded_lm, texts, new_tokens=8)
    single = [generate(embedded_lm, [text], new_tokens=8) for text in texts]
    assert torch.equal(together.ids, torch.cat([run.ids for run in single]))
    assert torch.equal(together.mask, torch.cat([run.mask for run in single]))


def test_no_prompts(tiny):
    recorder = Recorder(tiny, 0)
    run = dataclasses.asdict(generate(tiny, [], new_tokens=3, recorder=recorder))
    assert run["ids"].shape == run["mask"].shape == (0, 3)
    assert run["texts"] == []
    assert recorder.sums.count.sum() == 0
