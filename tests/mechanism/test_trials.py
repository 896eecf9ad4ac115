"""Studies, exams and the papers' methods on a tiny model: what is chosen, what is held against it, what is
kept."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from companion import profiles
from companion.book import published_values
from companion.data import by_profile
from companion.lm import anatomy, drafts, generation, processes, rows
from companion.mechanism import costs, frontier, methods, neurons, selection, stream, study
from companion.mechanism.exam import BATCH_TOKENS, Outcome, examine
from companion.mechanism.interventions import CONTEXT, AblateValues, Positions, applied
from companion.mechanism.methods import (
    ABLATED,
    SIZES,
    ablation_controls,
    ablations,
    edits,
    patches,
    shifts,
    subtractions,
    unalignments,
)
from companion.mechanism.neurons import Group
from companion.mechanism.selection import (
    CIVIL_WORDS,
    TOXIC_WORDS,
    edited,
    embedding_direction,
    increments,
    matched,
    patch_sets,
    shift,
    top,
    turned,
)
from companion.mechanism.trials import BASE, DPO, Sweep, Trial, control
from companion.metrics import perplexity


@pytest.fixture(scope="module")
def s() -> study.Study:
    return study.begin(profiles.load("smoke", complete=True))


@pytest.fixture(scope="module")
def sweep(s) -> Sweep:
    return Sweep.of(s)


def test_top_takes_the_highest(s):
    chosen = top(s.cosine, 10)
    assert chosen.sum() == 10 and s.cosine[chosen].min() >= s.cosine[~chosen].max()
    among = s.base.mean > 0
    positive = top(s.cosine, 10, among)
    assert positive.sum() == 10 and not (positive & ~among).any()
    assert top(s.cosine, 10**6, among).equal(among)  # all there are


def test_matched_neurons_are_others_of_the_same_norms(s, monkeypatch):
    vectors = torch.randn(4, 500, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(neurons, "value_vectors", lambda _lm: iter(vectors))
    norm = vectors.norm(dim=-1)
    chosen = top(
        norm + torch.rand(norm.shape, generator=torch.Generator().manual_seed(1)), 150
    )  # long ones: a random set would be shorter
    [found] = matched(s, chosen, 1)
    assert not (found & chosen).any()
    assert 50 <= found.sum() <= 150  # the longest have few counterparts
    assert norm[found].mean() > norm.mean() + norm.std()
    some = torch.rand(norm.shape, generator=torch.Generator().manual_seed(2)) < 0.1
    found, other = matched(s, some, 2)
    assert found.sum() == some.sum() and norm[found].mean() == pytest.approx(
        norm[some].mean().item(), rel=0.01
    )
    assert matched(s, some, 3)[0].equal(found) and not other.equal(found)
    among = torch.rand(norm.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    assert not (matched(s, some, 4, among) & ~among).any()


def test_patch_sets_fit_together(s):
    sets = {label: chosen for label, chosen in patch_sets(s).values()}
    down = [sets[f"{g.name}↓"] for g in Group]
    assert torch.stack(down).sum(0).max() == 1  # no neuron twice
    assert torch.stack(down).any(0).equal(sets["all ↓"]) and sets["all ↓"].equal(s.reduction > 0)
    assert (sets["TP↓ + AN↓"] | sets["TN↓ + AP↓"]).equal(sets["all ↓"])
    assert sets["all neurons"].all()
    assert not (sets["dampened toxic (TP−)"] & ~s.members(Group.TP)).any()


@pytest.mark.parametrize("random", [False, True])
def test_editing_takes_its_share_of_every_group(s, random):
    patch = edited(s, s.cosine, 0.1, 0.5, random=random)
    draws = patch.neurons if random else patch.neurons[None]
    assert len(draws) == (s.profile.control_draws if random else 1)
    factor = {Group.TP: 1 - 0.1, Group.AN: 1 - 0.1, Group.AP: 1 + 0.1, Group.TN: 1 + 0.1}
    for g in Group:
        members = s.members(g)
        assert {int((one & members).sum()) for one in draws} == {round(0.5 * int(members.sum()))}
        assert torch.equal(patch.values[members], s.base.mean[members] * factor[g])  # to the last bit
        inside, outside = s.cosine[draws[0] & members].abs(), s.cosine[members & ~draws[0]].abs()
        if not random:
            assert (
                inside.min() >= outside.max() if g in (Group.TP, Group.AN) else inside.max() <= outside.min()
            )
    assert not random or not draws[0].equal(draws[1])
    clamp = edited(s, s.cosine, 0.0, 0.5)
    assert clamp.values.equal(s.base.mean)


@pytest.fixture(scope="module")
def every(s, sweep) -> list[Trial]:
    windows = perplexity.windows(s.base.lm, by_profile.prose(s.profile, "dev"), 32, 2)
    at = (1.0, 0.25, 0.7)  # the last is no cost of the papers: as if it were the DPO model's own
    subtracted = [t for cost in at for t in subtractions(s, sweep.base.view, windows, cost)]
    made = [*ablations(s), *ablation_controls(s), *patches(s), *edits(s), *unalignments(s), *shifts(s)]
    return [BASE, DPO, *subtracted, *made]


def test_every_trial_has_a_key_and_a_label_of_its_own(every):
    assert len({t.key for t in every}) == len({t.label for t in every}) == len(every)
    assert all(t.key.isidentifier() or "." in t.key for t in every)
    assert all(t.on_tuned == t.label.startswith("DPO") for t in every)


def test_controls_are_held_against_trials_that_exist(every):
    by_key = {t.key: t for t in every}
    for t in every:
        for key in t.control_of:
            assert by_key[key].on_tuned == t.on_tuned and key != t.key
            assert not by_key[key].control_of
    random = [t for t in every if any(by_key[key].family == t.family for key in t.control_of)]
    assert all("random" in t.key for t in random)
    held = {key for t in random for key in t.control_of}
    assert {f"ablate_{kind}_{n}" for kind in ABLATED for n in SIZES} <= held
    assert {t.key for t in every if t.published} - held == {"base", "dpo"}


def test_what_is_published_is_a_row_of_the_table(every):
    rows = published_values.rows(setting="gpt2-medium")
    for t in filter(lambda t: t.published, every):
        intervention, source = t.published
        here = rows[(rows.intervention == intervention) & (rows.source == source)]
        assert set(here.metric) == {"toxicity", "perplexity", "f1"}, t.key
    assert sum(t.published is not None for t in every) == 16


def test_a_control_is_the_same_done_to_others():
    def outcome(toxicity: float) -> Outcome:
        return Outcome(
            ["a"], np.array([toxicity]), np.array([toxicity]), np.array([0.5]), np.array([1.0]), np.array([3])
        )

    trial, of = Trial("one", "One", "ablate"), {"control_of": ("one", "two")}
    random, clamp = Trial("random", "random", "ablate", **of), Trial("clamp", "clamp", "clamp", **of)
    outcomes = {"random": outcome(0.2), "clamp": outcome(0.9)}
    assert control(trial, [trial, clamp, random], outcomes) is outcomes["random"]
    assert control(clamp, [trial, random], outcomes) is None


def test_a_calibrated_subtraction_costs_what_it_may(embedded_lm):
    """On the real model: a random one may even profit from a subtraction."""
    lm = dataclasses.replace(embedded_lm, model=copy.deepcopy(embedded_lm.model))
    view, windows = (
        anatomy.bridge(lm),
        perplexity.windows(lm, by_profile.prose(profiles.load("embedded"), "dev"), 48, 3),
    )
    direction = torch.randn(lm.model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    step = costs.calibrated(lm, view, direction / direction.norm(), windows, 0.1)
    plain, count = perplexity.cross_entropy(lm, windows)
    with applied(view, step, positions=Positions.ALL):
        nll, _ = perplexity.cross_entropy(lm, windows)
    assert np.exp((nll - plain).sum() / count.sum()) - 1 == pytest.approx(0.1, rel=0.1)


def test_its_own_cost_is_what_the_dpo_model_adds_on_these_windows(s, sweep):
    windows = perplexity.windows(s.base.lm, by_profile.prose(s.profile, "dev"), 32, 4)
    before, after = (perplexity.perplexity(this.lm, windows).value for this in (s.base, s.tuned))
    found = costs.own_cost(s, windows)
    assert found == pytest.approx(max(0.0, (after / before - 1) / costs.PUBLISHED_RISE), rel=1e-4)
    backwards = dataclasses.replace(s, base=s.tuned, tuned=s.base)
    assert sorted([found > 0, costs.own_cost(backwards, windows) > 0]) == [False, True]
    nothing = subtractions(s, sweep.base.view, windows, 0.0)
    assert [t.key for t in nothing] == ["subtract_w_own", "subtract_random_own"]
    assert all(t.given[0].scale == 0 for t in nothing)


def test_the_setting_of_an_edit_is_chosen_on_dev_within_its_budget(s, sweep):
    on_dev = frontier.on_dev(sweep)
    asked = set(on_dev.base.exam.task.prompts)
    assert asked and not asked & set(by_profile.prompts(s.profile).prompt)
    grid = frontier.grid(s)
    outcomes = on_dev.run([BASE, *grid.values()])
    of = {setting: outcomes[t.key] for setting, t in grid.items()}
    rises = {k: o.summary(outcomes["base"])["perplexity_rise"].value for k, o in of.items()}
    budget = sorted(rises.values())[len(rises) // 2]
    best = frontier.chosen(of, outcomes["base"], budget)
    within = [k for k in rises if rises[k] <= budget]
    assert best in within and of[best].toxicity.mean() == min(of[k].toxicity.mean() for k in within)
    assert frontier.chosen(of, outcomes["base"], min(rises.values()) - 1e-6) is None
    clamp, random = frontier.controls(s, *best)
    for control_trial in (clamp, random):
        assert control_trial.control_of == (grid[best].key,)
        assert int(control_trial.given[0].neurons.sum(-1).sum(-1).flatten()[0]) == int(
            grid[best].given[0].neurons.sum()
        )


def test_an_exam_without_interventions_is_the_plain_model(s, sweep):
    outcome = examine(sweep.base, s.scorers)
    exam = sweep.base.exam
    settings = {"new_tokens": exam.task.new_tokens, "max_prompt_tokens": exam.task.max_prompt_tokens}
    assert outcome.texts == generation.generate(s.base.lm, exam.task.prompts, **settings).texts
    assert outcome.nll == pytest.approx(
        perplexity.cross_entropy(s.base.lm, exam.windows, context=CONTEXT)[0], rel=1e-5
    )
    assert len(outcome.f1) == len(exam.references) == s.profile.sweep_sentences
    summary = outcome.summary(outcome)
    assert summary["drop"].value == summary["perplexity_rise"].value == summary["f1_change"].value == 0


def test_outcomes_are_kept_by_intervention_and_positions(s, sweep, monkeypatch):
    some = top(s.cosine, 40)
    asked = [
        ((AblateValues(some),), {}),
        ((AblateValues(~some),), {}),
        ((AblateValues(some),), {"reading": Positions.FIRST}),
    ]
    first = [examine(sweep.base, s.scorers, *given, **where) for given, where in asked]
    assert len({tuple(o.nll) for o in first}) == 3
    for module, name in ((drafts.Drafts, "variant"), (perplexity, "cross_entropy")):
        monkeypatch.setattr(module, name, lambda *_a, **_k: pytest.fail("not from the store"))
    again = [examine(sweep.base, s.scorers, *given, **where) for given, where in asked]
    assert [o.texts for o in again] == [o.texts for o in first] and all(
        (a.nll == b.nll).all() for a, b in zip(again, first, strict=True)
    )


def test_trials_run_on_the_model_they_name(s, sweep):
    outcomes = sweep.run([BASE, DPO])
    assert (outcomes["base"].nll != outcomes["dpo"].nll).any()


def test_a_sweep_that_is_dealt_out_is_the_same(tmp_path, monkeypatch):
    """A process that dies leaves its trials to the caller."""
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))
    begun = study.begin(profiles.load("smoke"))
    alone = Sweep.of(begun)
    chosen = [BASE, DPO, *ablations(begun)[:3]]
    monkeypatch.setenv(processes.PROCESSES, "2")
    dealt = []
    spread = processes.spread

    def losing_the_second(begin, given, pieces):
        assert spread(begin, given, pieces[:3]) == []
        dealt.extend(tmp_path.glob("written/*/made.json"))
        return ["process 2 of 2 ended"]

    monkeypatch.setattr(processes, "spread", losing_the_second)
    with pytest.warns(UserWarning, match="process 2 of 2 ended"):
        shared = alone.run(chosen)
    assert len(dealt) == 3 and list(shared) == [trial.key for trial in chosen]
    monkeypatch.setattr("companion.store.kept", lambda kind, inputs, make: make())
    for trial in chosen:
        again = alone.examined(trial)
        assert shared[trial.key].texts == again.texts
        np.testing.assert_array_equal(shared[trial.key].nll, again.nll)
        np.testing.assert_array_equal(shared[trial.key].toxicity, again.toxicity)


def test_all_prompts_are_the_sweep_s_and_the_rest_each_with_its_own_draw(s, sweep):
    """In two parts, the texts are those of one run over all prompts in this order."""
    given = next(t for t in ablation_controls(s) if t.key == "random_toxic_2000")
    assert len(given.given[0].neurons) > 1  # draws: which one a prompt has goes by its number
    few, exam = sweep.run([given])[given.key], sweep.base.exam
    every = sweep.run_on_more_prompts([given])[given.key]
    prompts = by_profile.prompts(s.profile).prompt.tolist()
    order = [*exam.task.prompts, *exam.rest(s.profile).task.prompts]
    assert sorted(order) == sorted(prompts) and len(every.texts) == len(prompts) > len(few.texts)
    assert every.texts[: len(few.texts)] == few.texts and np.array_equal(every.nll, few.nll)
    assert np.array_equal(every.toxicity[: len(few.texts)], few.toxicity)
    task = dataclasses.replace(exam.task, prompts=order)
    whole = dataclasses.replace(exam, task=task, openings=[], references=[])
    at_once = dataclasses.replace(sweep.base, exam=whole, own=None)
    assert examine(at_once, s.scorers, *given.given).texts == every.texts


def test_a_profile_that_is_not_complete_has_the_prompts_of_its_sweep(s, sweep):
    thin = dataclasses.replace(sweep, study=dataclasses.replace(s, profile=profiles.load("smoke")))
    assert s.profile.complete and not thin.study.profile.complete
    assert thin.run_on_more_prompts([BASE])["base"].texts == sweep.run([BASE])["base"].texts


def test_embedding_direction_points_from_civil_to_toxic(s):
    unembedding = s.base.lm.model.get_output_embeddings().weight.detach()
    direction = embedding_direction(s)
    assert direction.shape == s.direction.shape

    def along(words):
        ids = [i for row in s.base.lm.tokenizer(list(words))["input_ids"] for i in row]
        return float((unembedding[ids] @ direction).mean())

    assert along(TOXIC_WORDS) > along(CIVIL_WORDS)


def test_increments_add_up_to_the_shift(s):
    moved = shift(s)
    assert moved.shape == (s.base.lm.n_layers, len(s.direction)) and moved.any(-1).all()
    torch.testing.assert_close(increments(moved).cumsum(0), moved)
    by_key = {t.key: t for t in shifts(s)}
    probed = s.base.lm.n_layers - 2
    added = torch.stack([-i.scale * i.direction for i in by_key["shift"].given if i.layer <= probed]).sum(0)
    torch.testing.assert_close(added, moved[probed])
    [alone] = by_key["shift_probe"].given
    assert alone.layer == probed and alone.scale == -1 and alone.direction.equal(moved[probed])
    for plus, minus in zip(by_key["shift"].given, by_key["unshift"].given, strict=True):
        assert plus.direction.equal(minus.direction) and plus.layer == minus.layer and minus.scale == 1


def test_the_shift_is_the_difference_of_mean_streams(s):
    """Against hidden states as transformers reports them, token by token."""
    lm, text = s.base.lm, s.base.text
    found, layer = stream.read(lm, s.task, text), lm.n_layers - 2
    asked = lm.tokenizer(list(s.task.prompts), truncation=True, max_length=s.task.max_prompt_tokens)
    summed = torch.zeros(len(s.direction), dtype=torch.float64)
    for row, ids, kept in zip(asked["input_ids"], text.ids, text.mask, strict=True):
        whole = torch.tensor([[*row, *ids[kept].tolist()]])
        with torch.inference_mode():
            hidden = lm.model(whole, output_hidden_states=True).hidden_states[layer + 1][0]
        summed += hidden[len(row) - 1 : -1].double().sum(0)
    assert found.count.sum() == text.mask.sum()
    torch.testing.assert_close(found.mean[layer], summed / text.mask.sum(), rtol=1e-4, atol=1e-6)


def test_random_shifts_have_the_same_norms_and_angles(s):
    vectors = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    draws = turned(vectors, 4, 0)
    assert draws.shape == (4, 5, 32) and not draws[0].allclose(draws[1])
    torch.testing.assert_close(draws @ draws.mT, (vectors @ vectors.T).expand(4, 5, 5), rtol=1e-4, atol=1e-4)
    assert not turned(torch.zeros(3, 32), 2, 0).any()
    assert not turned(vectors, 2, 0).equal(turned(vectors, 2, 1))
    by_key = {t.key: t for t in shifts(s)}
    for t in filter(lambda t: t.control_of, by_key.values()):
        for one, drawn in zip(by_key[t.control_of[0]].given, t.given, strict=True):
            norms = drawn.direction.norm(dim=-1)
            assert len(norms) == s.profile.control_draws
            torch.testing.assert_close(norms, one.direction.norm().expand_as(norms), rtol=1e-3, atol=1e-7)
            assert (drawn.layer, drawn.scale) == (one.layer, one.scale)


def test_a_shift_by_nothing_changes_nothing(s, sweep, monkeypatch):
    plain, ids = s.base.lm.model, torch.tensor([[72, 101, 108, 108, 111]])
    with torch.inference_mode():
        before = plain(ids).logits
        for t in shifts(s):
            if not t.control_of and not t.on_tuned:
                with applied(sweep.base.view, *t.given, positions=Positions.ALL):
                    assert not torch.equal(plain(ids).logits, before)
        monkeypatch.setattr(methods, "shift", lambda study: torch.zeros_like(selection.shift(study)))
        for t in shifts(s):
            if not t.on_tuned:
                with applied(sweep.base.view, *t.given, positions=Positions.ALL), rows.passing([0]):
                    assert torch.equal(plain(ids).logits, before)


def test_spectrum_counts_directions():
    one = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    assert stream.spectrum(one * torch.arange(1, 5)[:, None])[0] == pytest.approx(1)
    torch.testing.assert_close(stream.spectrum(torch.eye(4, 8)), torch.full((4,), 0.25).double())


def test_batches_of_windows_fit_the_memory():
    assert BATCH_TOKENS * 49152 * 4 <= 250e6
