"""The probe, its features and directions, and the views of a model that chapters read neurons through."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from conftest import lively
from hypothesis import given
from hypothesis import strategies as st
from transformers import GemmaConfig, GemmaForCausalLM

from companion.errors import CompanionError
from companion.lm import anatomy, models, tokens
from companion.lm.anatomy import neuron_sites
from companion.lm.models import LanguageModel
from companion.mechanism import probe
from companion.mechanism.probe import Probe

# --- features


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.sampled_from(["left", "right"]),
    st.integers(0, 99),
)
def test_pool_ignores_padding_and_the_first_token(lengths, side, seed):
    generator = torch.Generator().manual_seed(seed)
    batch = tokens.pad([[1] * n for n in lengths], side)
    hidden = torch.full((*batch.ids.shape, 3), 1e30)  # what padding holds must not matter
    expected = []
    for row, (n, mask) in enumerate(zip(lengths, batch.mask, strict=True)):
        real = torch.randn(n, 3, generator=generator)
        hidden[row, mask] = real
        if n > 1:
            hidden[row, mask.nonzero()[0]] = 1e30  # nor what the first token holds
        expected.append(real[1:].mean(0) if n > 1 else real[0])
    torch.testing.assert_close(probe.pool(hidden, batch), torch.stack(expected))


def test_features_batched_equal_single(lively_lm, prompts):
    layers = list(range(lively_lm.n_layers))
    together = probe.features(lively_lm, prompts, layers, batch_size=4)
    alone = torch.cat([probe.features(lively_lm, [p], layers) for p in prompts], dim=1)
    assert together.shape == (len(layers), len(prompts), 32)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_features_are_what_enters_the_block(lively_lm):
    text, seen = "The cat sat on the mat", {}
    blocks = (
        lively_lm.model.transformer.h
        if lively_lm.model.config.model_type == "gpt2"
        else lively_lm.model.model.layers
    )
    handles = [
        b.register_forward_pre_hook(
            lambda _m, args, kwargs, i=i: seen.__setitem__(i, (args or [kwargs["hidden_states"]])[0]),
            with_kwargs=True,
        )
        for i, b in enumerate(blocks)
    ]
    lively_lm.model(torch.tensor(tokens.encode(lively_lm.tokenizer, [text])))
    for handle in handles:
        handle.remove()
    layers = list(reversed(range(lively_lm.n_layers)))
    for layer, pooled in zip(layers, probe.features(lively_lm, [text], layers), strict=True):
        torch.testing.assert_close(pooled[0], seen[layer][0, 1:].mean(0).detach(), rtol=1e-5, atol=1e-5)


def test_features_cut_long_texts(lively_lm):
    long = "abcdefghij" * 20
    torch.testing.assert_close(
        probe.features(lively_lm, [long], [1]), probe.features(lively_lm, [long[: probe.MAX_TOKENS]], [1])
    )


@pytest.mark.parametrize("offset", [0, 1, -100])
def test_features_refuse_layers(tiny, offset):
    with pytest.raises(ValueError, match="layers must lie in"):
        probe.features(tiny, ["a"], [0, tiny.n_layers + offset])


# --- the probe


def planted(n: int = 600, d: int = 16, shift: float = 2.0):
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(d, generator=generator), dim=0)
    labels = np.arange(n) % 2
    return (
        torch.randn(n, d, generator=generator) * 3
        + 7
        + shift * 3 * torch.outer(torch.tensor(labels) - 0.5, direction),
        labels,
        direction,
    )


def test_probe_recovers_a_planted_direction():
    pooled, labels, direction = planted()
    fitted = probe.fit(pooled, labels, layer=2)
    assert fitted.direction @ direction > 0.95
    assert fitted.direction.norm() == pytest.approx(1, abs=1e-6)
    assert fitted.layer == 2
    assert (((fitted.logits(pooled) > 0).numpy() == labels).mean()) > 0.8


def test_probe_logits_are_those_of_the_regression():
    pooled, labels, _ = planted(100)
    standard = ((pooled - pooled.mean(0)) / probe.scale(pooled)).numpy()
    expected = probe.classifier().fit(standard, labels).decision_function(standard)
    np.testing.assert_allclose(probe.fit(pooled, labels, 0).logits(pooled), expected, rtol=1e-4, atol=1e-4)


def test_probe_does_not_depend_on_units():
    pooled, labels, _ = planted(100)
    one, other = probe.fit(pooled, labels, 0), probe.fit(100 * pooled + 30, labels, 0)
    torch.testing.assert_close(one.direction, other.direction, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(one.logits(pooled), other.logits(100 * pooled + 30), rtol=1e-3, atol=1e-3)


def test_save_and_load(tmp_path):
    saved = Probe(torch.randn(5), torch.tensor(0.25), 3)
    saved.save(tmp_path / "probe.safetensors")
    loaded = Probe.load(tmp_path / "probe.safetensors")
    assert torch.equal(loaded.weight, saved.weight)
    assert torch.equal(loaded.bias, saved.bias)
    assert loaded.layer == 3
    assert isinstance(loaded.layer, int)


# --- directions


def test_toxic_neurons_are_sorted_and_find_a_planted_vector():
    generator = torch.Generator().manual_seed(0)
    vectors, direction = torch.randn(3, 10, 8, generator=generator), torch.randn(8, generator=generator)
    vectors[2, 7], vectors[0, 4] = 0.01 * direction, -5 * direction
    where, cosine = probe.toxic_neurons(direction, vectors)
    assert where[0].tolist() == [2, 7]
    assert cosine[0] == pytest.approx(1, abs=1e-5)
    assert where[-1].tolist() == [0, 4]
    assert (cosine.diff() <= 0).all()
    assert len({tuple(w) for w in where.tolist()}) == 30
    expected = [torch.cosine_similarity(vectors[layer, i], direction, dim=0) for layer, i in where.tolist()]
    torch.testing.assert_close(cosine, torch.stack(expected))


@given(st.integers(3, 12), st.integers(4, 16), st.integers(0, 999))
def test_svd_directions_are_orthonormal_and_ordered(n, d, seed):
    vectors, k = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), 3
    directions = probe.svd_directions(vectors, k)
    torch.testing.assert_close(directions @ directions.T, torch.eye(k), rtol=0, atol=1e-5)
    strength = (vectors @ directions.T).norm(dim=0)
    torch.testing.assert_close(strength, torch.linalg.svdvals(vectors)[:k], rtol=1e-4, atol=1e-4)
    assert (directions @ vectors.mean(0) >= -1e-5).all()


def test_svd_direction_at_right_angles_to_the_mean_has_length_one():
    directions = probe.svd_directions(
        torch.tensor([[1.0, 2.0, 2.0], [-1.0, -2.0, -2.0]]), 1
    )  # their mean is 0: no sign to agree with
    torch.testing.assert_close(directions.abs(), torch.tensor([[1.0, 2.0, 2.0]]) / 3)


def gemma(tokenizer) -> LanguageModel:
    config = GemmaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LanguageModel("tiny-gemma", GemmaForCausalLM(config).eval(), tokenizer, "")


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama", "gemma"])
def test_top_tokens_read_through_the_final_norm(name):
    base = gemma(models.load("tiny-llama").tokenizer) if name == "gemma" else models.load(name)
    lm = dataclasses.replace(base, model=copy.deepcopy(base.model))
    norm = lm.model.transformer.ln_f if name == "tiny-gpt2" else lm.model.model.norm
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(norm.weight, std=2, generator=generator)
    for _ in range(5):
        direction = torch.randn(32, generator=generator)
        direction -= direction.mean()  # the LayerNorm of GPT-2 would remove the mean
        with torch.no_grad():
            expected = lm.model.get_output_embeddings()(norm(direction[None]))[0].topk(6).indices
        tokens_of_it = [lm.tokenizer.decode([i]) for i in expected.tolist()]
        assert probe.top_tokens(lm, direction[None], 6) == [tokens_of_it]


# --- views of a model


def test_neuron_activations_times_value_vectors_are_the_mlp_output(lively_lm):
    gpt2 = lively_lm.model.config.model_type == "gpt2"
    mlps = [b.mlp for b in (lively_lm.model.transformer.h if gpt2 else lively_lm.model.model.layers)]
    sites, inputs, outputs = neuron_sites(lively_lm), {}, []
    assert list(sites) == [f"blocks.{layer}.mlp.hook_post" for layer in range(lively_lm.n_layers)]
    handles = [
        m.register_forward_pre_hook(lambda _m, args, name=name: inputs.__setitem__(name, args[0]))
        for name, m in sites.items()
    ]
    handles += [m.register_forward_hook(lambda _m, _a, out: outputs.append(out)) for m in mlps]
    with torch.no_grad():
        lively_lm.model(torch.tensor([[5, 6, 7, 8, 9]]))
    for handle in handles:
        handle.remove()
    for (name, module), output in zip(sites.items(), outputs, strict=True):
        vectors = module.weight if gpt2 else module.weight.T  # d_mlp × d_model
        bias = module.bias if gpt2 else 0
        assert inputs[name].shape[-1] == vectors.shape[0]
        torch.testing.assert_close(inputs[name] @ vectors + bias, output, rtol=1e-4, atol=1e-4)


def test_neuron_sites_refuse_other_models(tiny_llama):
    model = copy.deepcopy(tiny_llama.model)
    model.config.model_type = "opt"
    with pytest.raises(CompanionError, match="'opt' are not supported"):
        neuron_sites(dataclasses.replace(tiny_llama, model=model))


def test_bridge_is_a_view(tiny):
    lm = dataclasses.replace(lively(tiny), model=lively(tiny).model)
    batch = tokens.pad([[5, 6, 7, 8, 9], [1, 2, 3]], "right")
    with torch.no_grad():
        expected = lm.model(batch.ids, attention_mask=batch.mask.long()).logits
    values = [module.weight.detach().clone() for module in neuron_sites(lm).values()]
    values = values if lm.model.config.model_type == "gpt2" else [v.T for v in values]
    bridge = anatomy.bridge(lm)
    with torch.no_grad():
        logits = bridge(batch.ids, attention_mask=batch.mask.long(), return_type="logits")
    torch.testing.assert_close(logits[batch.mask], expected[batch.mask], rtol=1e-4, atol=1e-4)
    for layer, value in enumerate(values):
        assert torch.equal(bridge.blocks[layer].mlp.W_out, value)


def test_bridge_hook_post_is_the_input_of_neuron_sites(tiny):
    lm = lively(tiny)
    ids, seen = torch.tensor([[5, 6, 7, 8, 9]]), {}
    handles = [
        m.register_forward_pre_hook(lambda _m, args, name=name: seen.__setitem__(name, args[0]))
        for name, m in neuron_sites(lm).items()
    ]
    with torch.no_grad():
        lm.model(ids)
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        _, cache = anatomy.bridge(lm).run_with_cache(ids, names_filter=list(seen))
    for name, activations in seen.items():
        torch.testing.assert_close(cache[name], activations, rtol=1e-4, atol=1e-4)
