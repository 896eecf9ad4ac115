"""Direct preference optimisation: the loss and a training loop with full fine-tuning.

Faster than a general trainer for three reasons that change no number: the reference
log-probabilities are computed once before training, logits are made for completion positions
only, and a batch of pairs is packed into one row without padding, in which each prompt stands
once and both of its completions look at it.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from companion import store
from companion.lm import processes, tokens
from companion.lm.models import LanguageModel, load_folder
from companion.lm.sharding import Sharded, Single, share
from companion.mechanism import shared_training
from companion.mechanism.pairs import Pair
from companion.mechanism.shared_training import HISTORY
from companion.profiles import Profile


@dataclass(frozen=True)
class DPOConfig:
    """Hyperparameters, named as in Lee et al. (2024), table 8.

    ``precision`` is ``"no"`` (fp32) or ``"bf16"`` (autocast; the weights stay fp32).
    """

    beta: float = 0.1
    learning_rate: float = 5e-6
    batch_size: int = 8
    steps: int = 72
    warmup: int = 20
    max_grad_norm: float = 10.0
    max_prompt_tokens: int = 32
    max_new_tokens: int = 20
    precision: str = "no"
    seed: int = 0

    @classmethod
    def of(cls, profile: Profile) -> DPOConfig:
        """The training settings of a profile; completions are as long as in the evaluation."""
        return cls(
            learning_rate=profile.dpo_learning_rate,
            batch_size=profile.dpo_batch,
            steps=profile.dpo_steps,
            warmup=profile.dpo_warmup,
            max_prompt_tokens=profile.max_prompt_tokens,
            max_new_tokens=profile.new_tokens,
            precision=profile.dpo_precision,
            seed=profile.seed,
        )


class Triple(NamedTuple):
    """Token ids of a prompt and its two completions."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class PairBatch(NamedTuple):
    """Pairs packed into one row without padding: each prompt once, then its two completions.

    Both completions see the prompt and themselves, never each other or another pair. The scored
    entries run over the completion tokens, chosen and rejected side of each pair in turn.
    """

    ids: Int[Tensor, "1 pos"]
    positions: Int[Tensor, "1 pos"]
    mask: Float[Tensor, "1 1 pos pos"]  # 0 where a token may look, -inf elsewhere
    source: Int[Tensor, "scored"]  # position whose logits predict the token
    target: Int[Tensor, "scored"]
    real: Bool[Tensor, "twice_pairs width"]  # where the scored tokens go in a padded table


def dpo_loss(
    chosen: Float[Tensor, "pairs"],
    rejected: Float[Tensor, "pairs"],
    reference_chosen: Float[Tensor, "pairs"],
    reference_rejected: Float[Tensor, "pairs"],
    beta: float,
) -> Float[Tensor, "pairs"]:
    """Loss per pair (Rafailov et al., 2023, equation 7).

    −log σ(β[(log π_w − log π_ref,w) − (log π_l − log π_ref,l)])
    """
    return -logsigmoid(beta * ((chosen - reference_chosen) - (rejected - reference_rejected)))


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], max_prompt: int, max_new: int
) -> list[Triple]:
    """Tokenise each part by itself. No end-of-text is added: the completions were cut, not ended."""
    prompts = tokens.encode(tokenizer, [p.prompt for p in pairs], max_prompt)
    sides = [tokens.bare(tokenizer, [getattr(p, side) for p in pairs]) for side in ("chosen", "rejected")]
    return [Triple(p, c[:max_new], r[:max_new]) for p, c, r in zip(prompts, *sides, strict=True)]


def collate(triples: Sequence[Triple]) -> PairBatch:
    """Pack pairs into one row with their attention mask."""
    ids: list[int] = []
    positions: list[int] = []
    owner: list[tuple[int, int]] = []  # pair, and 0 for its prompt, 1 or 2 for a completion
    source: list[int] = []
    target: list[int] = []
    for number, (prompt, *sides) in enumerate(triples):
        owner += [(number, 0)] * len(prompt)
        last = len(ids) + len(prompt) - 1  # of the prompt: it predicts the first token of both completions
        ids += prompt
        positions += range(len(prompt))
        for which, completion in enumerate(sides, start=1):
            fed = completion[:-1]  # the last token is predicted, and predicts nothing
            if completion:
                source += [last, *range(len(ids), len(ids) + len(fed))]
            target += completion
            ids += fed
            positions += range(len(prompt), len(prompt) + len(fed))
            owner += [(number, which)] * len(fed)
    pair, side = torch.tensor(owner).T  # pos each
    visible = (pair[:, None] == pair) & ((side[:, None] == side) | (side == 0))  # pos, pos
    visible = visible.tril()  # a packed row keeps the order within each part
    widths = torch.tensor([len(completion) for _, *sides in triples for completion in sides])  # 2 · pairs
    return PairBatch(
        torch.tensor([ids]),  # 1, pos
        torch.tensor([positions]),  # 1, pos
        torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)[None, None],  # 1, 1, pos, pos
        torch.tensor(source, dtype=torch.long),  # scored
        torch.tensor(target, dtype=torch.long),  # scored
        torch.arange(int(widths.max())) < widths[:, None],  # 2 · pairs, longest completion
    )


def _packed(triples: Sequence[Triple], rows: Sequence[int], device: torch.device) -> PairBatch:
    return PairBatch(*(t.to(device) for t in collate([triples[i] for i in rows])))


