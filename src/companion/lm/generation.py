"""Batched decoding.

One loop for greedy decoding and sampling. Random numbers belong to a prompt, not to a batch:
each (seed, prompt, sample) has its own generator, so the same text comes out whatever it is
batched with.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache

from companion.lm import tokens
from companion.lm.activations import Recorder
from companion.lm.models import LanguageModel

KEPT = (
    0.75  # share of a batch that still goes on when ended rows are dropped, which costs a copy of the cache
)
SHARED = 16  # tokens that all prompts must have in common to be read once for all
SHORTLIST = 2048  # tokens among which a nucleus is looked for first
STRIDE = 1_000_003  # between the generators of two seeds: a prime larger than any run has items


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

    def of(self, rows: Sequence[int]) -> Generated:
        """Those of some prompts."""
        chosen = list(rows)
        return Generated(self.ids[chosen], self.mask[chosen], [self.texts[row] for row in chosen])


def joined(one: Generated, other: Generated) -> Generated:
    """Continuations of the same length, one after the other."""
    parts = (torch.cat([one.ids, other.ids]), torch.cat([one.mask, other.mask]))
    return Generated(*parts, [*one.texts, *other.texts])


def generate(
    lm: LanguageModel,
    prompts: Iterable[str],
    *,
    new_tokens: int,
    max_prompt_tokens: int | None = None,
    sampling: Sampling | None = None,
    recorder: Recorder | None = None,
    stop: Sequence[int] = (),
    batch_size: int = 64,
    progress: str | None = None,
) -> Generated:
    """Continue each prompt by up to ``new_tokens`` tokens (fewer after an end-of-text token).

    Warns of prompts that end in a space: they are read as they stand, but models have seldom seen such.

    Parameters
    ----------
    sampling
        None decodes greedily.
    recorder
        Sums neuron activations *at the position that predicted each token* (the last prompt
        position for the first token); None sums nothing.
    stop
        Tokens that end a continuation, besides the model's own.
    progress
        Title of a progress bar; None shows none.
    """
    prompts = tokens.checked(prompts)
    rows = tokens.encode(lm.tokenizer, prompts, max_prompt_tokens)
    uncut = [prompt for prompt, row in zip(prompts, rows, strict=True) if len(row) != max_prompt_tokens]
    if spaced := sum(prompt.endswith((" ", "\t")) for prompt in uncut):  # a line end may be meant
        oddly = "the model goes on oddly after it, because its tokens begin with the space"
        warnings.warn(f"{spaced} of the prompts end in white space: {oddly}; strip them.", stacklevel=2)
    shared = [] if recorder else _shared(rows)
    rows = [row[len(shared) :] for row in rows]
    ids = torch.zeros((len(rows), new_tokens), dtype=torch.long)
    mask = torch.zeros((len(rows), new_tokens), dtype=torch.bool)
    for chosen in tqdm(tokens.by_length(rows, batch_size), desc=progress, disable=progress is None):
        batch = tokens.pad([rows[i] for i in chosen], "left")
        noise = uniform(chosen, new_tokens, sampling)
        with recorder.watching(chosen) if recorder else nullcontext():
            ids[chosen], mask[chosen] = _decode(
                lm, shared, batch, recorder, new_tokens=new_tokens, sampling=sampling, noise=noise, stop=stop
            )
    texts = [tokens.decode(lm.tokenizer, row[kept].tolist()) for row, kept in zip(ids, mask, strict=True)]
    return Generated(ids, mask, texts)


def _shared(rows: Sequence[list[int]]) -> list[int]:
    """Tokens that several prompts all begin with, such as an instruction; none if they are few.

    Each prompt keeps a token of its own.
    """
    columns = zip(*(row[:-1] for row in rows), strict=False)
    common = [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]
    return common if len(rows) > 1 and len(common) >= SHARED else []


@torch.inference_mode()
def _decode(
    lm: LanguageModel,
    shared: list[int],
    batch: tokens.Batch,
    recorder: Recorder | None,
    *,
    new_tokens: int,
    sampling: Sampling | None,
    noise: Float[Tensor, "batch new"] | None,
    stop: Sequence[int],
) -> tuple[Int[Tensor, "batch new"], Bool[Tensor, "batch new"]]:
    """Decode one left-padded batch with a key-value cache; what all prompts begin with is read once."""
    size, device = len(batch.ids), lm.device
    ends = torch.tensor([*lm.eos_ids, *stop], device=device)
    ids = torch.zeros((size, new_tokens), dtype=torch.long)  # batch new
    mask = torch.zeros((size, new_tokens), dtype=torch.bool)  # batch new
    rows = torch.arange(size)  # of the batch, those that are in the cache
    alive = torch.ones(size, dtype=torch.bool, device=device)  # row: not ended
    step_ids, positions, attention = (
        t.to(device) for t in (batch.ids, batch.positions, batch.mask)
    )  # row pos
    cache = DynamicCache(config=lm.model.config)
    if shared:
        common = torch.tensor([shared], device=device)  # 1 shared
        lm.model(input_ids=common, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(size)
        positions = positions + len(shared)
        attention = torch.cat([attention.new_ones(size, len(shared)), attention], dim=1)  # row shared+pos
    for step in range(new_tokens):
        if recorder:
            recorder.count_last(alive[:, None])
        logits = logits_behind(lm, step_ids, attention, positions, cache, 1)[:, -1]  # row vocab
        if sampling is None or noise is None:
            chosen = logits.argmax(-1)  # row
        else:
            chosen = draw(logits, sampling, noise[rows, step].to(device))  # row
        ids[rows, step], mask[rows, step] = torch.where(alive, chosen, 0).cpu(), alive.cpu()
        alive = alive & ~torch.isin(chosen, ends)
        if not alive.any():
            break
        step_ids, positions = chosen[:, None], positions[:, -1:] + 1  # row 1
        attention = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)  # row pos+1
        if alive.sum() <= KEPT * len(alive):
            cache.batch_select_indices(alive.nonzero()[:, 0])
            rows = rows[alive.cpu()]
            step_ids, positions, attention = step_ids[alive], positions[alive], attention[alive]
            if recorder:
                recorder.leave(~alive)
            alive = alive[alive]
    return ids, mask


def logits_behind(
    lm: LanguageModel,
    ids: Int[Tensor, "row pos"],
    seen: Bool[Tensor, "row column"],
    positions: Int[Tensor, "row pos"],
    cache: DynamicCache,
    last: int,
) -> Float[Tensor, "row last vocab"]:
    """Read tokens behind a cache, which grows; return the logits behind each of the last."""
    return lm.model(
        input_ids=ids,
        attention_mask=seen.long(),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=last,
    ).logits


def draw(
    logits: Float[Tensor, "batch vocab"], sampling: Sampling, u: Float[Tensor, "batch"]
) -> Int[Tensor, "batch"]:
    """Draw from the nucleus by inverting its cumulative distribution at the uniform numbers ``u``.

    The nucleus is the smallest set of most likely tokens with total probability ≥ top_p
    (Holtzman et al., 2020).
    """
    top_p = max(sampling.top_p, 1e-12)  # the most likely token is always in
    best, token = _ranked((logits.double() / sampling.temperature).softmax(-1), top_p)
    cumulative = best.cumsum(-1)
    nucleus = best * (cumulative - best < top_p)
    cumulative = nucleus.cumsum(-1)
    rank = (cumulative <= u[:, None].double() * cumulative[:, -1:]).sum(-1, keepdim=True)
    last = (nucleus > 0).sum(-1, keepdim=True) - 1  # u may have been rounded up to 1
    return token.gather(-1, torch.minimum(rank, last))[:, 0]


def _ranked(
    probability: Float[Tensor, "batch vocab"], top_p: float
) -> tuple[Float[Tensor, "batch best"], Int[Tensor, "batch best"]]:
    """Probabilities from the highest down, at least those of the nucleus, and their tokens.

    Equally likely ones stand in order of id. To sort a whole vocabulary takes longer than the model's pass.
    """
    best, token = probability.topk(min(SHORTLIST, probability.shape[-1]))
    if (best.where(best > best[:, -1:], 0.0).sum(-1) < top_p).any():  # a nucleus may reach further
        return probability.sort(dim=-1, descending=True, stable=True)
    token = token.sort(dim=-1).values
    best, order = probability.gather(-1, token).sort(dim=-1, descending=True, stable=True)
    return best, token.gather(-1, order)


def generator_of(seed: int, index: int) -> torch.Generator:
    """Random numbers that belong to one item of a seeded run."""
    return torch.Generator().manual_seed((seed * STRIDE + index) % 2**63)


def uniform(rows: Sequence[int], width: int, sampling: Sampling | None) -> Float[Tensor, "rows width"] | None:
    """Uniform numbers that belong to a row (a prompt, a sentence), whatever it is batched with."""
    if sampling is None:
        return None
    return torch.stack([torch.rand(width, generator=generator_of(sampling.seed, i)) for i in rows])
