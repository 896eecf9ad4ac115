"""A DPO training by several processes is that by one: weights, losses, and going on after a stop."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_pairs import some_pairs
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from companion.errors import CompanionError
from companion.lm import processes, sharding, tiny
from companion.mechanism import dpo, kl_dpo, shared_training
from companion.mechanism.dpo import DPOConfig, Triple
from companion.mechanism.kl_dpo import KLConfig

STEPS = 10
# What the server of processes imports once, and each of them has; it does not know this folder.
PRELOADED = ["companion.mechanism.kl_dpo"] + [
    f"transformers.models.{name}.modeling_{name}" for name in ("gpt2", "llama", "gemma2", "mistral")
]
# Keys' biases of GPT-2 have no gradient but rounding, of which RMSprop makes steps: hence this rate.
CONFIG = DPOConfig(learning_rate=2e-4, batch_size=6, steps=STEPS, warmup=3, max_new_tokens=8)
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SMALL | {
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": tiny.VOCABULARY_SIZE,
}
FAMILIES: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(n_layer=2, n_embd=32, n_head=4, n_positions=64, vocab_size=tiny.VOCABULARY_SIZE),
    "llama-3": LlamaConfig(**GROUPED, tie_word_embeddings=False, rope_theta=500_000.0),
    "gemma-2": Gemma2Config(**GROUPED, head_dim=8, query_pre_attn_scalar=8),
    "mistral": MistralConfig(**GROUPED, sliding_window=32),
}


def triples() -> list[Triple]:
    return dpo.encode_pairs(tiny.byte_tokenizer(), some_pairs(13), 10, 8)


def model_of(family: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(FAMILIES[family]).eval()


def one_of_several(rank: int, count: int, port: int, job: Callable, args: tuple) -> None:
    """A process that finds the others as one that torch.distributed.run has started."""
    known = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in known.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    job(*args)
    torch.distributed.destroy_process_group()


def together(count: int, job: Callable, *args: object) -> list[int]:
    """Run a function in several processes at once; return their exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        context.Process(target=one_of_several, args=(rank, count, port, job, args)) for rank in range(count)
    ]
    for one in started:
        one.start()
    for one in started:
        one.join(timeout=300)
    return [one.exitcode for one in started]


def train(family: str, folder: Path, stop: int, precision: str = "no") -> None:
    """Train as one of several up to a step, or to the end; the first process leaves weights and history."""
    team, model = sharding.Sharded(precision), model_of(family)
    config = DPOConfig(**{**vars(CONFIG), "precision": precision})
    if stop:
        saved = sharding.ShardedCheckpoint.save

        def save_and_end(self, history, **besides):
            saved(self, history, **besides)
            sys.exit(0)

        sharding.ShardedCheckpoint.save = save_and_end
    history = dpo.train(model, triples(), config, folder, team=team, save_every=stop or 4)
    assert all(type(p).__name__ == "DTensor" and p.dtype == torch.float32 for p in model.parameters())
    weights = sharding.whole(model)
    if team.index == 0:
        save_file({name: value.clone() for name, value in weights.items()}, folder / "weights.safetensors")
        (folder / "history.json").write_text(json.dumps(history))


def with_term(rate: float) -> KLConfig:
    """Held-out pairs are measured before every other step; at 2e-2 their loss falls and rises again."""
    return KLConfig(dataclasses.replace(CONFIG, learning_rate=rate), 0.2, held_out=3, every=2, patience=1)


def train_with_term(rate: float, folder: Path, stop: int) -> None:
    """Train with the KL term as one of several, up to a step or to the end."""
    team, model, taken = sharding.Sharded("no"), model_of("llama-3"), list[dict]()
    if stop:
        step = kl_dpo.step

        def step_and_end(*args):
            taken.append(step(*args))
            if len(taken) == stop:
                sys.exit(0)
            return taken[-1]

        kl_dpo.step = step_and_end
    history = kl_dpo.train(model, model_of("llama-3"), triples(), with_term(rate), folder, team=team)
    weights = sharding.whole(model)
    if team.index == 0:
        save_file({name: value.clone() for name, value in weights.items()}, folder / "weights.safetensors")
        (folder / "history.json").write_text(json.dumps(history))


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    return load_file(folder / "weights.safetensors"), json.loads((folder / "history.json").read_text())


def assert_same(found: tuple, expected: tuple, tolerance: float) -> None:
    for name, value in expected[0].items():
        torch.testing.assert_close(found[0][name], value, rtol=0, atol=tolerance)
    assert len(found[1]) == len(expected[1]) == STEPS
    for one, other in zip(found[1], expected[1], strict=True):
        for name in set(other) - {"seconds"}:
            assert one[name] == pytest.approx(other[name], abs=tolerance * (1 + abs(other[name]))), name


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_several_processes_learn_what_one_does(family, count, tmp_path):
    """Six pairs a step: of four processes two have two of them, two have one."""
    alone = model_of(family)
    history = dpo.train(alone, triples(), CONFIG, tmp_path)
    assert together(count, train, family, tmp_path, 0) == [0] * count
    assert_same(outcome(tmp_path), (alone.state_dict(), history), 1e-5)
    assert history[-1]["loss"] < 0.98 * history[0]["loss"]
    assert not any(path.is_dir() for path in tmp_path.iterdir())  # no checkpoint is left


