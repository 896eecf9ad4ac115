"""Projections on the toxic direction, groups and roles of neurons, and the account of a change."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from companion.lm import anatomy, recording
from companion.lm.activations import Sums
from companion.lm.recording import Task
from companion.mechanism import accounting, neurons
from companion.mechanism.neurons import Group, Role, Side
from companion.metrics.estimates import Estimate

SHAPE = (2, 300)


def unit(n: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, generator=torch.Generator().manual_seed(seed)), dim=0)


def perturbed(lm, scale: float):
    """A copy with noise on all weights."""
    model, generator = copy.deepcopy(lm.model), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return dataclasses.replace(lm, model=model, fingerprint=f"{lm.fingerprint}+{scale}")


@pytest.fixture
def change(lively_lm, prompts, tmp_path, monkeypatch) -> tuple[Side, Side, torch.Tensor]:
    """Two models on the same text, and the cosines of the first."""
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))
    other, task, d = perturbed(lively_lm, 0.1), Task(prompts, 6, 12), unit(32)
    text, sums = recording.write(lively_lm, task)
    sides = (
        Side(sums, neurons.projected(lively_lm, d)),
        Side(recording.read(other, task, text), neurons.projected(other, d)),
    )
    return *sides, neurons.cosines(lively_lm, d)


def synthetic(
    seed: int,
    mean: torch.Tensor | float = 0.0,
    blocks: int = 40,
    noise: float = 1.0,
    shape: tuple[int, int] = SHAPE,
) -> Sums:
    """Independent blocks of 10 tokens; ``noise`` is the standard deviation of a block's mean."""
    draws = torch.randn(blocks, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Sums(10 * (mean + noise * draws), torch.full((blocks,), 10), blocks)


def alternating() -> torch.Tensor:
    """Value vectors for and against the direction in turn."""
    return torch.where(torch.arange(SHAPE[0] * SHAPE[1]).view(SHAPE) % 2 == 0, 1.0, -1.0).double()


# --- projections


def check_sum_of_projections(lm, prompts, folder, monkeypatch, new_tokens: int) -> None:
    monkeypatch.setenv("COMPANION_CACHE", str(folder))
    task, d = Task(prompts, new_tokens, 12), unit(lm.model.config.hidden_size)
    text, _ = recording.write(lm, task)
    gpt2 = lm.model.config.model_type == "gpt2"
    mlps = [block.mlp for block in (lm.model.transformer.h if gpt2 else lm.model.model.layers)]
    outputs: list[torch.Tensor] = []
    handles = [
        mlp.register_forward_hook(lambda _m, _a, out: outputs.append(out[:, -new_tokens:].double()))
        for mlp in mlps
    ]
    sums = recording.read(lm, task, text)
    for handle in handles:
        handle.remove()
    order = sorted(range(len(prompts)), key=lambda i: len(lm.tokenizer(prompts[i])["input_ids"][:12]))
    written = torch.stack([out[text.mask[order]].mean(0) for out in outputs])
    bias = torch.stack([mlp.c_proj.bias.detach().double() @ d.double() for mlp in mlps]) if gpt2 else 0.0
    found = Side(sums, neurons.projected(lm, d)).projections.sum(-1) + bias
    assert (
        (found - written @ d.double()).abs() / written.norm(dim=-1)
    ).max() < 1e-5  # of the output's length: the projection may be near 0


def test_projections_add_up_to_the_mlp_output(lively_lm, prompts, tmp_path, monkeypatch):
    check_sum_of_projections(lively_lm, prompts, tmp_path, monkeypatch, 6)


def test_projections_of_the_real_model_add_up(embedded_lm, prompts, tmp_path, monkeypatch):
    check_sum_of_projections(embedded_lm, prompts[:4], tmp_path, monkeypatch, 5)


def test_projected_and_cosines(lively_lm):
    d = unit(32)
    vectors = torch.stack(list(neurons.value_vectors(lively_lm)))
    assert vectors.shape == (lively_lm.n_layers, len(vectors[0]), 32)
    found, cosines = neurons.projected(lively_lm, d), neurons.cosines(lively_lm, d)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, vectors.double() @ d.double())
    torch.testing.assert_close(neurons.projected(lively_lm, -3 * d), -3 * found)  # the length counts here …
    torch.testing.assert_close(neurons.cosines(lively_lm, 3 * d), cosines)  # … and not here
    torch.testing.assert_close(cosines.double() * vectors.double().norm(dim=-1), found, rtol=1e-4, atol=1e-5)
    view = anatomy.bridge(dataclasses.replace(lively_lm, model=copy.deepcopy(lively_lm.model)))
    assert torch.equal(torch.stack([block.mlp.W_out for block in view.blocks]), vectors)


# --- groups and roles


