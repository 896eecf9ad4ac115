"""Writes replaced token by token: everything is the DPO model, nothing is the base model."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import torch
from conftest import lively, random_gemma
from test_attribution import converted, direction, hook_count, perturbed, ragged

from companion.errors import CompanionError
from companion.lm import activations, anatomy, models, recording, tokens
from companion.lm.models import LanguageModel
from companion.lm.recording import Task
from companion.mechanism import attribution, neurons, replay
from companion.mechanism.replay import OTHERS, Part, Replay

NEW = 7
KINDS = ["tiny-gpt2", "tiny-llama", "gemma2", "gemma3"]


@pytest.fixture(params=KINDS)
def lm(request, tiny_llama, tmp_path, monkeypatch) -> LanguageModel:
    """Every architecture, with large weights, random biases and random gains. Read-only."""
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "cache"))
    if request.param.startswith("tiny"):
        return lively(models.load(request.param))
    return random_gemma(tiny_llama, request.param)


@pytest.fixture
def afresh(tmp_path, monkeypatch):
    """Go on with an empty store."""

    def change(name: str) -> None:
        monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / name))

    return change


def mask(lm: LanguageModel, share: float = 1.0, seed: int = 0, draws: int | None = None) -> torch.Tensor:
    shape = lm.n_layers, len(next(neurons.value_vectors(lm)))
    drawn = torch.rand(*([draws] if draws else []), *shape, generator=torch.Generator().manual_seed(seed))
    return drawn < share


def replayed(lm, tuned, prompts, parts, size: int = 3) -> Replay:
    task, text = Task(prompts, NEW, 12, batch_size=size), ragged(lm, prompts)
    return replay.read(lm, tuned, direction(lm), task, text, parts)


def sums(found: Replay) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {name: pair for name, *pair in zip(found.names, found.reading, found.divergence, strict=True)}


def assert_same(found, expected, tolerance: float = 1e-5) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * max(1, b.abs().max())


def passes(lm: LanguageModel, tuned: LanguageModel, run) -> list[torch.Tensor]:
    """Logits of all passes of both models that read a text, in order."""
    seen: list[torch.Tensor] = []

    def see(_module, _args, output) -> None:
        if output.logits.shape[1] == NEW:  # not while writing
            seen.append(output.logits)

    handles = [one.model.register_forward_hook(see) for one in (lm, tuned)]
    run()
    for handle in handles:
        handle.remove()
    return seen


# --- identities


def check_everything(lm: LanguageModel, tuned: LanguageModel, prompts: list[str]) -> Replay:
    """With everything replaced, logits and reading are the DPO model's; with nothing, the base model's."""
    parts = {"everything": Part(mask(lm), OTHERS), "nothing": Part(mask(lm, 0.0))}
    found: list[Replay] = []
    logits = passes(lm, tuned, lambda: found.append(replayed(lm, tuned, prompts, parts, size=len(prompts))))
    theirs, own, everything, nothing = logits
    assert (everything - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert (own - theirs).abs().max() > 1e-3 * theirs.abs().max()
    assert torch.equal(nothing, own)
    by_name = sums(found[0])
    assert_same(by_name["everything"], by_name["tuned"])
    assert_same(by_name["nothing"], by_name["base"], 0)
    shares = replay.account(found[0])
    assert shares["reading_everything"] == pytest.approx(1, abs=1e-4)
    assert shares["kl_everything"] == pytest.approx(1, abs=1e-4)
    assert shares["reading_nothing"] == shares["kl_nothing"] == 0 and shares["divergence"] > 0
    return found[0]


def test_everything_is_the_other_model(lm, prompts):
    found = check_everything(lm, perturbed(lm), prompts)
    task, text = Task(prompts, NEW, 12), ragged(lm, prompts)
    for one, name in ((lm, "base"), (perturbed(lm), "tuned")):  # what chapter 6 reads
        read = attribution.read(one, direction(lm), task, text)
        assert_same([sums(found)[name][0]], [read.reading])
        assert torch.equal(read.count, found.count)


@pytest.mark.parametrize("name", [models.EMBEDDED, models.JUDGE])
def test_it_is_in_real_models(name, request, prompts, tmp_path, monkeypatch):
    real = request.getfixturevalue("embedded_lm") if name == models.EMBEDDED else models.load(name)
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))
    check_everything(real, perturbed(real), prompts[:4])


@pytest.mark.parametrize("missing", OTHERS)
def test_every_other_part_is_needed(lm, prompts, missing):
    parts = {"some": Part(mask(lm), tuple(kind for kind in OTHERS if kind != missing))}
    tuned = perturbed(lm)
    theirs, _, some = passes(lm, tuned, lambda: replayed(lm, tuned, prompts, parts, size=len(prompts)))
    has_bias = lm.model.config.model_type == "gpt2"
    off = (some - theirs).abs().max() / theirs.abs().max()
    assert off > 1e-4 if missing != "bias" or has_bias else off < 1e-5


def test_a_model_into_itself_changes_nothing(lm, prompts):
    parts = {"own": Part(mask(lm, 0.5), OTHERS[:3], own=True), "head": Part(mask(lm), OTHERS, own=True)}
    found = sums(replayed(lm, perturbed(lm), prompts, parts))
    for name in parts:
        assert_same(found[name], found["base"], 0)
    itself = replayed(lm, lm, prompts, {"all": Part(mask(lm), OTHERS)})
    assert not itself.divergence.any()
    shares = replay.account(itself)
    assert shares["change"] == 0 and math.isnan(shares["kl_all"]) and math.isnan(shares["reading_all"])


# --- what a part is


def test_a_part_is_what_its_neurons_write(lm, prompts):
    """A layer's chosen neurons, against recorded activations and value vectors of both models."""
    tuned, some = perturbed(lm), mask(lm, 0.3)
    some[torch.arange(lm.n_layers) != lm.n_layers - 2] = False  # the last that the probe reads
    task, text, d = Task(prompts, NEW, 12), ragged(lm, prompts), direction(lm)
    change = torch.zeros(len(prompts)).double()
    for one, sign in ((lm, -1), (tuned, 1)):
        by_neuron = recording.read(one, task, text).total * neurons.projected(one, d)
        change += sign * (by_neuron * some).sum((-1, -2))
    found = sums(replayed(lm, tuned, prompts, {"some": Part(some)}))
    assert_same([found["some"][0] - found["base"][0]], [change], 1e-4)