def completion_logps(model: nn.Module, batch: PairBatch) -> Float[Tensor, "pairs 2"]:
    """Sum over completion tokens of log π(token | prompt, tokens before), in fp32: chosen, rejected.

    ``logits_to_keep`` makes the (large) logits for the positions that predict a completion token.
    """
    out = model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
        logits_to_keep=batch.source,
    )
    logits = out.logits[0].float()  # scored, vocab
    logp = logits.gather(-1, batch.target[:, None])[:, 0] - logits.logsumexp(-1)  # scored
    table = logp.new_zeros(batch.real.shape)  # 2 · pairs, longest completion
    table[batch.real] = logp  # then summed row by row, in a fixed order
    return table.sum(-1).view(-1, 2)


def schedule_batches(n: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """``steps`` batches of pair indices: seeded epochs, each a fresh shuffle of all pairs."""
    generator, order = torch.Generator().manual_seed(seed), list[int]()
    while len(order) < steps * batch_size:
        order += torch.randperm(n, generator=generator).tolist()
    return [order[i * batch_size : (i + 1) * batch_size] for i in range(steps)]


@torch.no_grad()
def reference_logps(
    team: Single | Sharded, model: nn.Module, triples: Sequence[Triple], batches: Sequence[Sequence[int]]
) -> Float[Tensor, "pairs 2"]:
    """:func:`completion_logps` of the untrained model for the pairs that training will see (0 for others).

    Packed as training first sees them: another packing rounds otherwise, which in bf16 moves the loss before
    the first step from ln 2 by more than the first steps do.
    """
    logps, seen = torch.zeros(len(triples), 2), set[int]()
    for rows in batches:
        if not seen.issuperset(rows):
            mine, own = share(rows, team.index, team.count)
            found = completion_logps(model, _packed(triples, mine, team.device)).float().cpu()
            for k, row in enumerate(mine[:own]):
                first = rows.index(row) == team.index + k * team.count  # a new epoch may repeat one
                if first and row not in seen:
                    logps[row] = found[k]
            seen.update(rows)
    return team.total(logps)


def train(
    model: PreTrainedModel,
    triples: Sequence[Triple],
    config: DPOConfig,
    folder: Path,
    *,
    team: Single | Sharded | None = None,
    save_every: int = 20,
    progress: str | None = None,
) -> list[dict]:
    """Train a model in place and return one row of measurements per step.

    RMSprop, linear warm-up to a constant rate, gradient clipping, no dropout. Every
    ``save_every`` steps the state goes to ``folder``; a call that finds a state there goes on
    from it and ends with the same bits as an undisturbed one. Of a ``team`` of several processes each calls
    this with all pairs, and learns from its share of each batch.
    """
    team = team or Single(config.precision)
    model.eval()  # dropout off, as in the papers
    policy, optimizer = team.prepare(model, lambda p: torch.optim.RMSprop(p, lr=config.learning_rate))
    checkpoint = team.checkpoint(folder, policy, optimizer)
    history, besides = checkpoint.load()
    schedule = schedule_batches(len(triples), config.batch_size, config.steps, config.seed)
    reference = besides.get("reference")
    if reference is None:
        reference = reference_logps(team, policy, triples, schedule)
    for rows in tqdm(schedule[len(history) :], desc=progress, disable=progress is None):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (len(history) + 1) / config.warmup)
        row = step(team, policy, optimizer, triples, rows, reference, config)
        history.append({**row, "seconds": round(time.perf_counter() - started, 3)})
        if len(history) % save_every == 0 and len(history) < config.steps:
            checkpoint.save(history, reference=reference)
    checkpoint.clear()
    return history


def step(
    team: Single | Sharded,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    triples: Sequence[Triple],
    rows: Sequence[int],
    reference: Float[Tensor, "pairs 2"],
    config: DPOConfig,
) -> dict:
    """One optimiser step; returns loss, accuracy, margin (times β), mean log-probabilities and their change.

    The change is that of both sides against the reference, in nats, before this step has learned from them.
    """
    mine, own = share(rows, team.index, team.count)
    logps = completion_logps(model, _packed(triples, mine, team.device))
    before = reference[mine].to(team.device)
    chosen, rejected = logps.unbind(1)
    losses = dpo_loss(chosen, rejected, before[:, 0], before[:, 1], config.beta)
    team.backward(losses[:own].sum() / len(rows))
    team.clip(model, config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    raised = logps.detach() - before  # own 2
    margin = config.beta * (raised[:, 0] - raised[:, 1])
    measured = {
        "loss": losses.detach(),
        "accuracy": (margin > 0).float(),
        "margin": margin,
        "chosen": chosen.detach(),
        "rejected": rejected.detach(),
        "chosen_change": raised[:, 0],
        "rejected_change": raised[:, 1],
    }
    means = team.total(torch.stack([values[:own].sum() for values in measured.values()])) / len(rows)
    return dict(zip(measured, means.tolist(), strict=True))


def trained(
    lm: LanguageModel, pairs: Sequence[Pair], config: DPOConfig, *, progress: str | None = None
) -> tuple[LanguageModel, list[dict]]:
    """Return the DPO model and its training history, from the store or trained now."""
    triples = encode_pairs(lm.tokenizer, pairs, config.max_prompt_tokens, config.max_new_tokens)

    def build(folder: Path) -> None:
        lm.tokenizer.save_pretrained(folder)
        if processes.count() > 1:
            job = {"triples": triples, "config": asdict(config)}
            shared_training.start("companion.mechanism.dpo_worker", lm, job, folder, progress or "DPO")
        else:
            policy = copy.deepcopy(lm.model)
            history = train(policy, triples, config, folder, progress=progress)
            policy.save_pretrained(folder)
            (folder / HISTORY).write_text(json.dumps(history), encoding="utf-8")

    inputs = {"model": lm.fingerprint, "pairs": store.key_of({"triples": triples}), "config": asdict(config)}
    folder = store.artifact("dpo", inputs, build)
    history = json.loads((folder / HISTORY).read_text(encoding="utf-8"))
    return load_folder(folder, f"{lm.name}-dpo"), history
