"""Interventions at hook points: against copies with changed weights, position by position, and without a
trace."""

from __future__ import annotations

import copy
import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import nn
from transformer_lens import TransformerBridge

from companion.errors import CompanionError
from companion.lm import anatomy, tokens
from companion.lm.activations import Recorder
from companion.lm.generation import generate
from companion.lm.models import LanguageModel
from companion.mechanism.interventions import (
    AblateValues,
    OpenGates,
    Patch,
    Positions,
    RescaleKeys,
    Subtract,
    applied,
)

IDS = torch.tensor([[72, 101, 108, 108, 111, 44, 32, 119], [84, 104, 101, 32, 99, 97, 116, 115]])
NEW = 7


class Bridged(NamedTuple):
    lm: LanguageModel
    view: TransformerBridge

    @property
    def shape(self) -> tuple[int, int]:
        return self.view.cfg.n_layers, self.view.cfg.d_mlp

    def some(self, seed: int = 0, share: float = 0.3) -> torch.Tensor:
        """A random set of neurons."""
        return torch.rand(self.shape, generator=torch.Generator().manual_seed(seed)) < share

    def logits(self, *interventions, positions=Positions.ALL, ids=IDS) -> torch.Tensor:
        with torch.inference_mode(), applied(self.view, *interventions, positions=positions):
            return self.lm.model(ids, use_cache=False).logits

    def generated(self, prompts, *interventions, positions=Positions.ALL):
        recorder = Recorder(self.lm, len(prompts))
        with applied(self.view, *interventions, positions=positions):
            made = generate(self.lm, prompts, new_tokens=NEW, recorder=recorder, batch_size=4)
        return made, recorder.sums

    def seen(
        self, *interventions, positions=Positions.ALL
    ) -> tuple[dict[int, torch.Tensor], list[torch.Tensor]]:
        """Neuron activations and MLP outputs by layer."""
        passed: list[tuple[torch.Tensor, torch.Tensor]] = []
        sites = anatomy.neuron_sites(self.lm).values()
        handles = [
            module.register_forward_hook(
                lambda _m, args, output: passed.append((args[0].clone(), output.clone()))
            )
            for module in sites
        ]
        self.logits(*interventions, positions=positions)
        for handle in handles:
            handle.remove()
        return {layer: inputs for layer, (inputs, _) in enumerate(passed)}, [output for _, output in passed]


def bridged(lm: LanguageModel, edit=None) -> Bridged:
    """A bridged copy, whose weights ``edit`` may change first."""
    model = copy.deepcopy(lm.model)
    if edit is not None:
        with torch.no_grad():
            edit(model)
    lm = dataclasses.replace(lm, model=model)
    return Bridged(lm, anatomy.bridge(lm))


def mlps(model) -> list[nn.Module]:
    return [
        block.mlp
        for block in (model.transformer.h if model.config.model_type == "gpt2" else model.model.layers)
    ]


def zero_values(neurons: torch.Tensor):
    def edit(model) -> None:
        for mlp, chosen in zip(mlps(model), neurons, strict=True):
            (mlp.c_proj.weight if hasattr(mlp, "c_proj") else mlp.down_proj.weight.T)[chosen] = 0

    return edit


def scale_keys(neurons: torch.Tensor, factor: float):
    def edit(model) -> None:
        for mlp, chosen in zip(mlps(model), neurons, strict=True):
            (mlp.c_fc.weight.T if hasattr(mlp, "c_fc") else mlp.up_proj.weight)[chosen] *= factor

    return edit


def hook_count(it: Bridged) -> int:
    return sum(
        len(m._forward_pre_hooks) + len(m._forward_hooks)
        for root in (it.view, it.lm.model)
        for m in root.modules()
    )


@pytest.fixture(scope="module")
def shared(lively_lm) -> Bridged:
    made = bridged(lively_lm)
    made.logits()  # the bridge adds hooks of its own in the first pass
    return made


@pytest.fixture
def it(shared) -> Bridged:
    """A bridged copy of both tiny architectures; every test must leave its hooks and, bit for bit, its
    logits as they were."""
    hooks, logits = hook_count(shared), shared.logits()
    yield shared
    assert hook_count(shared) == hooks
    assert torch.equal(shared.logits(), logits)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# --- against changed weights