def test_with_the_same_value_vectors_it_is_a_patch_of_activations(lively_lm, prompts, afresh):
    afresh("cache")

    def other_keys(model) -> None:
        for layer in anatomy.layers(dataclasses.replace(lively_lm, model=model)):
            (layer.mlp.c_fc if hasattr(layer.mlp, "c_fc") else layer.mlp.up_proj).weight.mul_(1.5)

    tuned, some = converted(lively_lm, other_keys, "keys"), mask(lively_lm, 0.4)
    theirs: dict[int, torch.Tensor] = {}

    def keep(layer):
        return lambda _module, args: theirs.update({layer: args[0]})

    def exchange(layer):
        return lambda _module, args: (torch.where(some[layer], theirs[layer], args[0]),)

    run = partial(replayed, lively_lm, tuned, prompts, {"some": Part(some)}, len(prompts))
    found = passes(lively_lm, tuned, run)[2]
    text, rows = ragged(lively_lm, prompts), tokens.encode(lively_lm.tokenizer, prompts, 12)
    [items] = tokens.by_length(rows, len(rows))
    batch = recording.teacher_forced([rows[i] for i in items], text.ids[items], text.mask[items])
    given = {"attention_mask": batch.mask.long(), "position_ids": batch.positions, "logits_to_keep": NEW}
    for one, hook in ((tuned, keep), (lively_lm, exchange)):
        sites = anatomy.neuron_sites(one).values()
        handles = [site.register_forward_pre_hook(hook(layer)) for layer, site in enumerate(sites)]
        with torch.no_grad():
            expected = one.model(batch.ids, **given).logits
        for handle in handles:
            handle.remove()
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_all_neurons_are_the_union_of_sets(lm, prompts):
    some, tuned = mask(lm, 0.4), perturbed(lm)
    parts = {"some": Part(some), "rest": Part(~some), "union": Part(some | ~some), "all": Part(mask(lm))}
    found = sums(replayed(lm, tuned, prompts, parts))
    assert_same(found["union"], found["all"], 0)
    assert all((found[name][0] != found["base"][0]).all() for name in parts)


def test_a_draw_for_each_prompt(lm, prompts):
    drawn, tuned = mask(lm, 0.3, draws=3), perturbed(lm)
    parts = {"drawn": Part(drawn)} | {str(draw): Part(drawn[draw]) for draw in range(3)}
    found = sums(replayed(lm, tuned, prompts, parts))
    for prompt, block in enumerate(activations.blocks_of(len(prompts))):  # each prompt is a block here
        assert_same(*([pair[block] for pair in found[name]] for name in ("drawn", str(prompt % 3))))


# --- how it is read and summed


def test_batches_and_padding_do_not_matter(lm, prompts, afresh):
    parts = {"some": Part(mask(lm, 0.3), ("attention",)), "drawn": Part(mask(lm, 0.2, draws=3))}
    runs = []
    for size in (1, 3, 64):
        afresh(str(size))
        runs.append(replayed(lm, perturbed(lm), prompts, parts, size))
    for other in runs[1:]:
        assert torch.equal(other.count, runs[0].count)
        assert_same([other.reading, other.divergence], [runs[0].reading, runs[0].divergence], 1e-4)


