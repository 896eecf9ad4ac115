"""Train an adapter to undo noise; :mod:`companion.marco.experts.contrast_training` goes on to both experts.

Each batch is read once by the frozen model, without gradients; only the adapters, which write,
learn. So a step costs little more than reading and writing the same text.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from peft import LoraConfig, get_peft_model
from torch import Tensor
from tqdm import tqdm

from companion.lm import models
from companion.lm.checkpoint import Checkpoint
from companion.lm.generation import STRIDE
from companion.lm.models import LanguageModel
from companion.marco.denoisers import mixed_lora
from companion.marco.denoisers.causal import PrefixDenoiser
from companion.marco.denoisers.protocol import BASE
from companion.marco.experts.examples import Example, corrupted

Chosen = TypeVar("Chosen")
CLASSES = ("non-toxic", "toxic")  # by label
PART = 384  # target tokens whose gradients are made at a time: logits over the vocabulary are large
MEASURED, SAVED = 50, 25  # steps from one measurement, or checkpoint, to the next


@dataclass(frozen=True)
class AdapterConfig:
    """Hyperparameters of the adapters (ours: the paper fine-tunes all of BART on a million comments)."""

    rank: int = 8
    alpha: int = 16
    batch_size: int = 24
    base_steps: int = 1280
    expert_steps: int = 140
    contrast_steps: int = 160
    base_rate: float = 1e-3
    expert_rate: float = 1e-3
    contrast_rate: float = 3e-4
    warmup: int = 20
    precision: str = "bf16"  # autocast; "no" for fp32, faster on CPUs without bf16 units
    seed: int = 0

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of a forward pass in this precision."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


def attach(lm: LanguageModel, config: AdapterConfig) -> PrefixDenoiser:
    """Add a fresh base adapter to a model (in place) and view it as a denoiser."""
    lora = mixed_lora.mixed(
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules="all-linear",
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
    )
    with torch.random.fork_rng(devices=[]), models.quiet():
        torch.manual_seed(config.seed)
        return PrefixDenoiser(get_peft_model(lm.model, lora, adapter_name=BASE), lm.tokenizer)


def losses(denoiser: PrefixDenoiser, batch: Sequence[Example], adapter: str) -> Float[Tensor, "rows"]:
    """Mean cross-entropy per token of each target (its end included), written with one adapter."""
    sums = denoiser.surprise((adapter,), [e.source for e in batch], [e.target for e in batch])[:, 0]
    return sums / lengths(batch).to(sums.device)


def lengths(batch: Sequence[Example]) -> Float[Tensor, "rows"]:
    """Tokens of each target, its end included."""
    return torch.tensor([len(e.target) + 1.0 for e in batch])


def batches(
    texts: Sequence[str], config: AdapterConfig, steps: int, size: int | None = None
) -> list[list[int]]:
    """``steps`` batches of text indices (``size`` each; None: the config's).

    Every epoch is shuffled anew; texts of similar length go together.
    """
    shuffle, size = random.Random(config.seed), size or config.batch_size
    schedule: list[list[int]] = []
    while len(schedule) < steps:
        order = shuffle.sample(range(len(texts)), len(texts))
        epoch = []
        for start in range(0, len(order), 8 * size):
            near = sorted(order[start : start + 8 * size], key=lambda i: len(texts[i]))
            epoch += [near[i : i + size] for i in range(0, len(near), size)]
        schedule += shuffle.sample(epoch, len(epoch))
    return schedule[:steps]


def weights(denoiser: PrefixDenoiser, *roles: str) -> dict[str, Tensor]:
    """The weights of some adapters by name."""
    everything = denoiser.model.named_parameters()
    return {name: p for name, p in everything if any(f".{role}." in name for role in roles)}


def train(
    denoiser: PrefixDenoiser,
    adapter: str,
    texts: Sequence[str],
    corrupt: Callable[[list[int], int], list[Example]],
    held_out: Mapping[str, Sequence[str]],
    *,
    steps: int,
    rate: float,
    config: AdapterConfig,
    folder: Path,
) -> list[dict]:
    """Train one adapter in place; returns a row per step: the loss, at times that on held-out lists.

    ``corrupt`` makes the examples of some texts, given their indices and a seed that is new in each step.
    """
    curves = {name: corrupted(denoiser, some, config.seed) for name, some in held_out.items()}

    def gradients(step: int, rows: list[int]) -> dict[str, float]:
        batch, total = corrupt(rows, STRIDE * config.seed + step), 0.0
        for some in parts(batch):
            with config.autocast(denoiser.model.device):
                part = losses(denoiser, some, adapter).sum() / len(batch)
            part.backward()
            total += part.item()
        return {"loss": total}

    @torch.no_grad()
    def measured() -> dict[str, float]:
        return {
            name: torch.cat([losses(denoiser, part, adapter) for part in parts(some)]).mean().item()
            for name, some in curves.items()
        }

    schedule, trained = batches(texts, config, steps), weights(denoiser, adapter)
    return loop(
        adapter, schedule, trained, gradients, measured, rate=rate, warmup=config.warmup, folder=folder
    )


def loop(
    name: str,
    schedule: Sequence[Chosen],
    trained: Mapping[str, Tensor],
    gradients: Callable[[int, Chosen], dict[str, float]],
    measured: Callable[[], dict[str, float]],
    *,
    rate: float,
    warmup: int,
    folder: Path,
) -> list[dict]:
    """One step of AdamW per entry of a schedule; returns a row per step.

    ``gradients`` adds up a step's gradients and gives its losses; ``measured`` is recorded besides, every
    ``MEASURED`` steps. The state goes to ``folder`` every ``SAVED`` steps; one that is there is taken up.
    """
    optimizer = torch.optim.AdamW(trained.values(), lr=rate, weight_decay=0.0)
    checkpoint = Checkpoint(folder / f"{name}.training.safetensors", trained, optimizer)
    (history, _), steps = checkpoint.load(), len(schedule)
    for chosen in (bar := tqdm(schedule[len(history) :], desc=name, initial=len(history), total=steps)):
        step, started = len(history), time.perf_counter()
        for group in optimizer.param_groups:  # linear warm-up, linear decay to 0
            group["lr"] = rate * min(1.0, (step + 1) / warmup) * (1 - step / steps)
        step_losses = gradients(step, chosen)
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append({"step": step, **step_losses, "seconds": round(time.perf_counter() - started, 2)})
        if (step + 1) % MEASURED == 0 or step + 1 == steps:
            history[-1] |= measured()
            tqdm.write(f"{name}: {history[-1]}")
        if (step + 1) % SAVED == 0 or step + 1 == steps:
            checkpoint.save(history)
        bar.set_postfix({key: f"{value:.3f}" for key, value in step_losses.items()})
    return history


def parts(batch: Sequence[Example], roles: int = 1) -> list[list[Example]]:
    """Cut a batch, in its order, into parts of about ``PART`` padded tokens over all roles that write it."""
    cut: list[list[Example]] = []
    longest = 0
    for example in batch:
        longest = max(longest, len(example.target))
        if not cut or roles * longest * (len(cut[-1]) + 1) > PART:
            cut.append([])
            longest = len(example.target)
        cut[-1].append(example)
    return cut
