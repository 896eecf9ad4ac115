"""Tiny random GPT-2 and Llama with a byte tokenizer: the models of the ``smoke`` profile.

They know nothing, but have the parts and the file format of the real ones, so tests run every
line of a chapter in seconds. The same seed gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

NAMES = ("tiny-gpt2", "tiny-llama")
EOS = "<|end|>"
MARKS = ("<empty_output>", "<file_sep>")  # the special tokens of SmolLM2 that MaRCo's denoiser uses
VOCABULARY_SIZE = 257 + len(MARKS)  # 256 bytes, the end of a text, and the marks


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, an end-of-text token with id 0 and two marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {EOS: 0, **{symbol: i + 1 for i, symbol in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS, additional_special_tokens=list(MARKS)
    )


def random_model(name: str) -> PreTrainedModel:
    """Return a two- or three-layer model with random weights (``tiny-gpt2`` or ``tiny-llama``)."""
    config: PretrainedConfig
    if name == "tiny-gpt2":
        config = GPT2Config(n_layer=2, n_embd=32, n_head=4, n_positions=512, vocab_size=VOCABULARY_SIZE)
    else:
        config = LlamaConfig(
            num_hidden_layers=3,
            hidden_size=32,
            intermediate_size=48,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            vocab_size=VOCABULARY_SIZE,
        )
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def build(name: str, folder: Path) -> None:
    """Save model and tokenizer in the Hugging Face format (safetensors)."""
    random_model(name).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
