"""PPLM: steer a model's next tokens by gradient steps on its key-value cache. Dathathri et al. (2020)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, pad
from tqdm import tqdm
from transformers import DynamicCache

from companion import store
from companion.lm import tokens
from companion.lm.models import LanguageModel
from companion.mechanism.probe import Probe


@dataclass(frozen=True)
class PPLM:
    """Settings, named as in the reference implementation (Lee et al., table 9, in brackets).

    ``step_size`` (.4) is the length of a gradient step on each layer's cache, ``iterations`` (50)
    the number of steps per token, ``kl_scale`` (.1) the pull to the unsteered distribution,
    ``gm_scale`` (.95) the share of the steered one in their geometric mean, ``top_k`` (10) the
    tokens sampled from.
    """

    step_size: float = 0.4
    iterations: int = 10
    kl_scale: float = 0.1
    gm_scale: float = 0.95
    top_k: int = 10


# Of each layer keys and values. ``_pos``: a pass makes the cache longer.
Cache = list[tuple[Float[Tensor, "batch heads _pos d_head"], Float[Tensor, "batch heads _pos d_head"]]]


def sample(
    lm: LanguageModel,
    probe: Probe,
    prompts: Sequence[Sequence[int]],
    settings: PPLM,
    *,
    toxic: bool,
    new_tokens: int,
    seed: int,
) -> Int[Tensor, "batch new"]:
    """Sample one continuation for each tokenised prompt, steered to (or away from) toxicity.

    End-of-text is never sampled. The probe reads the mean residual stream of the continuation only,
    so that a prompt which is already toxic does not satisfy it.
    """
    batch = tokens.pad(prompts, "left")
    if batch.ids.shape[1] == 1:  # no token before the last: a masked column stands for them
        batch = tokens.Batch(*(pad(t, (1, 0)) for t in batch))
    generator = torch.Generator().manual_seed(seed)
    mask = batch.mask.to(lm.device)
    step = _Step(lm, probe, settings, toxic)
    plain, _, _ = step.forward(None, batch.ids[:, :-1].to(lm.device), mask[:, :-1])
    steered, last = plain, batch.ids[:, -1:].to(lm.device)
    pooled = torch.zeros(len(prompts), lm.model.config.hidden_size, device=lm.device)
    out = []
    for position in range(new_tokens):
        with torch.no_grad():
            next_plain, plain_logits, _ = step.forward(plain, last, mask)
        moved = step.perturb(steered, last, mask, plain_logits, pooled, position)
        with torch.no_grad():
            steered, steered_logits, hidden = step.forward(moved, last, mask)
        plain, pooled = next_plain, pooled + hidden
        last = step.sample(plain_logits, steered_logits, generator)
        out.append(last)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return torch.cat(out, dim=1).cpu()


class _Step:
    """One decoding step of PPLM on a batch."""

    def __init__(self, lm: LanguageModel, probe: Probe, settings: PPLM, toxic: bool) -> None:
        self.lm, self.probe, self.settings, self.target = lm, probe, settings, float(toxic)

    def forward(
        self,
        cache: Cache | None,
        ids: Int[Tensor, "batch new"] | Float[Tensor, "batch new d_model"],
        mask: Bool[Tensor, "batch _pos"],
    ) -> tuple[Cache, Float[Tensor, "batch vocab"], Float[Tensor, "batch d_model"]]:
        """Read token ids (or soft embeddings) after a cache; return cache, last logits, last residual."""
        positions = tokens.Batch(mask.long(), mask).positions[:, -ids.shape[1] :]
        past = DynamicCache(list(cache)) if cache is not None else DynamicCache(config=self.lm.model.config)
        inputs = {"inputs_embeds" if ids.is_floating_point() else "input_ids": ids}
        with torch.set_grad_enabled(cache is not None and torch.is_grad_enabled()):
            out = self.lm.model(
                **inputs,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=past,
                use_cache=True,
                output_hidden_states=True,
                logits_to_keep=1,
            )
        # Typed as layers of any kind and perhaps empty; those of attention have both.
        read: Cache = [(layer.keys, layer.values) for layer in past.layers]  # type: ignore[union-attr,misc]
        return read, out.logits[:, -1], out.hidden_states[self.probe.layer][:, -1]

    def perturb(
        self, cache: Cache, last: Tensor, mask: Tensor, plain_logits: Tensor, pooled: Tensor, position: int
    ) -> Cache:
        """Move the cache by gradient steps on the probe's loss plus the KL term."""
        flat = [t.detach() for pair in cache for t in pair]
        deltas = [torch.zeros_like(t) for t in flat]
        for _ in range(self.settings.iterations):
            deltas = [d.detach().requires_grad_() for d in deltas]
            moved = [t + d for t, d in zip(flat, deltas, strict=True)]
            with torch.enable_grad():
                loss = self._loss(_pairs(moved), last, mask, plain_logits, pooled, position)
                gradients = torch.autograd.grad(loss, deltas)
            real = mask[:, None, :-1, None]  # padding stays as it is
            for i, gradient in enumerate(gradients):
                g = gradient * real  # batch, heads, pos, d_head
                length = g.flatten(1).norm(dim=1).clamp(min=1e-10)[:, None, None, None]
                deltas[i] = deltas[i] - self.settings.step_size * g / length
        return _pairs([t + d.detach() for t, d in zip(flat, deltas, strict=True)])

    def _loss(
        self, cache: Cache, last: Tensor, mask: Tensor, plain_logits: Tensor, pooled: Tensor, position: int
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the wanted class one token ahead (horizon 1) + KL(steered ‖ plain), summed."""
        cache, logits, hidden = self.forward(cache, last, mask)
        probability = logits.softmax(-1)  # batch, vocab
        soft = probability @ self.lm.model.get_input_embeddings().get_parameter("weight").detach()
        ahead = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        _, _, future = self.forward(cache, soft[:, None], ahead)
        mean = (pooled + hidden + future) / (position + 2)
        verdict = self.probe.logits(mean)
        attribute = binary_cross_entropy_with_logits(
            verdict, torch.full_like(verdict, self.target), reduction="sum"
        )
        kl = (probability * (logits.log_softmax(-1) - plain_logits.log_softmax(-1))).sum()
        return attribute + self.settings.kl_scale * kl

    def sample(self, plain: Tensor, steered: Tensor, generator: torch.Generator) -> Int[Tensor, "batch 1"]:
        """Draw from the top k of the geometric mean of both distributions."""
        gamma = self.settings.gm_scale
        mixed = gamma * steered.log_softmax(-1) + (1 - gamma) * plain.log_softmax(-1)
        mixed[:, self.lm.eos_ids] = -torch.inf
        top = mixed.topk(self.settings.top_k, dim=-1)
        drawn = torch.multinomial(top.values.softmax(-1).cpu(), 1, generator=generator).to(mixed.device)
        return top.indices.gather(-1, drawn)


def _pairs(flat: Sequence[Tensor]) -> Cache:
    return list(zip(flat[::2], flat[1::2], strict=True))


def steered(
    lm: LanguageModel,
    probe: Probe,
    prompts: Sequence[Sequence[int]],
    settings: PPLM,
    *,
    toxic: bool,
    new_tokens: int,
    seed: int,
    path: Path | None = None,
    batch_size: int = 64,
) -> list[str]:
    """One steered continuation per tokenised prompt, in batches.

    With a ``path``, finished batches are kept there, one JSON line each, and a second call goes
    on after them.
    """
    done: list[str] = []
    if path is not None and path.exists():  # texts may hold line breaks of other kinds
        done = [line for line in path.read_text(encoding="utf-8").split("\n") if line]
    title = f"PPLM {'to' if toxic else 'from'} toxicity"
    for number in tqdm(range(len(done), -(-len(prompts) // batch_size)), desc=title, disable=path is None):
        rows = prompts[number * batch_size : (number + 1) * batch_size]
        ids = sample(lm, probe, rows, settings, toxic=toxic, new_tokens=new_tokens, seed=seed + number)
        texts = lm.tokenizer.batch_decode(ids.tolist(), skip_special_tokens=True)
        done.append(json.dumps(texts, ensure_ascii=False))
        if path is not None:
            with store.replacing(path) as fresh:
                fresh.write_text("\n".join(done) + "\n", encoding="utf-8")
    return [text for line in done for text in json.loads(line)]