@pytest.mark.parametrize(("rate", "stop"), [(2e-4, 0), (2e-2, 0), (2e-2, 3)])
def test_the_training_with_the_kl_term_is_shared_too(rate, stop, tmp_path):
    """Stopped, another number of processes goes on. At the higher rate it ends by itself and goes back to
    the best weights; rounding grows with the rate, too."""
    config, tolerance = with_term(rate), 1e-5 if rate < 1e-3 else 1e-3
    alone = model_of("llama-3")
    history = kl_dpo.train(alone, model_of("llama-3"), triples(), config, tmp_path)
    assert len(history) == (STEPS + 1 if rate < 1e-3 else 5)
    if stop:
        assert together(3, train_with_term, rate, tmp_path, stop) == [0] * 3
        assert {path.name for path in tmp_path.iterdir()} == {"training", sharding.KEPT}
    assert together(2, train_with_term, rate, tmp_path, 0) == [0] * 2
    weights, rows = outcome(tmp_path)
    assert not any(path.is_dir() for path in tmp_path.iterdir())
    for one, other in zip(rows, history, strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=tolerance)


def test_more_processes_than_pairs_of_a_step():
    assert [sharding.share([7, 8, 9], i, 4) for i in range(4)] == [([7], 1), ([8], 1), ([9], 1), ([7], 0)]
    assert sharding.share([7, 8, 9], 0, 1) == ([7, 8, 9], 3)


@pytest.mark.parametrize(("before", "after"), [(2, 2), (4, 2), (2, 3)])
def test_a_stopped_training_goes_on_with_as_many_or_other_processes(before, after, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir(), stopped.mkdir()
    assert together(after, train, "llama-3", whole, 0) == [0] * after
    assert together(before, train, "llama-3", stopped, 4) == [0] * before
    assert [path.name for path in stopped.iterdir()] == ["training"]
    assert together(after, train, "llama-3", stopped, 0) == [0] * after
    assert_same(outcome(stopped), outcome(whole), 0 if before == after else 1e-5)


def test_bf16_keeps_the_weights_and_the_first_loss(tmp_path):
    assert together(2, train, "llama-3", tmp_path, 0, "bf16") == [0, 0]
    weights, history = outcome(tmp_path)
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert history[0]["loss"] == pytest.approx(0.6931, abs=1e-3) and history[-1]["loss"] < history[0]["loss"]


def test_through_the_launcher_and_the_store(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "one"))
    config = DPOConfig(**{**vars(CONFIG), "steps": 2})
    alone, history = dpo.trained(tiny_llama, some_pairs(13), config)
    monkeypatch.setenv(processes.PROCESSES, "2")
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "two"))
    shared, rows = dpo.trained(tiny_llama, some_pairs(13), config)
    for one, other in zip(alone.model.parameters(), shared.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in history], abs=1e-6)
    [folder] = (tmp_path / "two" / "dpo").glob("*/")
    assert not (folder / shared_training.START).exists() and not (folder / shared_training.JOB).exists()
    config = KLConfig(dataclasses.replace(config, steps=4), gamma=0.1, held_out=3, every=2)
    monkeypatch.setenv(processes.PROCESSES, "1")
    alone, history = kl_dpo.trained(tiny_llama, some_pairs(13), config)
    monkeypatch.setenv(processes.PROCESSES, "2")
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "three"))
    shared, rows = kl_dpo.trained(tiny_llama, some_pairs(13), config)
    for one, other in zip(alone.model.parameters(), shared.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert rows[-1]["validation"] == pytest.approx(history[-1]["validation"], abs=1e-6)


def test_a_process_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(processes.PROCESSES, "2")
    with pytest.raises(CompanionError, match=r"^process [12] of 2 of DPO ended with exit code 1 \(FileNotF"):
        processes.launch("companion.mechanism.dpo_worker", tmp_path / "nothing", "DPO")


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        (
            "Root Cause (first observed failure):\n[0]:\n  rank      : 1 (local)\n  exitcode  : -9 (pid: 7)",
            "process 2 of 4 of DPO was ended by signal 9, as when memory is short: "
            "run again, finished work is kept.",
        ),
        ("nothing known", "one of 4 processes of DPO ended early: run again, finished work is kept."),
    ],
)
def test_what_is_said_of_a_failure(log, sentence):
    assert processes._sentence(log, "DPO", 4) == sentence


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5"])
def test_a_number_of_processes_that_makes_no_sense(given, monkeypatch):
    monkeypatch.setenv(processes.PROCESSES, given)
    with pytest.raises(CompanionError, match="set it to how many processes"):
        processes.count()