def test_ablated_value_vectors_are_zeroed_weights(it, lively_lm, prompts):
    for share in (0.3, 1.0):
        neurons = it.some(share=share)
        zeroed = bridged(lively_lm, zero_values(neurons))
        assert torch.equal(it.logits(AblateValues(neurons)), zeroed.logits())
        assert not torch.equal(it.logits(), zeroed.logits())
        (made, sums), (expected, other) = (
            it.generated(prompts, AblateValues(neurons)),
            zeroed.generated(prompts),
        )
        assert torch.equal(made.ids, expected.ids)
        assert torch.equal(sums.total[:, ~neurons], other.total[:, ~neurons])
        assert not sums.total[:, neurons].any()


@pytest.mark.parametrize("factor", [10.0, -1.0, 1.0, 0.0])
def test_rescaled_keys_are_scaled_weights(it, lively_lm, prompts, factor):
    neurons = it.some()
    scaled, keys = bridged(lively_lm, scale_keys(neurons, factor)), RescaleKeys(neurons, factor)
    assert_close(it.logits(keys), scaled.logits())
    assert torch.equal(it.logits(), scaled.logits()) == (factor == 1)
    (made, sums), (expected, other) = it.generated(prompts, keys), scaled.generated(prompts)
    assert torch.equal(made.ids, expected.ids)
    assert_close(sums.total, other.total)


def test_open_gates_let_the_linear_branch_through(it, prompts):
    """In GPT-2, which has no gates, they are refused."""
    gates = OpenGates(it.some())
    if not it.view.cfg.gated_mlp:
        with pytest.raises(CompanionError, match="have no gates"):
            it.logits(gates)
        return
    post, linear = [], []
    hooks = [
        ("blocks.1.mlp.hook_post", lambda x, hook: post.append(x)),
        ("blocks.1.mlp.hook_pre_linear", lambda x, hook: linear.append(x)),
    ]
    with it.view.hooks(fwd_hooks=hooks):
        it.logits(gates)
    opened = it.some()[1]
    assert torch.allclose(post[0][..., opened], linear[0][..., opened], atol=1e-6)
    assert not torch.allclose(post[0][..., ~opened], linear[0][..., ~opened], atol=1e-2)


def test_patched_activations_take_their_values(it, prompts):
    values = torch.randn(it.shape, generator=torch.Generator().manual_seed(1)).double()
    everywhere = torch.ones(it.shape, dtype=torch.bool)
    _, outputs = it.seen(Patch(everywhere, values))
    for layer, (module, output) in enumerate(zip(anatomy.neuron_sites(it.lm).values(), outputs, strict=True)):
        assert_close(output, module(values[layer].float()).detach().expand_as(output))
    neurons = it.some()
    made, sums = it.generated(prompts, Patch(neurons, values))
    torch.testing.assert_close(sums.mean[neurons], values.float().double()[neurons])
    assert not torch.isclose(sums.mean[~neurons], values[~neurons]).any()
    assert not torch.equal(made.ids, it.generated(prompts)[0].ids)
    assert torch.equal(it.logits(Patch(neurons, torch.zeros(it.shape))), it.logits(AblateValues(neurons)))


def test_subtraction_moves_the_residual_stream(it):
    decoder = it.lm.model.transformer if it.lm.model.config.model_type == "gpt2" else it.lm.model.model
    blocks = decoder.h if it.lm.model.config.model_type == "gpt2" else decoder.layers
    behind = [*blocks[1:], decoder.ln_f if hasattr(decoder, "ln_f") else decoder.norm]
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))
    for layer, module in enumerate(behind):
        read: list[torch.Tensor] = []
        handle = module.register_forward_pre_hook(
            lambda _m, args, kwargs: read.append((args or (kwargs["hidden_states"],))[0].clone()),
            with_kwargs=True,
        )
        plain = it.logits()
        moved = it.logits(Subtract(direction, 2.5, layer))
        wide = it.logits(Subtract(direction.double(), 2.5, layer))
        handle.remove()
        assert torch.equal(read[1], read[0] - 2.5 * direction)
        assert_close(wide, moved)
        assert not torch.equal(plain, moved)
        assert torch.equal(it.logits(Subtract(direction, 0.0, layer)), plain)


