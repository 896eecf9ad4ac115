"""Drafts change no token: what a variant writes equals ordinary decoding under the same hooks."""

from __future__ import annotations

import contextlib
import copy
import dataclasses

import pytest
import torch

from companion.errors import CompanionError
from companion.lm import drafts as module
from companion.lm import models
from companion.lm.anatomy import bridge, neuron_sites
from companion.lm.drafts import Drafts
from companion.lm.generation import generate
from companion.mechanism.interventions import AblateValues, Patch, Positions, Subtract, applied
from companion.metrics.perplexity import cross_entropy

NEW = 13


def changed(view, share: float):
    """Interventions on a share of all neurons: one that ablates them and one that sets them to a value."""
    shape = (view.cfg.n_layers, view.cfg.d_mlp)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(shape, generator=generator) < share
    return AblateValues(chosen), Patch(chosen, torch.randn(shape, generator=generator))


def with_early_ends(lm, prompts, monkeypatch) -> None:
    """Let tokens of the middle of two drafts end a text."""
    plain = generate(lm, prompts, new_tokens=NEW)
    monkeypatch.setattr(
        lm.model.generation_config, "eos_token_id", [0, int(plain.ids[0, 4]), int(plain.ids[2, 6])]
    )


@pytest.fixture(scope="module")
def bridged(lively_lm):
    """A copy, and its view through TransformerLens."""
    lm = dataclasses.replace(lively_lm, model=copy.deepcopy(lively_lm.model))
    return lm, bridge(lm)


@pytest.fixture(params=[False, True], ids=["full", "early ends"])
def both(request, bridged, prompts, monkeypatch):
    if request.param:
        with_early_ends(bridged[0], prompts, monkeypatch)
    return bridged


@pytest.mark.parametrize(("share", "chunk"), [(0.01, 3), (0.2, 1), (0.2, 40), (1.0, 5)])
def test_variants_write_what_ordinary_decoding_writes(both, prompts, share, chunk, monkeypatch):
    lm, view = both
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "READ", 2)  # so that a batch has several reads
    drafts = Drafts(lm, prompts, new_tokens=NEW, max_prompt_tokens=9, batch_size=4)
    assert len(drafts.batches[0]) == 2
    ablate, patch = changed(view, share)
    for given, whole in ((ablate, True), (patch, True), (patch, False)):
        where = Positions.ALL if whole else Positions.GENERATED
        with applied(view, given, positions=where):
            right = generate(lm, prompts, new_tokens=NEW, max_prompt_tokens=9, batch_size=4)
        found = drafts.variant(applied(view, given, positions=Positions.ALL), whole=whole)
        assert torch.equal(found.ids, right.ids) and torch.equal(found.mask, right.mask)
        assert found.texts == right.texts
    assert share < 0.2 or found.texts != drafts.plain.texts  # it did something
    for whole in (True, False):  # and what it did is gone
        again = drafts.variant(whole=whole)
        assert torch.equal(again.ids, drafts.plain.ids) and torch.equal(again.mask, drafts.plain.mask)


@pytest.mark.parametrize("kind", ["ablate", "patch", "subtract"])
def test_each_prompt_has_its_own_draw(both, prompts, kind):
    """A batch with a mask for each prompt is every prompt alone with its mask; draws are counted round."""
    lm, view = both
    shape = (3, view.cfg.n_layers, view.cfg.d_mlp)
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3
    values = torch.randn(shape[1:], generator=torch.Generator().manual_seed(2))

    directions = torch.randn(3, view.cfg.d_model, generator=torch.Generator().manual_seed(3))

    def given(draw):
        if kind == "subtract":
            return Subtract(directions[draw], 2.0, 0)
        return AblateValues(drawn[draw]) if kind == "ablate" else Patch(drawn[draw], values)

    size = {"new_tokens": NEW, "max_prompt_tokens": 9}
    drafts = Drafts(lm, prompts, **size, batch_size=4)
    windows = [[5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15], [16, 17, 18]]
    together = drafts.variant(applied(view, given(slice(None)), positions=Positions.ALL), whole=True)
    with applied(view, given(slice(None)), positions=Positions.ALL):
        nll, _ = cross_entropy(lm, windows, batch_size=3)
    for draw in range(3):
        with applied(view, given(draw), positions=Positions.ALL):
            alone = generate(lm, prompts, **size)
            losses, _ = cross_entropy(lm, windows)
        mine = [i for i in range(len(prompts)) if i % 3 == draw]
        assert torch.equal(together.ids[mine], alone.ids[mine])
        assert nll[draw::3] == pytest.approx(losses[draw::3], rel=1e-5)
    with (
        applied(view, given(slice(None)), positions=Positions.ALL),
        pytest.raises(CompanionError, match="which prompt a row is"),
    ):
        generate(lm, prompts, **size)


def test_a_model_that_agrees_reads_each_draft_token_once(lively_lm, prompts):
    drafts = Drafts(lively_lm, prompts, new_tokens=NEW, max_prompt_tokens=9)
    drafts.variant(whole=False)  # reads the prompts, once
    read = []
    site = next(iter(neuron_sites(lively_lm).values()))
    handle = site.register_forward_hook(lambda _m, args, _out: read.append(args[0].shape[1]))
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(handle.remove)
        drafts.variant(whole=False)
    assert sum(read) == NEW and len(read) == -(-NEW // module.CHUNK)


def test_another_text_is_a_slower_draft(both, prompts):
    """What is handed over as the plain text decides how long it takes, never what is written."""
    lm, view = both
    size = {"new_tokens": NEW, "max_prompt_tokens": 9}
    right = Drafts(lm, prompts, **size)
    wrong = Drafts(lm, prompts, **size, plain=dataclasses.replace(right.plain, ids=right.plain.ids.flip(0)))
    _, patch = changed(view, 0.2)
    for whole in (True, False):
        one, other = (
            drafts.variant(applied(view, patch, positions=Positions.ALL), whole=whole)
            for drafts in (right, wrong)
        )
        assert torch.equal(one.ids, other.ids) and torch.equal(one.mask, other.mask)


def test_no_prompts(lively_lm):
    drafts = Drafts(lively_lm, [], new_tokens=NEW, max_prompt_tokens=9)
    assert drafts.variant(whole=True).texts == drafts.variant(whole=False).texts == []


@pytest.mark.parametrize("name", [models.EMBEDDED, models.JUDGE])
def test_real_models_write_the_same(name, request, prompts):
    real = request.getfixturevalue("embedded_lm") if name == models.EMBEDDED else models.load(name)
    lm = dataclasses.replace(real, model=copy.deepcopy(real.model))
    view = bridge(lm)
    prompts, settings = prompts[:3], {"new_tokens": 6, "max_prompt_tokens": 9}
    drafts = Drafts(lm, prompts, **settings)
    assert drafts.plain.texts == generate(real, prompts, **settings).texts
    ablate, _ = changed(view, 0.01)
    for whole in (True, False):
        with applied(view, ablate, positions=Positions.ALL if whole else Positions.GENERATED):
            right = generate(lm, prompts, **settings)
        change = applied(view, ablate, positions=Positions.ALL)
        assert drafts.variant(change, whole=whole).texts == right.texts
    assert right.texts != drafts.plain.texts  # it did something
