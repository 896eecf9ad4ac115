"""``companion rewrite`` and the adapters' files, with a tiny model."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import sys

import pytest
import torch
from typer.testing import CliRunner

from companion import cli
from companion.errors import CompanionError
from companion.marco import adapters, tool, training
from companion.marco.denoiser import ANTI_EXPERT, BASE, EXPERT, ROLES
from companion.marco.masking import Masking
from companion.marco.rewriting import EMBEDDED, Rewriter


@pytest.fixture
def tiny_experts(tiny_llama, tmp_path):
    """A tiny model with three adapters of random weights, which are also saved in a folder."""
    denoiser = training.attach(dataclasses.replace(tiny_llama, model=copy.deepcopy(tiny_llama.model)), training.AdapterConfig(rank=2, alpha=2))
    for role in (EXPERT, ANTI_EXPERT):
        denoiser.model.add_adapter(role, denoiser.model.peft_config[BASE])
    generator = torch.Generator().manual_seed(5)
    for name, parameter in denoiser.model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    adapters.save(denoiser, tmp_path / "adapters")
    return denoiser


@pytest.fixture
def rewriter(tiny_experts):
    return Rewriter(tiny_experts, dataclasses.replace(EMBEDDED, masking=Masking(1.0, relative=True)))


def test_adapters_come_back_as_saved(tiny_experts, tiny_llama, tmp_path):
    loaded = adapters.load(dataclasses.replace(tiny_llama, model=copy.deepcopy(tiny_llama.model)), tmp_path / "adapters")
    source, target = [[70, 71, 72]], [[70]]
    before, after = (next(d.next_logits(ROLES, source, target)) for d in (tiny_experts, loaded))
    assert torch.allclose(before, after, atol=2e-3 * float(before.abs().max()))
    assert (after[1] - after[2]).abs().max() > 1e-3


def test_missing_or_foreign_adapters_are_one_sentence(tiny_experts, tiny_llama, tmp_path):
    with pytest.raises(CompanionError, match="the adapter 'base' is not in"):
        adapters.load(tiny_llama, tmp_path)
    (tmp_path / "adapters" / "expert" / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(CompanionError, match="do not fit the model"):
        adapters.load(dataclasses.replace(tiny_llama, model=copy.deepcopy(tiny_llama.model)), tmp_path / "adapters")


LINES = ["so it goes, my friend", "", "?!", "😀 ok #tag", "日本語の文です", "ان هذا", " indented  twice ", "x" * 300, "a\u2028b\x0bc"]


def test_lines_in_lines_out(rewriter):
    found = list(tool.rewritten(rewriter, LINES, as_json=False))
    assert len(found) == len(LINES)
    assert found[1] == "" and found[2] == "?!"
    assert all("\n" not in line for line in found)


def test_json_names_words_masks_and_toxicity(rewriter):
    rows = [json.loads(line) for line in tool.rewritten(rewriter, LINES, as_json=True)]
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
        (b"x" * (tool.LONGEST + 1), "line 1 has more than"),
    ],
)
def test_bad_input_is_one_sentence(raw, message, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    with pytest.raises(CompanionError, match=message):
        tool.read(None, None)


def test_texts_come_from_argument_file_or_standard_input(tmp_path, monkeypatch):
    path = tmp_path / "lines.txt"
    path.write_text("one\n\ntwo\n")
    assert tool.read(None, path) == ["one", "", "two"]
    assert tool.read("three", None) == ["three"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"four\r\nfive")))
    assert [line.strip() for line in tool.read("-", None)] == ["four", "five"]
    with pytest.raises(CompanionError, match="not both"):
        tool.read("three", path)
    with pytest.raises(CompanionError, match="cannot be read"):
        tool.read(None, tmp_path / "none.txt")


def test_the_command(rewriter, monkeypatch):
    monkeypatch.setattr(tool, "embedded", lambda: rewriter)
    found = CliRunner().invoke(cli.app, ["rewrite", "so it goes, my friend"])
    assert found.exit_code == 0 and len(found.output.strip().splitlines()) == 1
