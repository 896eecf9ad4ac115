"""Fixtures for all tests: offline, on the CPU; artifacts go to the user's ``COMPANION_CACHE``."""

from __future__ import annotations

import copy
import dataclasses
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the bit-for-bit tests are for the CPU
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # or their threads wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import jaxtyping
import pytest
import torch
from hypothesis import settings
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from companion import cli
from companion.lm import models
from companion.lm.models import LanguageModel

settings.register_profile("tests", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("tests")

PROMPTS = [
    "Hello there, you",
    "a",
    "The cat sat on the mat and",
    "Zx",
    "What is it?",
    "é ü",
    "I think that he was never there at all",
]


def lively(lm: LanguageModel) -> LanguageModel:
    """A copy whose attention and MLP weights are large enough that text far back decides the next token.

    As initialised, the tiny models repeat their last token; a wrong mask or position would not show.
    """
    model = copy.deepcopy(lm.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "wte" in name or "embed" in name or "lm_head" in name or "wpe" in name:
                parameter.mul_(10.0)
            elif parameter.ndim == 2:
                parameter.mul_(25.0)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return dataclasses.replace(lm, model=model.eval())


GEMMAS = {"gemma2": (Gemma2Config, Gemma2ForCausalLM), "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM)}


def random_gemma(lm: LanguageModel, kind: str, **settings) -> LanguageModel:
    """A tiny Gemma with large random gains in its norms, two of which stand behind attention and MLP."""
    config_class, model_class = GEMMAS[kind]
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    ends = {"vocab_size": 257, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(
            config_class(**sizes, max_position_embeddings=128, **heads, **ends, **settings)
        ).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.mul_(10) if parameter.ndim == 2 else parameter.copy_(torch.randn(parameter.shape))
                if "down_proj" in name:
                    parameter.mul_(0.003)  # small outputs, so that the eps of the norm counts
    model.config.architectures = [model_class.__name__]  # as in a saved one
    return dataclasses.replace(lm, name="tiny-gemma", model=model)


@pytest.fixture(scope="session", params=["tiny-gpt2", "tiny-llama"])
def tiny(request) -> LanguageModel:
    """Both tiny architectures, as they are. Read-only: copy the model before changing it."""
    return models.load(request.param)


@pytest.fixture(scope="session")
def tiny_llama() -> LanguageModel:
    return models.load("tiny-llama")


@pytest.fixture(scope="session")
def lively_lm(tiny) -> LanguageModel:
    """Both tiny architectures with large weights (see :func:`lively`). Read-only."""
    return lively(tiny)


@pytest.fixture(scope="session")
def embedded_lm() -> LanguageModel:
    """The real model that ships with the book. Read-only."""
    return models.load(models.EMBEDDED)


@pytest.fixture
def prompts() -> list[str]:
    """Prompts of mixed length, among them one of a single token."""
    return list(PROMPTS)


@pytest.fixture(scope="session")
def lively_llama(tiny_llama) -> LanguageModel:
    """The tiny Llama with large weights. Read-only."""
    return lively(tiny_llama)


@pytest.fixture
def companion(monkeypatch, capsys):
    """Call the entry point as the shell does; returns exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["companion", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return call


@pytest.fixture
def unchecked():
    """Switch the runtime check of types off: for tests that hand over what no annotation allows."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