# --- positions


@pytest.mark.parametrize("kind", ["ablate", "keys", "patch", "subtract"])
def test_a_mask_changes_its_positions_and_what_follows(it, kind):
    made = {
        "ablate": AblateValues(it.some()),
        "keys": RescaleKeys(it.some(), 5.0),
        "patch": Patch(it.some(), torch.ones(it.shape)),
        "subtract": None,
    }
    one = made[kind] or Subtract(torch.ones(32), 3.0, 0)
    plain, mask = it.logits(), torch.zeros(IDS.shape, dtype=torch.bool)
    mask[0, 5] = True
    masked = it.logits(one, positions=mask)
    assert torch.equal(masked[0, :5], plain[0, :5]) and torch.equal(masked[1], plain[1])
    assert (masked[0, 5:] != plain[0, 5:]).any(-1).all()
    assert torch.equal(it.logits(one, positions=~mask & mask), plain)
    first = torch.arange(8).expand(2, 8) == 0
    for positions, same in (
        (Positions.FIRST, first),
        (Positions.ALL, first | True),
        (Positions.AFTER_FIRST, ~first),
    ):
        assert torch.equal(it.logits(one, positions=positions), it.logits(one, positions=same))


def test_generated_positions_are_those_that_predict(it, prompts):
    """Decoding with a cache against passes over the whole text, masked from the last prompt token on."""
    interventions = AblateValues(it.some()), Subtract(torch.ones(32), 1.0, 1)
    made, sums = it.generated(prompts, *interventions, positions=Positions.GENERATED)
    for prompt, ids, kept in zip(tokens.encode(it.lm.tokenizer, prompts), made.ids, made.mask, strict=True):
        row = list(prompt)
        for expected in ids[kept].tolist():
            mask = torch.arange(len(row))[None] >= len(prompt) - 1
            assert (
                it.logits(*interventions, positions=mask, ids=torch.tensor([row]))[0, -1].argmax() == expected
            )
            row.append(expected)
    assert not sums.total[:, it.some()].any()
    assert not torch.equal(it.generated(prompts, *interventions)[0].ids, made.ids)  # the prompt counts, too


def test_generated_positions_need_a_cache(it):
    with pytest.raises(CompanionError, match="while decoding with a cache"):
        it.logits(AblateValues(it.some()), positions=Positions.GENERATED)
    with (
        applied(it.view, AblateValues(it.some()), positions=Positions.GENERATED),
        pytest.raises(CompanionError, match="give a mask"),
    ):
        it.view(IDS)


def test_the_first_token_cannot_be_spared_with_a_cache(it, prompts):
    with pytest.raises(CompanionError, match="does not begin with the first token"):
        it.generated(prompts, AblateValues(it.some()), positions=Positions.AFTER_FIRST)


# --- what does not fit


def misfits(it: Bridged) -> dict[str, object]:
    layers, width = it.shape
    neurons, values = it.some(), torch.ones(it.shape)
    return {
        "float mask": AblateValues(neurons.float()),
        "integer mask": RescaleKeys(neurons.long(), 2.0),
        "a layer too many": AblateValues(torch.ones(layers + 1, width, dtype=torch.bool)),
        "a neuron too few": RescaleKeys(neurons[:, :-1], 2.0),
        "flat": Patch(neurons.flatten(), values.flatten()),
        "values of another shape": Patch(neurons, values[:, :-1]),
        "turned": AblateValues(neurons.T),
        "short direction": Subtract(torch.ones(31), 1.0, 0),
        "direction as a box": Subtract(torch.ones(1, 1, 32), 1.0, 0),
        "no such layer": Subtract(torch.ones(32), 1.0, layers),
        "layer -1": Subtract(torch.ones(32), 1.0, -1),
    }