def test_groups_part_the_neurons():
    cosine, mean = (
        torch.tensor([[0.5, 0.5, -0.5, -0.5, 0.0, 0.5]]),
        torch.tensor([[2.0, -2.0, 2.0, -2.0, -1.0, 0.0]]),
    )
    assert [Group(g).name for g in neurons.groups(cosine, mean)[0].tolist()] == [
        "TP",
        "TN",
        "AP",
        "AN",
        "AN",
        "TP",
    ]


# value vector, activation before and after, and the name
CASES = [
    (1, 2, 1, "TP↓"),
    (1, 2, 3, "TP↑"),
    (1, -2, -3, "TN↓"),
    (1, -2, -1, "TN↑"),
    (-1, 2, 3, "AP↓"),
    (-1, 2, 1, "AP↑"),
    (-1, -2, -1, "AN↓"),
    (-1, -2, -3, "AN↑"),
]


@pytest.mark.parametrize(("u", "before", "after", "arrow"), CASES, ids=[case[3] for case in CASES])
def test_roles_and_their_names(u, before, after, arrow):
    u, before, after = (torch.tensor([[float(x)]]) for x in (u, before, after))
    reduction = (before - after) * u
    role = Role(neurons.roles(neurons.groups(u, before), reduction).item())
    assert role.arrow == arrow
    assert role.group.name == arrow[:2] and role.reduces == (reduction > 0).item() == arrow.endswith("↓")


def test_every_role_has_its_names():
    assert [role.arrow for role in Role] == ["TP↓", "TN↓", "AP↓", "AN↓", "TP↑", "TN↑", "AP↑", "AN↑"]
    assert [role.name for role in Role] == [
        f"{role.group.name}_{'REDUCES' if role.reduces else 'RAISES'}" for role in Role
    ]
    assert (
        neurons.roles(torch.tensor([[0]]), torch.tensor([[0.0]])).item() == Role.TP_RAISES
    )  # no change at all


# --- parts and account


def test_parts_add_up(change):
    before, after, _ = change
    parts = neurons.parts(before, after)
    torch.testing.assert_close(
        sum(parts.values()), before.projections - after.projections, rtol=1e-9, atol=1e-12
    )
    assert all(part.abs().max() > 0 for part in parts.values())
    same_values = neurons.parts(before, dataclasses.replace(after, projected=before.projected))
    assert not same_values["value"].any() and not same_values["interaction"].any()
    same_activations = neurons.parts(before, dataclasses.replace(before, projected=after.projected))
    assert not same_activations["activation"].any() and not same_activations["interaction"].any()


REDUCTIONS = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 3), st.integers(1, 9)), elements=st.floats(-8, 8, width=32)
)


@given(REDUCTIONS, st.integers(0, 1000), st.booleans())
def test_account_adds_up(reduction, seed, elsewhere):
    reduction, generator = torch.tensor(reduction), torch.Generator().manual_seed(seed)
    group = torch.randint(0, 4, reduction.shape, generator=generator)
    reduces = torch.rand(reduction.shape, generator=generator) < 0.5 if elsewhere else reduction > 0
    found = accounting.account(reduction, group, reduces if elsewhere else None)
    close = {"rel": 1e-9, "abs": 1e-9}
    for g in Group:
        of = reduction[group == g], reduces[group == g]
        assert found[f"gross_{g.name}"] == pytest.approx(of[0][of[1]].sum().item(), **close)
        assert found[f"raise_{g.name}"] == pytest.approx(-of[0][~of[1]].sum().item(), **close)
        assert found[f"gross_{g.name}"] - found[f"raise_{g.name}"] == pytest.approx(
            found[f"net_{g.name}"], **close
        )
    for name in ("gross", "net"):
        assert sum(found[f"{name}_{g.name}"] for g in Group) == pytest.approx(found[name], **close)
        if abs(found[name]) > 1e-3:
            assert sum(found[f"{name}_share_{g.name}"] for g in Group) == pytest.approx(1)
    assert found["net"] == pytest.approx(reduction.sum().item(), **close)
    assert found["reducing"] == pytest.approx(reduces.double().mean().item())
    if not elsewhere:
        assert all(found[f"{name}_{g.name}"] >= 0 for name in ("gross", "raise") for g in Group)


def test_swapping_the_models_turns_the_sign(change):
    before, after, cosine = change
    forth, back = (
        accounting.shares(before, after, cosine, resamples=5),
        accounting.shares(after, before, cosine, resamples=5),
    )
    assert forth["net"].value == pytest.approx(-back["net"].value)
    assert abs(forth["net"].value) > 0
    raised = sum(back[f"raise_{g.name}"].value for g in Group)
    assert forth["gross"].value == pytest.approx(raised)
    nothing = accounting.shares(before, before, cosine, resamples=5)
    assert nothing["gross"].value == nothing["net"].value == nothing["net"].low == nothing["net"].high == 0


