"""``companion rewrite``, the adapters' files and the experts of each profile, with tiny models."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import subprocess
import sys
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_marco import adapters as random_adapters
from typer.testing import CliRunner

from companion import cli, profiles
from companion.errors import CompanionError
from companion.lm import models
from companion.marco import command
from companion.marco.denoisers import adapters
from companion.marco.denoisers.protocol import ANTI_EXPERT, BASE, EXPERT, ROLES
from companion.marco.experts import contrast_training, loading
from companion.marco.rewriting import masking, settings
from companion.marco.rewriting.masking import Masking
from companion.marco.rewriting.rewriter import Rewriter
from companion.marco.rewriting.settings import Settings

CHOSEN = {"threshold": 0.03, "alpha_expert": 3.0, "alpha_anti": 1.5, "temperature": 2.5}


@pytest.fixture
def tiny_experts(tiny_llama, tmp_path):
    """A tiny model with three adapters of random weights, which are also saved in a folder."""
    denoiser = random_adapters(tiny_llama, seed=5, scale=0.2)
    adapters.save(denoiser, tmp_path / "adapters")
    return denoiser


@pytest.fixture
def rewriter(tiny_experts):
    return Rewriter(
        tiny_experts, Settings(Masking(1.0, relative=True), alpha_expert=3.0, alpha_anti=1.5, temperature=2.5)
    )


@pytest.fixture
def shipped_folder(tiny_experts, tmp_path, monkeypatch):
    """A folder with the tiny adapters and settings, in the place of ``data/adapters``."""
    folder = tmp_path / "adapters"
    (folder / "settings.json").write_text(
        json.dumps({"rule": "none", "chosen": CHOSEN, "cautious": 0.5}), encoding="utf-8"
    )
    monkeypatch.setattr(adapters, "FOLDER", folder)
    return folder


def test_adapters_come_back_as_saved(tiny_experts, tiny_llama, tmp_path):
    loaded = adapters.load(
        dataclasses.replace(tiny_llama, model=copy.deepcopy(tiny_llama.model)), tmp_path / "adapters"
    )
    source, target = [[70, 71, 72]], [[70]]
    before, after = (next(d.next_logits(ROLES, source, target)) for d in (tiny_experts, loaded))
    assert torch.allclose(before, after, atol=2e-3 * float(before.abs().max()))
    assert (after[1] - after[2]).abs().max() > 1e-3


def test_missing_or_foreign_adapters_are_one_sentence(tiny_experts, tiny_llama, tmp_path):
    with pytest.raises(CompanionError, match="the adapter 'base' is not in"):
        adapters.load(tiny_llama, tmp_path)
    (tmp_path / "adapters" / "expert" / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(CompanionError, match="do not fit the model"):
        adapters.load(
            dataclasses.replace(tiny_llama, model=copy.deepcopy(tiny_llama.model)), tmp_path / "adapters"
        )


def weights(experts) -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach()
        for name, parameter in experts.denoiser.model.named_parameters()
        if "lora_" in name
    }


def test_shipped_experts_have_the_chosen_settings(shipped_folder, tiny_experts):
    found = loading.of(profiles.load("smoke", experts="shipped"))
    usual, cautious = (
        Settings(masking.ours(t), alpha_expert=3.0, alpha_anti=1.5, temperature=2.5) for t in (0.03, 0.5)
    )
    assert (found.settings, found.cautious) == (usual, cautious) == settings.chosen(shipped_folder)
    assert found.folder == shipped_folder
    source, target = [[70, 71, 72]], [[70]]
    before, after = (next(d.next_logits(ROLES, source, target)) for d in (tiny_experts, found.denoiser))
    assert torch.allclose(before, after, atol=2e-3 * float(before.abs().max()))


def test_a_fingerprint_is_that_of_model_and_adapters(shipped_folder):
    first, again = (loading.shipped(models.load("tiny-llama")).fingerprint for _ in range(2))
    assert first == again
    other = dataclasses.replace(models.load("tiny-llama"), fingerprint="another model")
    assert loading.shipped(other).fingerprint != first
    expert, anti = (shipped_folder / role / "adapter_model.safetensors" for role in (EXPERT, ANTI_EXPERT))
    swapped = anti.read_bytes()
    anti.write_bytes(expert.read_bytes())
    expert.write_bytes(swapped)
    assert loading.shipped(models.load("tiny-llama")).fingerprint != first


def test_small_experts_are_the_same_wherever_they_are_trained(tmp_path, monkeypatch):
    profile, found = profiles.load("smoke"), []
    for name in ("one", "two"):
        monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / name))
        found.append(loading.of(profile))
    monkeypatch.setattr(contrast_training, "train_all", None)  # the second time they come from the store
    found.append(loading.small(profile))
    for other in found[1:]:
        assert other.fingerprint == found[0].fingerprint and other.settings == found[0].settings
        assert all(torch.equal(value, weights(other)[name]) for name, value in weights(found[0]).items())
    assert (found[0].folder / "history.json").is_file()
    base, expert, anti = next(found[0].denoiser.next_logits(ROLES, [[70, 71, 72]], [[70]]))
    assert not torch.equal(base, expert) and not torch.equal(expert, anti)


def test_published_experts_play_their_own_roles(monkeypatch, unchecked):
    class Named(torch.nn.Linear):
        """Stands for a model and knows which one."""

        def __init__(self, name: str) -> None:
            super().__init__(1, 1)
            self.name, self.config = name, type("Config", (), {"_commit_hash": f"commit of {name}"})()

    tokenizer = models.load("tiny-llama").tokenizer
    monkeypatch.setattr(loading.AutoModelForSeq2SeqLM, "from_pretrained", Named)
    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", lambda name: tokenizer)
    found = loading.of(profiles.load("smoke", experts="bart"))
    assert {role: model.name.split("-")[-1] for role, model in found.denoiser.models.items()} == {
        BASE: "base",
        EXPERT: "expert",
        ANTI_EXPERT: "antiexpert",
    }
    assert "nontoxic" in found.denoiser.models[EXPERT].name
    assert found.settings == settings.PUBLISHED["microaggressions"] and found.folder is None


def test_experts_that_cannot_be_had_are_one_sentence(monkeypatch):
    def offline(name, *_, **__):
        raise OSError(f"{name} is not here\nand the network is off")

    monkeypatch.setattr(loading.AutoModelForSeq2SeqLM, "from_pretrained", offline)
    for experts in ("bart", "none", ""):
        with pytest.raises(CompanionError, match=r"^[^\n]*\.$"):
            loading.of(profiles.load("smoke", experts=experts))


BREAKS = ["a\u2028b\x0bc", "one\rtwo", "three\x85 four\r"]
LINES = [
    "so it goes, my friend",
    "",
    "?!",
    "😀 ok #tag",
    "日本語の文です",
    "ان هذا",
    " indented  twice ",
    "x" * 300,
    *BREAKS,
]


def test_lines_in_lines_out(rewriter):
    found = list(command.rewritten(rewriter, LINES, as_json=False))
    assert len(found) == len(LINES)
    assert found[1] == "" and found[2] == "?!"
    assert all(len(line.splitlines()) <= 1 for line in found)  # B10: whatever a reader takes for a line end


def test_json_names_words_masks_and_toxicity(rewriter):
    found = list(command.rewritten(rewriter, LINES, as_json=True))
    assert all(len(line.splitlines()) == 1 for line in found)
    rows = [json.loads(line) for line in found]
    assert [row["text"] for row in rows] == LINES
    words = [w["word"] for w in rows[0]["words"]]
    assert words == ["so", "it", "goes", ",", "my", "friend"]
    assert rows[0]["words"][3]["divergence"] is None and rows[0]["words"][0]["divergence"] >= 0
    assert rows[0]["masked"] and set(rows[0]["masked"]) <= set(words)
    assert 0 <= rows[0]["toxicity"]["before"] <= 1


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "nothing to rewrite"),
        (b"\n  \n", "nothing to rewrite"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a\x00b", "zero bytes"),
        (b"x" * (command.LINE_LIMIT + 1), "line 1 has more than"),
    ],
)
def test_bad_input_is_one_sentence(raw, message, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    with pytest.raises(CompanionError, match=message):
        command.read(None, None)


def test_texts_come_from_argument_file_or_standard_input(tmp_path, monkeypatch):
    path = tmp_path / "lines.txt"
    path.write_text("one\n\ntwo\n", encoding="utf-8")
    assert command.read(None, path) == ["one", "", "two"]
    assert command.read("three", None) == ["three"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"four\r\nfive")))
    assert command.read("-", None) == ["four", "five"]
    with pytest.raises(CompanionError, match="not both"):
        command.read("three", path)
    with pytest.raises(CompanionError, match="cannot be read"):
        command.read(None, tmp_path / "none.txt")
    with pytest.raises(CompanionError, match="not UTF-8"):  # B35: what Python makes of an argument in Latin-1
        command.read("caf\udce9", None)


LINE = st.text(st.characters(codec="utf-8", exclude_characters="\n\0\ufeff")).map(
    lambda line: line.rstrip("\r")
)


@given(st.lists(LINE), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_lines_are_read_without_their_ends_and_the_mark_of_utf_8(lines, end, marked, closed):
    """B10: a byte-order mark is no part of the first line, nor a carriage return before a line feed."""
    lines = [*lines, "so it goes"]
    raw = (end.join(lines) + end * closed).encode("utf-8-sig" if marked else "utf-8")
    with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw))):
        assert command.read(None, None) == lines


def test_rewriting_makes_no_noise(embedded_lm):
    """B18: no advice, bars or warnings of libraries, also for a text that is too long for an encoder."""
    code = (
        "from companion.marco import Rewriter, command\n"
        "lines = ['?! ' * 400, 'you idiot']\n"
        "print(*command.rewritten(Rewriter.load(), lines, as_json=True), sep='\\n')"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert found.stderr == "" and len(found.stdout.splitlines()) == 2


def test_the_tool_uses_the_shipped_experts(shipped_folder, monkeypatch):
    monkeypatch.setattr(models, "EMBEDDED", "tiny-llama")
    rewriter, cautious = Rewriter.load(), Rewriter.load(cautious=True)
    assert (rewriter.settings, cautious.settings) == settings.chosen(shipped_folder)
    assert list(rewriter.denoiser.model.peft_config) == list(ROLES)


def test_the_command(rewriter, monkeypatch):
    monkeypatch.setattr(Rewriter, "load", lambda *, cautious: rewriter)
    found = CliRunner().invoke(cli.app, ["rewrite", "so it goes, my friend"])
    assert found.exit_code == 0 and len(found.output.strip().splitlines()) == 1
