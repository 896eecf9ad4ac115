"""Batched decoding.

One loop for greedy decoding and sampling. Random numbers belong to a prompt, not to a batch:
each (seed, prompt, sample) has its own generator, so the same text comes out whatever it is
batched with.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache

from companion import tokens
from companion.activations import Recorder
from companion.models import LanguageModel


@dataclass(frozen=True)
class Sampling:
    """Nucleus sampling: temperature, top-p, and the seed that all draws descend from."""

    seed: int
    temperature: float = 1.0
    top_p: float = 0.9


@dataclass(frozen=True)
class Generated:
    """Continuations: ids (0 after the end), mask of generated tokens, text."""

    ids: Int[Tensor, "prompt new"]
    mask: Bool[Tensor, "prompt new"]
    texts: list[str]


def generate(
    lm: LanguageModel,
    prompts: Sequence[str],
    *,
    new_tokens: int,
    max_prompt_tokens: int | None = None,
    sampling: Sampling | None = None,
    recorder: Recorder | None = None,
    batch_size: int = 64,
    progress: str | None = None,
) -> Generated:
    """Continue each prompt by up to ``new_tokens`` tokens (fewer after an end-of-text token).

    Parameters
    ----------
    sampling
        None decodes greedily.
    recorder
        Sums neuron activations *at the position that predicted each token* (the last prompt
        position for the first token); None sums nothing.
    progress
        Title of a progress bar; None shows none.
    """
    rows = tokens.encode(lm.tokenizer, prompts, max_prompt_tokens)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # similar lengths together: little padding
    ids = torch.zeros((len(rows), new_tokens), dtype=torch.long)
    mask = torch.zeros((len(rows), new_tokens), dtype=torch.bool)
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc=progress, disable=progress is None):
        chosen = order[start : start + batch_size]
        noise = _noise(chosen, new_tokens, sampling)
        with recorder.watching(chosen) if recorder else nullcontext():
            ids[chosen], mask[chosen] = _decode(lm, tokens.pad([rows[i] for i in chosen], "left"), new_tokens, sampling, noise, recorder)
    texts = [lm.tokenizer.decode(row[kept].tolist(), skip_special_tokens=True) for row, kept in zip(ids, mask, strict=True)]
    return Generated(ids, mask, texts)


@torch.inference_mode()
def _decode(
    lm: LanguageModel,
    batch: tokens.Batch,
    new_tokens: int,
    sampling: Sampling | None,
    noise: Float[Tensor, "batch new"] | None,
    recorder: Recorder | None,
) -> tuple[Int[Tensor, "batch new"], Bool[Tensor, "batch new"]]:
    """Decode one left-padded batch with a key-value cache."""
    size, device = len(batch.ids), lm.device
    eos = torch.tensor(lm.eos_ids, device=device)
    ids, mask = torch.zeros((size, new_tokens), dtype=torch.long, device=device), torch.zeros((size, new_tokens), dtype=torch.bool, device=device)
    alive = torch.ones(size, dtype=torch.bool, device=device)
    step_ids, positions, attention = (t.to(device) for t in (batch.ids, batch.positions, batch.mask))
    cache = DynamicCache(config=lm.model.config)
    for step in range(new_tokens):
        if recorder:
            recorder.count_last(alive[:, None])
        logits = lm.model(
            input_ids=step_ids, attention_mask=attention.long(), position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits[:, -1]
        chosen = logits.argmax(-1) if sampling is None else draw(logits, sampling, noise[:, step].to(device))
        ids[:, step], mask[:, step] = torch.where(alive, chosen, 0), alive
        alive = alive & ~torch.isin(chosen, eos)
        if not alive.any():
            break
        step_ids, positions = chosen[:, None], positions[:, -1:] + 1
        attention = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)
    return ids.cpu(), mask.cpu()


def draw(logits: Float[Tensor, "batch vocab"], sampling: Sampling, u: Float[Tensor, "batch"]) -> Int[Tensor, "batch"]:
    """Draw from the nucleus by inverting its cumulative distribution at the uniform numbers ``u``.

    The nucleus is the smallest set of most likely tokens with total probability ≥ top_p
    (Holtzman et al., 2020).
    """
    probability, token = (logits.double() / sampling.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    cumulative = probability.cumsum(-1)
    nucleus = probability * (cumulative - probability < max(sampling.top_p, 1e-12))  # the most likely token is always in
    cumulative = nucleus.cumsum(-1)
    rank = (cumulative <= u[:, None].double() * cumulative[:, -1:]).sum(-1, keepdim=True)
    last = (nucleus > 0).sum(-1, keepdim=True) - 1  # u may have been rounded up to 1
    return token.gather(-1, torch.minimum(rank, last))[:, 0]


def _noise(prompts: Sequence[int], new_tokens: int, sampling: Sampling | None) -> Float[Tensor, "batch new"] | None:
    if sampling is None:
        return None
    seeds = [(sampling.seed * 1_000_003 + i) % 2**63 for i in prompts]
    return torch.stack([torch.rand(new_tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