def test_a_longer_direction_scales_sums_and_leaves_shares(change):
    *sides, cosine = change
    scaled = [dataclasses.replace(side, projected=7 * side.projected) for side in sides]
    for estimated in (accounting.shares, accounting.split_half):
        one, other = (estimated(*pair, cosine, resamples=20) for pair in (sides, scaled))
        for name, estimate in one.items():
            factor = 1 if "share" in name or name == "reducing" else 7
            expected = [factor * end for end in (estimate.value, estimate.low, estimate.high)]
            assert [other[name].value, other[name].low, other[name].high] == pytest.approx(
                expected, rel=1e-6, abs=1e-9
            )


def test_other_neurons_can_be_left_out(change):
    before, _, cosine = change
    first_layer = torch.arange(len(cosine))[:, None] < 1
    within = before.within(first_layer)
    assert within.projections[0].equal(before.projections[0]) and not within.projections[1:].any()
    assert within.sums is before.sums


def test_the_text_brings_what_models_show_that_have_not_changed():
    """Weights and text each move every neuron: the text by 2 along the direction, the weights by 1."""
    u = alternating()
    sums = {moved: synthetic(0, -moved * u) for moved in (0.0, 2.0)}
    before, after, before_reads, after_reads = (
        Side(sums[text], u - weights / 100) for text, weights in ((0.0, 0), (2.0, 1), (2.0, 0), (0.0, 1))
    )
    share = accounting.text_share(before, after, before_reads, after_reads)
    net = (before.projections - after.projections).sum()
    by_text = (before.projections - before_reads.projections).sum()
    assert share["text_first"].value == pytest.approx(float(by_text / net))
    by_weights = (before.projections - after_reads.projections).sum()
    assert share["text_last"].value == pytest.approx(1 - float(by_weights / net))
    for estimate in share.values():
        assert estimate.low <= estimate.value <= estimate.high and estimate.n == 40
    same = accounting.text_share(before, before_reads, before_reads, before)
    assert same["text_first"].value == same["text_last"].value == 1  # no weight has changed


def test_intervals_are_apart_if_they_do_not_overlap():
    low, high, wide = (Estimate(*map(float, ends), 9) for ends in ((1, 0, 2), (4, 3, 5), (2, 1, 4)))
    assert accounting.apart(low, high) and accounting.apart(high, low)
    assert not accounting.apart(low, wide) and not accounting.apart(wide, high)


# --- intervals and regression to the mean


def test_shares_of_a_real_effect():
    u = alternating()
    mean = torch.where(
        torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.5, 3.0, -3.0
    ).double()
    before, after = Side(synthetic(1, mean), u), Side(synthetic(2, mean - 0.8 * u), u)
    found = accounting.shares(before, after, u)
    for estimate in found.values():
        assert estimate.low <= estimate.value <= estimate.high and estimate.n == 40
    assert found["net"].low < 0.8 * u.numel() < found["net"].high
    assert found["net"].high - found["net"].low < 0.1 * found["net"].value
    assert found["reducing"].value > 0.99
    truth = torch.bincount(neurons.groups(u, mean).flatten()) / u.numel()
    for g in Group:
        assert found[f"net_share_{g.name}"].value == pytest.approx(truth[g].item(), abs=0.03)
    halves = accounting.split_half(before, after, u)
    assert halves["gross"].value == pytest.approx(0.8 * u.numel(), rel=0.05) and halves["gross"].low > 0


@pytest.mark.parametrize("seed", [0, 10, 20])
def test_noise_has_a_gross_reduction_and_halves_take_it_away(seed):
    u = alternating()
    before, after = Side(synthetic(seed), u), Side(synthetic(seed + 1), u)
    naive, halves = accounting.shares(before, after, u), accounting.split_half(before, after, u)
    assert naive["gross"].value > 20 and naive["gross"].low > 20  # a reduction, if one were to believe it
    for name in ("gross", "net"):
        assert halves[name].low < 0 < halves[name].high
    assert abs(halves["gross"].value) < 0.2 * naive["gross"].value
    assert halves["reducing"].value == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("seed", [0, 10, 20])
def test_other_prompts_regress_to_the_mean(seed):
    found = accounting.other_prompts(Side(synthetic(seed), alternating()), alternating())
    towards, away = (
        [found[f"gross_share_{name}"] for name in names] for names in (("TP", "AN"), ("TN", "AP"))
    )
    assert min(e.value for e in towards) > 0.3 > 0.2 > max(e.value for e in away)
    assert min(e.low for e in towards) > max(e.high for e in away)
    assert found["net"].value == pytest.approx(0, abs=1e-9)  # each half is once before and once after