def test_divergence_is_that_of_next_token_distributions(lm, prompts):
    """Against a prompt read alone, without padding."""
    tuned, text = perturbed(lm), ragged(lm, prompts)
    found, block = replayed(lm, tuned, prompts, {}), activations.blocks_of(len(prompts))
    for i, row in enumerate(tokens.encode(lm.tokenizer, prompts, 12)):
        ids = torch.tensor([row + text.ids[i][text.mask[i]].tolist()[:-1]])
        with torch.no_grad():
            q, p = (one.model(ids).logits[0, len(row) - 1 :].log_softmax(-1) for one in (lm, tuned))
        expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum")
        assert found.divergence[1, block[i]] == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


def test_results_are_kept(lm, prompts, monkeypatch):
    tuned, parts = perturbed(lm), {"some": Part(mask(lm, 0.3))}
    first = replayed(lm, tuned, prompts, parts)
    monkeypatch.setattr(replay, "_forward", None)
    again = replayed(lm, tuned, prompts, parts)
    assert torch.equal(first.reading, again.reading) and torch.equal(first.divergence, again.divergence)
    for other in (Part(mask(lm, 0.3), ("head",)), Part(mask(lm, 0.3), own=True), Part(mask(lm, 0.3, 1))):
        with pytest.raises(TypeError):
            replayed(lm, tuned, prompts, {"some": other})
    with pytest.raises(TypeError):
        replayed(lm, dataclasses.replace(tuned, fingerprint="other"), prompts, parts)


@pytest.mark.parametrize("broken", ["pass", "hook"])
def test_hooks_are_gone_after_an_exception(lm, prompts, monkeypatch, broken):
    tuned, text = perturbed(lm), ragged(lm, prompts)
    before = hook_count(lm), hook_count(tuned)

    def fail(*_args, **_kwargs):
        assert hook_count(lm) > before[0]
        raise RuntimeError("stop")

    if broken == "pass":
        monkeypatch.setattr(anatomy.layers(lm)[-1], "forward", fail)
    else:  # while hooks are set
        last = list(anatomy.neuron_sites(lm).values())[-1]
        monkeypatch.setattr(last, "register_forward_hook", fail)
    with pytest.raises(RuntimeError, match="stop"):
        parts = {"all": Part(mask(lm), OTHERS)}
        replay.read(lm, tuned, direction(lm), Task(prompts, NEW, 12), text, parts)
    assert (hook_count(lm), hook_count(tuned)) == before


def test_hooks_are_gone_afterwards(lm, prompts):
    tuned, before = perturbed(lm), hook_count(lm)
    replayed(lm, tuned, prompts, {"all": Part(mask(lm), OTHERS, own=True)})
    assert hook_count(lm) == hook_count(tuned) == before


def test_bridged_models_give_the_same(lm, prompts, afresh):
    parts = {"all": Part(mask(lm), OTHERS), "some": Part(mask(lm, 0.3))}
    tuned = perturbed(lm)
    plain = replayed(lm, tuned, prompts, parts)
    afresh("bridged")
    wrapped = [converted(one, lambda _model: None, "bridge") for one in (lm, tuned)]
    for one in wrapped:
        anatomy.bridge(one)
    found = replayed(*wrapped, prompts, parts)
    assert_same([found.reading, found.divergence], [plain.reading, plain.divergence], 1e-3)


@pytest.mark.parametrize("wrong", ["shape", "layers", "others"])
def test_a_part_that_does_not_fit_is_refused(lm, prompts, wrong):
    part = {
        "shape": Part(mask(lm)[:, :-1]),
        "layers": Part(mask(lm)[1:]),
        "others": Part(mask(lm), ("atention",)),
    }[wrong]
    with pytest.raises(CompanionError, match="part 'it'"):
        replayed(lm, perturbed(lm), prompts, {"it": part})


# --- shares and intervals


def test_shares_are_of_the_change():
    ones = torch.ones(3).double()
    reading = torch.stack([2 * ones, 6 * ones, 5 * ones, 7 * ones])  # tuned, base, one, other
    divergence = torch.stack([0 * ones, 4 * ones, 1 * ones, 6 * ones])
    found = replay.account(
        Replay(("tuned", "base", "one", "other"), reading, divergence, torch.tensor([2, 2, 2])),
        against={"one": "other"},
    )
    expected = {"change": 2, "divergence": 2, "reading_one": 0.25, "kl_one": 0.75}
    expected |= {"reading_other": -0.25, "kl_other": -0.5, "reading_one_beyond": 0.5, "kl_one_beyond": 1.25}
    assert found == pytest.approx(expected)


def test_intervals_are_over_blocks_and_hold_the_value(lm, prompts):
    found = replayed(lm, perturbed(lm), prompts, {"a": Part(mask(lm, 0.5)), "b": Part(mask(lm, 0.5, 1))})
    estimated = replay.estimated(found, {"a": "b"}, resamples=50)
    values = replay.account(found, against={"a": "b"})
    assert list(estimated) == list(values)
    for name, estimate in estimated.items():
        assert estimate.value == values[name] and estimate.n == len(prompts)
        assert estimate.low <= estimate.value <= estimate.high, name
