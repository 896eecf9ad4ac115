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
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import kl_div
from tqdm import tqdm
from transformers import PreTrainedModel

from companion import store
from companion.lm import processes
from companion.lm.models import LanguageModel, load_folder
from companion.lm.sharding import Sharded, Single, share
from companion.mechanism import shared_training
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
from companion.mechanism.shared_training import HISTORY
from companion.profiles import Profile


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
    team: Single | Sharded,
    policy: nn.Module,
    reference: nn.Module,
    triples: Sequence[Triple],
    config: KLConfig,
) -> dict[str, float]:
    """Mean loss (``validation``) and KL term (``apart``) on pairs, nothing learned."""
    sums, size = torch.zeros(2, dtype=torch.double), config.dpo.batch_size
    for start in range(0, len(triples), size):
        mine, own = share(range(len(triples))[start : start + size], team.index, team.count)
        found = losses(policy, reference, _packed(team, triples, mine), config)
        sums += torch.stack([found[name][:own].double().sum() for name in ("loss", "kl")]).cpu()
    return dict(zip(("validation", "apart"), (team.total(sums) / len(triples)).tolist(), strict=True))


def _packed(team: Single | Sharded, triples: Sequence[Triple], rows: Sequence[int]) -> PairBatch:
    return PairBatch(*(t.to(team.device) for t in collate([triples[i] for i in rows])))


def train(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    triples: Sequence[Triple],
    config: KLConfig,
    folder: Path,
    *,
    team: Single | Sharded | None = None,
    progress: str | None = None,
) -> list[dict]:
    """Train a model in place, leave it with its best weights; one row of measurements per step.

    A row has ``validation`` and ``apart`` where the pairs held out were measured *before* its step; the last
    row has nothing else. State and best weights go to ``folder`` at each measurement; a call that finds them
    there goes on with the same bits. Of a ``team`` each process calls this with all pairs.
    """
    team = team or Single(config.dpo.precision)
    learned, aside = held_out(triples, config.held_out, config.dpo.seed)
    model.eval()  # dropout off, as in the papers
    policy, optimizer = team.prepare(model, lambda p: torch.optim.RMSprop(p, lr=config.dpo.learning_rate))
    before = team.hold(reference)
    checkpoint = team.checkpoint(folder, policy, optimizer)
    history, _ = checkpoint.load()
    schedule = schedule_batches(len(learned), config.dpo.batch_size, config.dpo.steps, config.dpo.seed)
    for rows in tqdm([*schedule, None][len(history) :], desc=progress, disable=progress is None):
        now: dict[str, float] = {}
        if rows is None or len(history) % config.every == 0:
            checkpoint.save(history)
            now = validate(team, policy, before, aside, config)
            measured = [row["validation"] for row in [*history, now] if "validation" in row]
            if stale(measured) == 0:
                team.keep(folder, policy)
            if rows is None or stale(measured) >= config.patience:
                history.append(now)
                break
        for group in optimizer.param_groups:
            group["lr"] = config.dpo.learning_rate * min(1.0, (len(history) + 1) / config.dpo.warmup)
        history.append(now | step(team, policy, before, optimizer, learned, rows, config))
    team.take_back(folder, policy)
    checkpoint.clear()
    return history


def step(
    team: Single | Sharded,
    model: nn.Module,
    reference: nn.Module,
    optimizer: torch.optim.Optimizer,
    triples: Sequence[Triple],
    rows: Sequence[int],
    config: KLConfig,
) -> dict[str, float]:
    """One optimiser step; returns the means over its pairs, before it has learned from them."""
    mine, own = share(rows, team.index, team.count)
    found = losses(model, reference, _packed(team, triples, mine), config)
    team.backward(found["loss"][:own].sum() / len(rows))
    team.clip(model, config.dpo.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    means = team.total(torch.stack([values.detach()[:own].sum() for values in found.values()])) / len(rows)
    return dict(zip(found, means.tolist(), strict=True))


def stale(validation: Sequence[float]) -> int:
    """How many measurements have passed since the lowest."""
    return len(validation) - 1 - int(np.argmin(validation))


def trained(
    lm: LanguageModel, pairs: Sequence[Pair], config: KLConfig, *, progress: str | None = None
) -> tuple[LanguageModel, list[dict]]:
    """Return the model and its training history, from the store or trained now."""
    triples = encode_pairs(lm.tokenizer, pairs, config.dpo.max_prompt_tokens, config.dpo.max_new_tokens)

    def build(folder: Path) -> None:
        lm.tokenizer.save_pretrained(folder)
        if processes.count() > 1:
            job = {"triples": triples, "config": asdict(config)}
            worker, what = "companion.mechanism.kl_dpo_worker", progress or "DPO with the KL term"
            shared_training.start(worker, lm, job, folder, what)
        else:
            policy = copy.deepcopy(lm.model)
            history = train(policy, lm.model, triples, config, folder, progress=progress)
            policy.save_pretrained(folder)
            (folder / HISTORY).write_text(json.dumps(history), encoding="utf-8")

    inputs = {"model": lm.fingerprint, "pairs": store.key_of({"triples": triples}), "config": asdict(config)}
    folder = store.artifact("kl_dpo", inputs, build)
    history = json.loads((folder / HISTORY).read_text(encoding="utf-8"))
    return load_folder(folder, f"{lm.name}-kl-dpo-{config.gamma:g}"), history