def test_a_share_beyond_other_prompts_is_no_regression_to_the_mean():
    u = alternating()
    before, noise = Side(synthetic(0), u), Side(synthetic(1), u)
    nothing = accounting.beyond_other_prompts(before, noise, u)["gross_share_TP"]
    assert (
        accounting.shares(before, noise, u)["gross_share_TP"].low > 0.3
    )  # a share, if one were to believe it
    assert nothing.low < 0 < nothing.high and abs(nothing.value) < 0.1
    toxic = Side(synthetic(1, -2.0 * (u > 0)), u)  # all toxic neurons fall
    assert accounting.beyond_other_prompts(before, toxic, u)["gross_share_TP"].low > 0.05


def test_intervals_cover_what_is_true(monkeypatch):
    """Of 400 simulated studies each with 200 resamples 94 and 93 % cover it; here are fewer, to be quick."""
    monkeypatch.setattr(accounting, "HALVES", 4)
    shape, moved = (1, 2), 0.05
    u = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    covered: dict[str, list[bool]] = {"shares": [], "split_half": []}
    for study in range(60):
        sums = (synthetic(2 * study + k, 1.0 - k * moved * u, shape=shape) for k in (0, 1))
        before, after = (Side(one, u) for one in sums)
        for name, hits in covered.items():
            found = getattr(accounting, name)(before, after, u, seed=study, resamples=80)["net"]
            hits.append(found.low <= moved * u.numel() <= found.high)
    for name, hits in covered.items():
        assert np.mean(hits) >= 0.83, name  # three standard errors of 60 below 93 %


@pytest.mark.parametrize("blocks", [2, 3, 7])
def test_few_blocks_are_enough(blocks):
    side = Side(synthetic(0, blocks=blocks), alternating())
    for found in (
        accounting.split_half(side, side, alternating(), resamples=5),
        accounting.other_prompts(side, alternating(), resamples=5),
    ):
        assert all(
            np.isfinite([found[name].value, found[name].low, found[name].high]).all()
            for name in ("gross", "net", "gross_TP")
        )


def test_the_seed_decides():
    u = alternating()
    before, after = Side(synthetic(0, 1.0), u), Side(synthetic(1, 1.1), u)
    for run in (
        lambda seed: accounting.shares(before, after, u, seed=seed, resamples=20),
        lambda seed: accounting.split_half(before, after, u, seed=seed, resamples=20),
        lambda seed: accounting.other_prompts(before, u, seed=seed, resamples=20),
    ):
        state = torch.get_rng_state()
        assert run(0) == run(0) != run(1)
        assert torch.equal(torch.get_rng_state(), state)
    table = accounting.table(before, after, u, resamples=20)
    assert table.equals(accounting.table(before, after, u, resamples=20))
    other = accounting.table(before, after, u, seed=1, resamples=20)
    assert table.reduction.equals(other.reduction) and not table.low.equals(other.low)


# --- table


def test_table(change):
    before, after, cosine = change
    table = accounting.table(before, after, cosine)
    layers, width = cosine.shape
    assert len(table) == layers * width
    assert (table.layer * width + table["index"] == np.arange(len(table))).all()
    assert not table.isna().any().any()
    assert table.reduction.sum() == pytest.approx(
        accounting.shares(before, after, cosine, resamples=2)["net"].value
    )
    np.testing.assert_allclose(
        table.reduction, table.activation + table.value + table.interaction, rtol=1e-6, atol=1e-9
    )
    np.testing.assert_allclose(table.reduction, table.p_before - table.p_after, rtol=1e-9, atol=1e-12)
    assert (table.low <= table.high).all()
    row = table.iloc[width + 3]  # layer 1, neuron 3
    assert (
        (row.layer, row["index"]) == (1, 3)
        and row.before == before.sums.mean[1, 3].item()
        and row.p_after == after.projections[1, 3].item()
    )
    assert ((table.cosine > 0) == table.group.str.startswith("T")).all()
    assert ((table.before < 0) == table.group.str.endswith("N")).all()
    assert (table.role == table.group + np.where(table.reduction > 0, "↓", "↑")).all()
    found = accounting.shares(before, after, cosine, resamples=2)
    for g in Group:
        assert table.reduction[table.role == f"{g.name}↓"].sum() == pytest.approx(
            found[f"gross_{g.name}"].value
        )


def test_intervals_of_the_table_hold_the_truth_nine_times_in_ten():
    u = alternating()
    table = accounting.table(Side(synthetic(3, 1.0), u), Side(synthetic(4, 1.0 - 0.5 * u), u), u)
    inside = ((table.low < 0.5) & (table.high > 0.5)).mean()
    assert 0.9 < inside < 0.99
