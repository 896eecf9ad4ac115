"""Train an adapter to undo noise; :mod:`companion.marco.experts.contrast_training` goes on from the base to both experts.

Each batch is read once by the frozen model, without gradients; only the adapters, which write,
learn. So a step costs little more than reading and writing the same text.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
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
from companion.lm.models import LanguageModel
from companion.marco.denoisers import mixed_lora
from companion.marco.denoisers.causal import PrefixDenoiser
from companion.marco.denoisers.protocol import BASE
from companion.marco.experts.examples import Example, corrupted

Row, Chosen = TypeVar("Row"), TypeVar("Chosen")
CLASSES = ("non-toxic", "toxic")  # by label
PART = 384  # target tokens whose gradients are made at a time: logits over the vocabulary are large


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
    found = denoiser.surprise((adapter,), [e.source for e in batch], [e.target for e in batch])[:, 0]
    return found / torch.tensor([len(e.target) + 1.0 for e in batch], device=found.device)


def batches(
    texts: Sequence[str], config: AdapterConfig, steps: int, size: int | None = None
) -> list[list[int]]:
    """``steps`` batches of text indices (``size`` each; None: the config's): fresh shuffles, texts of similar length together."""
    shuffle, found, size = random.Random(config.seed), [], size or config.batch_size
    while len(found) < steps:
        order = shuffle.sample(range(len(texts)), len(texts))
        epoch = []
        for start in range(0, len(order), 8 * size):
            near = sorted(order[start : start + 8 * size], key=lambda i: len(texts[i]))
            epoch += [near[i : i + size] for i in range(0, len(near), size)]
        found += shuffle.sample(epoch, len(epoch))
    return found[:steps]


def train(
    denoiser: PrefixDenoiser,
    adapter: str,
    texts: Sequence[str],
    corrupt: Callable[[list[int], int], list[Example]],
    held_out: dict[str, Sequence[str]],
    steps: int,
    rate: float,
    config: AdapterConfig,
    folder: Path,
) -> list[dict]:
    """Train one adapter in place; returns a row per step: loss, and every 50 steps the loss on each held-out list.

    ``corrupt`` makes the examples of some texts, given their indices and a seed that is new in each step.
    """
    parameters = {name: p for name, p in denoiser.model.named_parameters() if f".{adapter}." in name}
    curves = {name: corrupted(denoiser, some, config.seed) for name, some in held_out.items()}

    def gradients(step: int, rows: list[int]) -> dict[str, float]:
        batch, total = corrupt(rows, 1_000_003 * config.seed + step), 0.0
        for some in parts(batch, _length):
            with torch.autocast(
                denoiser.model.device.type, torch.bfloat16, enabled=config.precision == "bf16"
            ):
                part = losses(denoiser, some, adapter).sum() / len(batch)
            part.backward()
            total += part.item()
        return {"loss": total}

    def measured() -> dict[str, float]:
        return {name: held_out_loss(denoiser, some, adapter) for name, some in curves.items()}

    return loop(
        adapter, batches(texts, config, steps), gradients, measured, parameters, rate, config.warmup, folder
    )


def loop(
    name: str,
    schedule: Sequence[Chosen],
    gradients: Callable[[int, Chosen], dict[str, float]],
    measured: Callable[[], dict[str, float]],
    parameters: dict[str, Tensor],
    rate: float,
    warmup: int,
    folder: Path,
) -> list[dict]:
    """One step of AdamW per entry of a schedule; returns a row per step.

    ``gradients`` adds up a step's gradients and gives its losses, ``measured`` what is recorded besides every 50 steps.
    The state goes to ``folder`` every 25 steps; a call that finds a state there goes on from it.
    """
    optimizer = torch.optim.AdamW(parameters.values(), lr=rate, weight_decay=0.0)
    checkpoint = Checkpoint(folder / f"{name}.training.safetensors", parameters, optimizer)
    (history, _), steps = checkpoint.load(), len(schedule)
    for chosen in (bar := tqdm(schedule[len(history) :], desc=name, initial=len(history), total=steps)):
        step, started = len(history), time.perf_counter()
        for group in optimizer.param_groups:  # linear warm-up, linear decay to 0
            group["lr"] = rate * min(1.0, (step + 1) / warmup) * (1 - step / steps)
        found = gradients(step, chosen)
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append({"step": step, **found, "seconds": round(time.perf_counter() - started, 2)})
        if (step + 1) % 50 == 0 or step + 1 == steps:
            history[-1] |= measured()
            tqdm.write(f"{name}: {history[-1]}")
        if (step + 1) % 25 == 0 or step + 1 == steps:
            checkpoint.save(history)
        bar.set_postfix({key: f"{value:.3f}" for key, value in found.items()})
    return history


@torch.no_grad()
def held_out_loss(denoiser: PrefixDenoiser, batch: Sequence[Example], adapter: str) -> float:
    """Mean over texts of the loss per token."""
    return torch.cat([losses(denoiser, part, adapter) for part in parts(batch, _length)]).mean().item()


def parts(batch: Sequence[Row], length: Callable[[Row], int]) -> list[list[Row]]:
    """Cut a batch, in its order, into parts of about ``PART`` padded tokens."""
    found: list[list[Row]] = []
    longest = 0
    for row in batch:
        longest = max(longest, length(row))
        if not found or longest * (len(found[-1]) + 1) > PART:
            found.append([])
            longest = length(row)
        found[-1].append(row)
    return found


def _length(example: Example) -> int:
    return len(example.target)
