"""Every component's part of the probe's reading: the parts are all there is, and each is what it says."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from conftest import lively, random_gemma

from companion.lm import activations, anatomy, generation, models, recording, tokens
from companion.lm.generation import Generated
from companion.lm.models import LanguageModel
from companion.lm.recording import Task
from companion.mechanism import attribution, neurons
from companion.mechanism.attribution import PARTS, Reading

NEW = 7


KINDS = ["tiny-gpt2", "tiny-llama", "gemma2", "gemma2 with biases", "gemma3"]


@pytest.fixture(params=KINDS)
def lm(request, tiny_llama, tmp_path, monkeypatch) -> LanguageModel:
    """Every architecture, with large weights, random biases and random gains. Read-only."""
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "cache"))
    kind, _, biases = request.param.partition(" with ")
    if kind.startswith("tiny"):
        return lively(models.load(kind))
    return random_gemma(tiny_llama, kind, attention_bias=bool(biases))


def direction(lm: LanguageModel, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(lm.model.config.hidden_size, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=0)


def ragged(lm: LanguageModel, prompts: list[str]) -> Generated:
    """Continuations of which some end early."""
    made = generation.generate(lm, prompts, new_tokens=NEW)
    ends = torch.randint(1, NEW + 1, (len(prompts), 1), generator=torch.Generator().manual_seed(2))
    return dataclasses.replace(made, mask=made.mask & (torch.arange(NEW) < ends))


def converted(lm: LanguageModel, change, name: str) -> LanguageModel:
    """A changed copy."""
    model = copy.deepcopy(lm.model)
    with torch.no_grad():
        model = change(model) or model
    return dataclasses.replace(lm, model=model, fingerprint=f"{lm.fingerprint}+{name}")


def double(lm: LanguageModel) -> LanguageModel:
    return converted(lm, lambda model: model.double(), "double")


def perturbed(lm: LanguageModel) -> LanguageModel:
    generator = torch.Generator().manual_seed(5)

    def noise(model) -> None:
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn(parameter.shape, generator=generator))

    return converted(lm, noise, "noise")


def parts(reading: Reading) -> torch.Tensor:
    """The sum of the components, by block."""
    by_layer = reading.heads.sum(-1) + reading.mlp + reading.bias
    return reading.embedding + by_layer.sum(-1)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs() / expected.abs()).max().item()


def hook_count(lm: LanguageModel) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in lm.model.modules())


# --- the identity


def check_identity(lm: LanguageModel, prompts: list[str], tolerance: float) -> None:
    """The parts add up in each block to the reading, and that is the stream which the probe is given."""
    task, text, d = Task(prompts, NEW, 12, batch_size=3), ragged(lm, prompts), direction(lm)
    found = attribution.read(lm, d, task, text)
    assert error(parts(found), found.reading) < tolerance
    assert found.reading.dtype == found.heads.dtype == torch.float64
    expected = torch.zeros_like(found.reading), torch.zeros_like(found.embedding)
    rows, blocks = tokens.encode(lm.tokenizer, prompts, 12), activations.blocks_of(len(prompts))
    for row, ids, mask, block in zip(rows, text.ids, text.mask, blocks, strict=True):
        with torch.no_grad():
            read = lm.model(torch.tensor([row + ids[mask].tolist()[:-1]]), output_hidden_states=True)
        for total, layer in zip(expected, (lm.n_layers - 1, 0), strict=True):
            total[block] += (read.hidden_states[layer][0, len(row) - 1 :].double() @ d.double()).sum()
    assert error(found.reading, expected[0]) < tolerance and error(found.embedding, expected[1]) < tolerance
    assert torch.equal(found.count, recording.read(lm, task, text).count)


def test_the_parts_add_up_to_the_reading(lm, prompts):
    check_identity(lm, prompts, 1e-5)
    if lm.name != "tiny-gemma":  # its norms compute in fp32 whatever the weights are in
        check_identity(double(lm), prompts, 1e-11)


@pytest.mark.parametrize("name", [models.EMBEDDED, models.JUDGE])
def test_they_do_in_real_models(name, request, prompts, tmp_path, monkeypatch):
    real = request.getfixturevalue("embedded_lm") if name == models.EMBEDDED else models.load(name)
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))
    check_identity(real, prompts[:4], 1e-5)


def test_the_parts_of_a_change_add_up(lm, prompts):
    task, text, d = Task(prompts, NEW, 12), ragged(lm, prompts), direction(lm)
    before, after = (attribution.read(one, d, task, text) for one in (lm, perturbed(lm)))
    assert error(parts(before) - parts(after), before.reading - after.reading) < 1e-3  # of a small difference
    assert (before.reading - after.reading).abs().min() > 1e-2
    found = attribution.account(before, after)
    assert sum(found[part] for part in PARTS) == pytest.approx(found["reading"], rel=1e-4)
    assert sum(found[f"{part}_share"] for part in PARTS) == pytest.approx(1, rel=1e-4)
    layers, heads = range(lm.n_layers - 1), range(lm.model.config.num_attention_heads)
    for kind in ("attention", "mlp"):
        assert sum(found[f"{kind}_{layer}"] for layer in layers) == pytest.approx(found[kind])
    for layer in layers:
        by_head = sum(found[f"head_{layer}_{head}"] for head in heads)
        assert by_head == pytest.approx(found[f"attention_{layer}"])
    back = attribution.account(after, before)
    assert all(back[key] == pytest.approx(-found[key]) for key in ("reading", *PARTS))


# --- what each part is


def test_the_mlp_is_its_neurons(lm, prompts):
    task, text, d = Task(prompts, NEW, 12), ragged(lm, prompts), direction(lm)
    found = attribution.read(lm, d, task, text)
    by_neuron = recording.read(lm, task, text).total * neurons.projected(lm, d)
    torch.testing.assert_close(found.mlp, by_neuron.sum(-1)[:, :-1])


def test_biases_are_a_part_of_their_own(lm, prompts, request):
    found = attribution.read(lm, direction(lm), Task(prompts, NEW, 12), ragged(lm, prompts))
    named = request.node.callspec.id
    has_biases = named in ("tiny-gpt2", "gemma2 with biases")
    assert bool((found.bias != 0).all()) == bool((found.bias != 0).any()) == has_biases
    if named == "tiny-gpt2":
        block = lm.model.transformer.h[0]
        written = block.attn.c_proj.bias.double() + block.mlp.c_proj.bias.double()
        expected = found.count * (written.detach() @ direction(lm).double())
        torch.testing.assert_close(found.bias[:, 0], expected)


def test_a_head_whose_output_is_zeroed_writes_nothing(lm, prompts):
    task, text, d, width = Task(prompts, NEW, 12), ragged(lm, prompts), direction(lm), 8

    def silence(model) -> None:
        if model.config.model_type == "gpt2":
            model.transformer.h[0].attn.c_proj.weight[2 * width : 3 * width] = 0  # inputs are rows
        else:
            model.model.layers[0].self_attn.o_proj.weight[:, 2 * width : 3 * width] = 0  # or columns

    whole = attribution.read(lm, d, task, text)
    found = attribution.read(converted(lm, silence, "silence"), d, task, text)
    assert not found.heads[:, 0, 2].any() and whole.heads[:, 0, 2].all()
    assert torch.equal(found.embedding, whole.embedding)
    if anatomy.output_norm_eps(lm) is None:  # the scale of a norm depends on all heads
        others = [0, 1, 3]
        torch.testing.assert_close(found.heads[:, 0, others], whole.heads[:, 0, others])
    assert (found.mlp[:, 0] != whole.mlp[:, 0]).all()  # it reads what heads write


def test_the_direction_scales_and_turns_every_part(lm, prompts):
    task, text = Task(prompts, NEW, 12), ragged(lm, prompts)
    one, other = direction(lm), direction(lm, 1)
    read = [attribution.read(lm, d, task, text) for d in (one, other, one - 2 * other)]
    for first, second, both in zip(*map(fields, read), strict=True):
        torch.testing.assert_close(first - 2 * second, both, rtol=1e-5, atol=1e-5)


# --- how they are summed


def fields(reading: Reading) -> list[torch.Tensor]:
    return [reading.reading, reading.embedding, reading.heads, reading.mlp, reading.bias]


def test_batches_and_padding_do_not_matter(lm, prompts, tmp_path, monkeypatch):
    text, runs = ragged(lm, prompts), []
    for size in (1, 3, 64):
        monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / str(size)))
        runs.append(attribution.read(lm, direction(lm), Task(prompts, NEW, 12, batch_size=size), text))
    for other in runs[1:]:
        assert torch.equal(other.count, runs[0].count)
        for found, expected in zip(fields(other), fields(runs[0]), strict=True):
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_blocks_are_those_of_the_activations(lively_lm, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "each"))
    task, text, d = Task(prompts, NEW, 12), ragged(lively_lm, prompts), direction(lively_lm)
    each = attribution.read(lively_lm, d, task, text)
    alone = activations.blocks_of(len(prompts))  # of every prompt
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "three"))
    monkeypatch.setattr(activations, "BLOCKS", 3)
    found, block = attribution.read(lively_lm, d, task, text), activations.blocks_of(len(prompts))
    for three, seven in zip(fields(found), fields(each), strict=True):
        torch.testing.assert_close(three, torch.zeros_like(three).index_add_(0, block, seven[alone]))
    weight = torch.tensor([2.0, 0.0, 1.0])
    for mean, total in zip(found.weighted(weight).values(), fields(found), strict=True):
        torch.testing.assert_close(mean, (2 * total[0] + total[2]) / (2 * found.count[0] + found.count[2]))


def test_another_direction_costs_no_forward_pass(lively_lm, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))
    task, text = Task(prompts, NEW, 12), ragged(lively_lm, prompts)
    attribution.read(lively_lm, direction(lively_lm), task, text)
    monkeypatch.setattr(recording, "watch", None)
    attribution.read(lively_lm, direction(lively_lm, 1), task, text)
    other = dataclasses.replace(lively_lm, fingerprint="other weights")
    with pytest.raises(TypeError):
        attribution.read(other, direction(lively_lm), task, text)


@pytest.mark.parametrize("broken", ["pass", "hook"])
def test_hooks_are_gone_after_an_exception(lm, prompts, monkeypatch, broken):
    text, before = ragged(lm, prompts), hook_count(lm)

    def fail(*_args, **_kwargs):
        assert hook_count(lm) > before
        raise RuntimeError("stop")

    if broken == "pass":
        monkeypatch.setattr(anatomy.layers(lm)[-1], "forward", fail)
    else:  # while hooks are set
        last = list(anatomy.neuron_sites(lm).values())[-2]
        monkeypatch.setattr(last, "register_forward_hook", fail)
    with pytest.raises(RuntimeError, match="stop"):
        attribution.read(lm, direction(lm), Task(prompts, NEW, 12), text)
    assert hook_count(lm) == before


def test_a_bridged_model_gives_the_same(lm, prompts, tmp_path, monkeypatch):
    task, text, d = Task(prompts, NEW, 12), ragged(lm, prompts), direction(lm)
    plain, wrapped = attribution.read(lm, d, task, text), converted(lm, lambda _model: None, "bridge")
    anatomy.bridge(wrapped)
    for found, expected in zip(fields(attribution.read(wrapped, d, task, text)), fields(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# --- intervals


def test_intervals_are_over_blocks_and_hold_the_value(lively_lm, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))
    task, text, d = Task(prompts, NEW, 12), ragged(lively_lm, prompts), direction(lively_lm)
    before, after = (attribution.read(one, d, task, text) for one in (lively_lm, perturbed(lively_lm)))
    found, values = attribution.estimated(before, after, resamples=50), attribution.account(before, after)
    assert list(found) == list(values)
    for name, estimate in found.items():
        assert estimate.value == values[name] and estimate.n == len(prompts)
        assert estimate.low <= estimate.value <= estimate.high, name
    assert found["reading"].low < found["reading"].high
    assert found == attribution.estimated(before, after, resamples=50)


def test_a_model_against_itself_has_not_changed(lively_lm, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))
    text = ragged(lively_lm, prompts)
    one = attribution.read(lively_lm, direction(lively_lm), Task(prompts, NEW, 12), text)
    found = attribution.account(one, one)
    assert all(math.isnan(value) if "share" in name else value == 0 for name, value in found.items())