def test_what_does_not_fit_is_refused_before_any_pass(unchecked, it):
    for name, intervention in misfits(it).items():
        with pytest.raises(CompanionError, match="does not fit") as caught:
            applied(it.view, AblateValues(it.some()), intervention, positions=Positions.ALL).__enter__()
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value), name
    for positions in ("all", None, torch.ones(2, 8), torch.ones(8, dtype=torch.bool), torch.tensor([7])):
        with pytest.raises(CompanionError, match="Positions or a boolean mask"):
            applied(it.view, AblateValues(it.some()), positions=positions).__enter__()
    with pytest.raises(CompanionError, match=r"mask of positions is \(2, 7\), the pass \(2, 8\)"):
        it.logits(AblateValues(it.some()), positions=torch.ones(2, 7, dtype=torch.bool))


# --- nesting and leaving


def test_nested_blocks_add_up_and_are_left_one_by_one(it):
    one, two = AblateValues(it.some()), Subtract(torch.ones(32), 2.0, 0)
    with applied(it.view, one, positions=Positions.ALL):
        nested = it.logits(two)
        alone = it.logits()  # the inner block is left, the outer is not
    assert torch.equal(nested, it.logits(one, two)) and torch.equal(alone, it.logits(one))
    assert not torch.equal(nested, alone) and not torch.equal(alone, it.logits())


def test_interventions_act_in_the_order_given(it):
    neurons = it.some()
    patch, ablate = Patch(neurons, torch.ones(it.shape)), AblateValues(neurons)
    assert torch.equal(it.logits(patch, ablate), it.logits(ablate))
    assert torch.equal(it.logits(ablate, patch), it.logits(patch))
    with applied(it.view, patch, positions=Positions.ALL):
        nested = it.logits(ablate)
    assert torch.equal(nested, it.logits(ablate))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, CompanionError])
def test_an_exception_leaves_no_trace(it, prompts, error):
    def fail(*_args) -> None:
        raise error

    with pytest.raises(error), applied(it.view, AblateValues(it.some()), positions=Positions.ALL):
        raise error
    handle = list(anatomy.neuron_sites(it.lm).values())[-1].register_forward_pre_hook(fail)
    try:
        with pytest.raises(error):
            it.generated(prompts, AblateValues(it.some()), Subtract(torch.ones(32), 1.0, 0))
    finally:
        handle.remove()  # the fixture looks for the rest


def test_fingerprints_tell_interventions_apart(it):
    a, b, values = it.some(0), it.some(1), torch.randn(it.shape, generator=torch.Generator().manual_seed(0))

    def make() -> list:
        return [
            *(AblateValues(neurons.clone()) for neurons in (a, b)),
            *(RescaleKeys(neurons.clone(), factor) for neurons, factor in ((a, 2.0), (b, 2.0), (a, 2.5))),
            *(Patch(neurons.clone(), scale * values) for neurons, scale in ((a, 1), (b, 1), (a, 2))),
            *(
                Subtract(sign * torch.ones(32), scale, layer)
                for sign, scale, layer in ((1, 1.0, 0), (-1, 1.0, 0), (1, 2.0, 0), (1, 1.0, 1))
            ),
        ]

    found = [intervention.fingerprint for intervention in make()]
    assert len(set(found)) == len(found)
    assert found == [intervention.fingerprint for intervention in make()]
    other = torch.where(a, values, 7.0)  # values of neurons that are not patched do not count
    assert Patch(a, other).fingerprint == Patch(a, values).fingerprint


def test_the_real_model(embedded_lm):
    real, texts = bridged(embedded_lm), ["The weather today is", "Once upon a time"]
    ids = torch.tensor([[504, 7362, 2966, 314]])
    neurons, plain = real.some(share=0.1), real.logits(ids=ids)
    hooks, ablated, made = (
        hook_count(real),
        real.logits(AblateValues(neurons), ids=ids),
        real.generated(texts, AblateValues(neurons))[0],
    )
    assert hook_count(real) == hooks
    assert torch.equal(real.logits(ids=ids), plain) and not torch.equal(plain, ablated)
    with torch.no_grad():
        for module, chosen in zip(anatomy.neuron_sites(real.lm).values(), neurons, strict=True):
            module.weight[:, chosen] = 0
    assert_close(real.logits(ids=ids), ablated)
    assert torch.equal(real.generated(texts)[0].ids, made.ids)
