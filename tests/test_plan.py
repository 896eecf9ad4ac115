"""Plans: memory against what torch really takes, hours against what was measured, and refusals."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import pytest
from torch.profiler import profile as profiled
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from companion import paths, profiles
from companion.cli import app
from companion.errors import CompanionError
from companion.lm import models, tiny
from companion.mechanism import dpo
from companion.metrics import perplexity
from companion.plan import estimate, shapes, tables, tracing, work
from companion.plan.estimate import GIB, Machine

CPU = Machine(0, 16 * GIB)
TRIPLE = dpo.Triple(list(range(32)), list(range(20)), list(range(20)))
# As their makers give them: the number of parameters in the safetensors files on the Hub.
PUBLISHED = {
    "gpt2-medium": 354_823_168,
    "google/gemma-2-2b": 2_614_341_888,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
}


@pytest.fixture(scope="module")
def middling(tmp_path_factory):
    """A folder with a GPT-2 or Llama whose weights take more than its activations."""

    def save(kind: str) -> str:
        folder = tmp_path_factory.mktemp(kind)
        config = copy.deepcopy(tiny.random_model(f"tiny-{kind}").config)
        wider = {"llama": {"hidden_size": 512, "intermediate_size": 1024}, "gpt2": {"n_embd": 512}}
        for key, value in {"num_hidden_layers": 5, "vocab_size": 4000, **wider[kind]}.items():
            setattr(config, key, value)
        if kind == "llama":
            config.head_dim = 128
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tiny.byte_tokenizer().save_pretrained(folder)
        return str(folder)

    return {kind: save(kind) for kind in ("llama", "gpt2")}


def allocated(do) -> int:
    """The most bytes that torch's own allocator held within a call, beyond those at its begin."""
    with profiled(profile_memory=True) as found:
        do()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    states = sorted((e["ts"], e["args"]) for e in events if e.get("name") == "[memory]")
    before = states[0][1]["Total Allocated"] - states[0][1]["Bytes"]
    return max(state["Total Allocated"] for _, state in states) - before


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_are_counted_as_published(name):
    assert shapes.of(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", [*models.PACKAGED, *tiny.NAMES])
def test_weights_are_those_of_the_loaded_model(name):
    real = sum(parameter.numel() for parameter in models.load(name).model.parameters())
    assert shapes.of(name).parameters == real


def test_an_unknown_shape_is_said():
    with pytest.raises(CompanionError, match="shape of 'no/such-model' is not known"):
        shapes.of("no/such-model")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_memory_of_training_is_what_torch_takes(middling, kind):
    """Weights, gradients, RMSprop's averages and activations: within 15 % of what torch's allocator held."""
    lm = models.load(middling[kind])
    config = dpo.DPOConfig(batch_size=4, steps=3)

    def train() -> None:
        policy = copy.deepcopy(lm.model)
        with tempfile.TemporaryDirectory() as folder:
            dpo.train(policy, [TRIPLE] * 4, config, Path(folder), save_every=9)

    phase = work.Phase("DPO", 0, "learning", 4, trained=True)
    planned = estimate.needed(phase, shapes.of(middling[kind]), CPU)
    weights = 4 * shapes.of(middling[kind]).parameters
    # without the copy that is trained: `copies` counts what stands beside it
    assert allocated(train) == pytest.approx(planned, rel=0.15)
    assert planned > 3 * weights


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_memory_of_reading_is_what_torch_takes(middling, kind):
    lm = models.load(middling[kind])
    windows = [list(range(1, 257))] * 2
    planned = tracing.beside_weights(middling[kind], "reading", 2, 256)
    assert allocated(lambda: perplexity.cross_entropy(lm, windows)) == pytest.approx(planned, rel=0.15)


def test_layers_add_up(middling):
    """What models of two and three layers take says what all layers take."""
    shape = shapes.of(middling["llama"])
    for kind in ("learning", "writing", "steering"):
        whole = tracing._peak(shape.name, shape.layers, kind, 4, 0)
        assert tracing.beside_weights(shape.name, kind, 4) == pytest.approx(whole, rel=0.05), kind


@pytest.mark.parametrize("edition", ["embedded", "gemma"])
def test_memory_of_chapters_is_that_of_the_editions(edition):
    """Within 20 % of a chapter's peak; chapter 8 found much of its work in the store and took less."""
    took = json.loads((paths.DATA / "editions" / f"{edition}.json").read_text(encoding="utf-8"))["chapters"]
    chapters = [name for name in took if name not in ("editing", "scoreboard")]
    for row in estimate.plan(profiles.load(edition), chapters, CPU).chapters:
        assert row.bytes / 2**20 == pytest.approx(took[row.name]["peak_memory_mb"], rel=0.2), row.name


def test_seconds_are_the_measured_ones_and_grow_beyond_them():
    measured = [[1e8, 1.0], [1e9, 2.0]]
    assert [estimate.seconds(measured, size) for size, _ in measured] == pytest.approx([1.0, 2.0])
    assert estimate.seconds(measured, 10**8.5) == pytest.approx(2**0.5)
    assert estimate.seconds(measured, 4e9) == pytest.approx(8.0)
    assert estimate.seconds(measured, 5e7) == pytest.approx(0.5)


def test_more_cards_help_where_work_is_shared():
    shape = shapes.of("mistralai/Mistral-7B-v0.1")
    phase = work.training(profiles.load("paper-mistral"))
    one, eight = (estimate.needed(phase, shape, Machine(n, 80 * GIB)) for n in (1, 8))
    assert eight < 80 * GIB < one
    dealt_out = next(p for p in work.phases("ablation", profiles.load("paper-mistral")) if p.more)
    one, eight = (estimate.needed(dealt_out, shape, Machine(n, 80 * GIB)) for n in (1, 8))
    assert eight - one == 2 * 4 * shape.parameters  # a process beside the chapter's on the first card


def test_what_does_not_fit_is_refused_with_numbers():
    found = estimate.plan(profiles.load("paper-llama3"), tables.CHAPTERS, Machine(1, 80 * GIB))
    assert "dpo" not in found.fitting and {"setting", "probe"} <= set(found.fitting)
    assert "ablation" not in found.fitting  # its DPO model cannot be trained there
    assert found.refusal().count("GiB") >= 3 and "run only setting probe" in found.refusal()
    enough = estimate.plan(profiles.load("paper-llama3"), tables.CHAPTERS, Machine(1, 300 * GIB))
    assert not enough.too_large and enough.hours > 0


def test_a_run_that_cannot_end_is_not_begun(monkeypatch):
    paper = profiles.load("paper-llama3")
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: cls(0, 8 * GIB)))
    with pytest.raises(CompanionError, match="does not fit on a CPU with 8 GiB"):
        estimate.refuse(paper, ["setting"])
    estimate.refuse(profiles.load("embedded"), [*tables.CHAPTERS, "experts", "evaluation"])  # all fit in 8
    estimate.refuse(profiles.load("smoke", model="no/such-model"), ["setting"])  # not known, not refused


def test_the_command():
    said = CliRunner().invoke(app, ["plan", "--gpus", "1", "--memory", "24"])
    assert said.exit_code == 0 and "gpt2-medium" in said.output and "not measured" in said.output
    said = CliRunner().invoke(app, ["plan", "-p", "paper-gemma2", "--gpus", "1", "--memory", "24"])
    assert isinstance(said.exception, CompanionError) and "huggingface.co/google/gemma-2-2b" in said.output


def test_the_page_has_the_table():
    page = (paths.project() / "pages" / "paper_scale.md").read_text(encoding="utf-8")
    assert tables.papers() in page, "put there what `companion plan --papers` prints"
