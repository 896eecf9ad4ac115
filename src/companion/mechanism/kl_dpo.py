"""DPO as in the EMNLP version of Yang et al. (2024): a KL term beside the loss, and early stopping.

The term is γ · (KL of the chosen side + KL of the rejected side), each KL(reference ‖ policy), summed over
the vocabulary and averaged over the tokens of a completion. The published code averages over prompts and
padding, too. Training ends when the loss on pairs that it never learns from has not fallen for a while, and
gives back the weights with which that loss was lowest.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import kl_div
from tqdm import tqdm
from transformers import PreTrainedModel

from companion import store
from companion.lm.checkpoint import Checkpoint
from companion.lm.models import LanguageModel, load_folder, usable_cuda
from companion.mechanism.dpo import (
    DPOConfig,
    PairBatch,
    Triple,
    collate,
    completion_logps,
    dpo_loss,
    encode_pairs,
    schedule_batches,
)
from companion.mechanism.pairs import Pair
from companion.profiles import Profile

BEST = "best.safetensors"


@dataclass(frozen=True)
class KLConfig:
    """Settings: ``dpo`` with the most steps there may be, γ, pairs held out, and when to stop.

    Published: γ from .02 to .3 (.05 in the names of two checkpoints, .1 in one), 64 pairs held out and
    measured after every 100 learned ones, patience 10 in Lee et al. and 30 in the code. Runs of this book are
    a hundredth as long, so its patience is 3.
    """

    dpo: DPOConfig
    gamma: float = 0.05
    held_out: int = 64
    every: int = 25  # steps between measurements: 100 pairs at 4 a step
    patience: int = 3

    @classmethod
    def variants(cls, profile: Profile) -> dict[str, KLConfig]:
        """Without and with the term, up to twice as many steps as chapter 3; complete profiles only.

        On two CPU cores twice as many are one pass over the pairs, and half an hour each. Of the authors' two
        values of γ it is the larger, which must show a difference first.
        """
        longer = replace(DPOConfig.of(profile), steps=2 * profile.dpo_steps)
        return {f"γ = {g:g}": cls(longer, g) for g in (0.0, 0.1)} if profile.complete else {}


def term(
    policy: Float[Tensor, "scored vocab"], reference: Float[Tensor, "scored vocab"], batch: PairBatch
) -> Float[Tensor, "pairs 2"]:
    """KL(reference ‖ policy) per token of each completion, from the logits that predict its tokens, in nats.

    An empty completion has 0.
    """
    ours, theirs = (logits.float().log_softmax(-1) for logits in (policy, reference))
    each = kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)  # scored
    table = each.new_zeros(batch.real.shape)  # 2 · pairs, longest completion
    table[batch.real] = each
    return (table.sum(-1) / batch.real.sum(-1).clamp(min=1)).view(-1, 2)


def losses(
    policy: nn.Module, reference: nn.Module, batch: PairBatch, config: KLConfig
) -> dict[str, Float[Tensor, "pairs"]]:
    """The whole loss of each pair (``loss``), and its two parts."""
    with _logits_of(policy) as ours:
        logps = completion_logps(policy, batch)
    with torch.no_grad(), _logits_of(reference) as theirs:
        before = completion_logps(reference, batch)
    (chosen, rejected), (was_chosen, was_rejected) = logps.unbind(1), before.unbind(1)
    preferred = dpo_loss(chosen, rejected, was_chosen, was_rejected, config.dpo.beta)
    apart = term(ours[0], theirs[0], batch).sum(-1)
    return {"loss": preferred + config.gamma * apart, "dpo": preferred, "kl": apart}


@contextmanager
def _logits_of(model: nn.Module) -> Iterator[list[Tensor]]:
    """The logits of each pass within the block, without the dimension of the one packed row."""
    kept: list[Tensor] = []
    handle = model.register_forward_hook(lambda _module, _args, out: kept.append(out.logits[0]))
    try:
        yield kept
    finally:
        handle.remove()


def held_out(triples: Sequence[Triple], n: int, seed: int) -> tuple[list[Triple], list[Triple]]:
    """Pairs to learn from and about ``n`` others, a fifth at most; those with one prompt stay together."""
    n = min(n, len(triples) // 5)
    prompts = list(dict.fromkeys(tuple(t.prompt) for t in triples))
    aside: set[tuple[int, ...]] = set()
    for i in np.random.default_rng(seed).permutation(len(prompts)):
        if sum(tuple(t.prompt) in aside for t in triples) >= n:
            break
        aside.add(prompts[i])
    return [t for t in triples if tuple(t.prompt) not in aside], [
        t for t in triples if tuple(t.prompt) in aside
    ]


@torch.no_grad()
def validate(
    policy: nn.Module,
    reference: nn.Module,
    triples: Sequence[Triple],
    config: KLConfig,
    device: torch.device,
) -> dict[str, float]:
    """Mean loss (``validation``) and KL term (``apart``) on pairs, nothing learned."""
    found, size = list[dict[str, Tensor]](), config.dpo.batch_size
    for start in range(0, len(triples), size):
        batch = PairBatch(*(t.to(device) for t in collate(triples[start : start + size])))
        found.append(losses(policy, reference, batch, config))
    return {
        name: torch.cat([one[of] for one in found]).double().mean().item()
        for name, of in (("validation", "loss"), ("apart", "kl"))
    }


def train(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    triples: Sequence[Triple],
    config: KLConfig,
    folder: Path,
    *,
    progress: str | None = None,
) -> list[dict]:
    """Train a model in place, leave it with its best weights; one row of measurements per step.

    A row has ``validation`` and ``apart`` where the pairs held out were measured *before* its step; the last
    row has nothing else. State and best weights go to ``folder`` at each measurement; a call that finds them
    there goes on with the same bits.
    """
    AcceleratorState._reset_state()  # or a second training in this process could not have another precision
    accelerator = Accelerator(mixed_precision=config.dpo.precision, cpu=not usable_cuda())
    learned, aside = held_out(triples, config.held_out, config.dpo.seed)
    model.eval()  # dropout off, as in the papers
    optimizer = torch.optim.RMSprop(model.parameters(), lr=config.dpo.learning_rate)
    policy, optimizer = accelerator.prepare(model, optimizer)
    reference = reference.to(accelerator.device).eval()
    parameters = dict(model.named_parameters())
    checkpoint = Checkpoint(folder / "training.safetensors", parameters, optimizer)
    history, _ = checkpoint.load()
    schedule = schedule_batches(len(learned), config.dpo.batch_size, config.dpo.steps, config.dpo.seed)
    for rows in tqdm([*schedule, None][len(history) :], desc=progress, disable=progress is None):
        now: dict[str, float] = {}
        if rows is None or len(history) % config.every == 0:
            checkpoint.save(history)
            now = validate(policy, reference, aside, config, accelerator.device)
            measured = [row["validation"] for row in [*history, now] if "validation" in row]
            if stale(measured) == 0:
                with store.replacing(folder / BEST) as fresh:
                    save_file({name: p.detach().cpu() for name, p in parameters.items()}, fresh)
            if rows is None or stale(measured) >= config.patience:
                history.append(now)
                break
        for group in optimizer.param_groups:
            group["lr"] = config.dpo.learning_rate * min(1.0, (len(history) + 1) / config.dpo.warmup)
        batch = PairBatch(*(t.to(accelerator.device) for t in collate([learned[i] for i in rows])))
        found = losses(policy, reference, batch, config)
        accelerator.backward(found["loss"].mean())
        accelerator.clip_grad_norm_(model.parameters(), config.dpo.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        history.append(now | {name: values.mean().item() for name, values in found.items()})
    with torch.no_grad():
        for name, value in load_file(folder / BEST).items():
            parameters[name].copy_(value)
    (folder / BEST).unlink()
    checkpoint.clear()
    return history


def stale(validation: Sequence[float]) -> int:
    """How many measurements have passed since the lowest."""
    return len(validation) - 1 - int(np.argmin(validation))


def trained(
    lm: LanguageModel, pairs: Sequence[Pair], config: KLConfig, *, progress: str | None = None
) -> tuple[LanguageModel, list[dict]]:
    """Return the model and its training history, from the store or trained now."""
    triples = encode_pairs(lm.tokenizer, pairs, config.dpo.max_prompt_tokens, config.dpo.max_new_tokens)

    def build(folder: Path) -> None:
        policy = copy.deepcopy(lm.model)
        history = train(policy, lm.model, triples, config, folder, progress=progress)
        policy.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        (folder / "history.json").write_text(json.dumps(history), encoding="utf-8")

    inputs = {"model": lm.fingerprint, "pairs": store.key_of({"triples": triples}), "config": asdict(config)}
    folder = store.artifact("kl_dpo", inputs, build)
    history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    return load_folder(folder, f"{lm.name}-kl-dpo-{config.gamma:g}"), history
