"""Train the three adapters: a base that undoes noise, then an expert and an anti-expert from it.

Each batch is read once by the frozen model, without gradients; only the adapters, which write,
learn. So a step costs little more than reading and writing the same text.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import DynamicCache

from companion import tokens
from companion.marco import corpus, words
from companion.marco.denoiser import ANTI_EXPERT, BASE, EXPERT, PrefixDenoiser
from companion.models import LanguageModel

CLASSES = ("non-toxic", "toxic")  # by label
PART = 384  # target tokens whose gradients are made at a time: logits over the vocabulary are large


@dataclass(frozen=True)
class AdapterConfig:
    """Hyperparameters of the adapters (ours: the paper fine-tunes all of BART on a million comments)."""

    rank: int = 8
    alpha: int = 16
    batch_size: int = 24
    base_steps: int = 300
    expert_steps: int = 140
    base_rate: float = 1e-3
    expert_rate: float = 1e-3
    warmup: int = 20
    precision: str = "bf16"  # autocast; "no" for fp32, faster on CPUs without bf16 units
    seed: int = 0


class Example(NamedTuple):
    """A corrupted source and the target to write, in token ids."""

    source: list[int]
    target: list[int]


def attach(lm: LanguageModel, config: AdapterConfig) -> PrefixDenoiser:
    """Add a fresh base adapter to a model (in place) and view it as a denoiser."""
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return PrefixDenoiser(get_peft_model(lm.model, lora, adapter_name=BASE), lm.tokenizer)


def examples(denoiser: PrefixDenoiser, texts: Sequence[str], seed: int) -> list[Example]:
    """Corrupt texts, each with its own noise."""
    noise, found = random.Random(seed), []
    for text in texts:
        sentence = words.split(denoiser, text)
        found.append(Example(corpus.infilled(pieces(sentence), denoiser.mask_id, noise), sentence.ids))
    return found


def paired_examples(denoiser: PrefixDenoiser, rows: Sequence[tuple[str, str]], side: int, seed: int) -> list[Example]:
    """One side of pairs (0: first, 1: second); with the same seed both sides get the same noise."""
    noise, found = random.Random(seed), []
    for row in rows:
        sentences = [words.split(denoiser, text) for text in row]
        sources = corpus.infilled_pair(*(pieces(sentence) for sentence in sentences), denoiser.mask_id, noise)
        found.append(Example(sources[side], sentences[side].ids))
    return found


def pieces(sentence: words.Sentence) -> list[list[int]]:
    """All tokens of a sentence word by word; tokens of no word are pieces of their own."""
    owner = {t: i for i, word in enumerate(sentence.words) for t in word.tokens}
    found: list[list[int]] = []
    last = None
    for t, token in enumerate(sentence.ids):
        here = owner.get(t, -t - 1)
        if here == last:
            found[-1].append(token)
        else:
            found.append([token])
        last = here
    return found


def losses(denoiser: PrefixDenoiser, batch: Sequence[Example], adapter: str) -> Float[Tensor, "rows"]:
    """Mean cross-entropy per token of each target (its end included), written with one adapter."""
    model, device = denoiser.model, denoiser.model.device
    source = tokens.pad([denoiser.opened(e.source) for e in batch], "right")
    target = tokens.pad([[denoiser.separator_id, *e.target, denoiser.end_id] for e in batch], "right")
    source_mask, target_mask = source.mask.long().to(device), target.mask[:, :-1].long().to(device)
    model.set_adapter(adapter)
    with torch.no_grad():
        cache: DynamicCache = denoiser._read(source.ids.to(device), source_mask, source.positions.to(device))
    logits = model(
        input_ids=target.ids[:, :-1].to(device),
        attention_mask=torch.cat([source_mask, target_mask], dim=1),
        position_ids=source_mask.sum(-1, keepdim=True) + target.positions[:, :-1].to(device),
        past_key_values=cache,
    ).logits
    real = target.mask[:, 1:].to(device)
    each = torch.zeros(real.shape, device=device)
    each[real] = cross_entropy(logits[real].float(), target.ids[:, 1:].to(device)[real], reduction="none")
    return each.sum(-1) / real.sum(-1)


def batches(texts: Sequence[str], config: AdapterConfig, steps: int) -> list[list[int]]:
    """``steps`` batches of text indices: fresh shuffles, texts of similar length together."""
    shuffle, found = random.Random(config.seed), []
    while len(found) < steps:
        order = shuffle.sample(range(len(texts)), len(texts))
        epoch = []
        for start in range(0, len(order), 8 * config.batch_size):
            near = sorted(order[start : start + 8 * config.batch_size], key=lambda i: len(texts[i]))
            epoch += [near[i : i + config.batch_size] for i in range(0, len(near), config.batch_size)]
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

    AdamW, linear warm-up, linear decay to 0. ``corrupt`` makes the examples of some texts, given their
    indices and a seed that is new in each step. The state goes to ``folder`` every 25 steps; a call that
    finds a state there goes on from it.
    """
    parameters = {name: p for name, p in denoiser.model.named_parameters() if f".{adapter}." in name}
    optimizer = torch.optim.AdamW(parameters.values(), lr=rate, weight_decay=0.0)
    checkpoint = _Checkpoint(folder / f"{adapter}.training.safetensors", parameters, optimizer)
    history = checkpoint.load()
    curves = {name: examples(denoiser, some, config.seed) for name, some in held_out.items()}
    schedule = batches(texts, config, steps)[len(history) :]
    for rows in (bar := tqdm(schedule, desc=adapter, initial=len(history), total=steps)):
        step, started = len(history), time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / config.warmup) * (1 - step / steps)
        batch, total = corrupt(rows, 1_000_003 * config.seed + step), 0.0
        for some in parts(batch):
            with torch.autocast(denoiser.model.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                part = losses(denoiser, some, adapter).sum() / len(batch)
            part.backward()
            total += part.item()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append({"step": step, "loss": total, "seconds": round(time.perf_counter() - started, 2)})
        if (step + 1) % 50 == 0 or step + 1 == steps:
            history[-1] |= {name: held_out_loss(denoiser, some, adapter) for name, some in curves.items()}
            tqdm.write(f"{adapter}: {history[-1]}")
        if (step + 1) % 25 == 0 or step + 1 == steps:
            checkpoint.save(history)
        bar.set_postfix(loss=f"{total:.3f}")
    return history


@torch.no_grad()
def held_out_loss(denoiser: PrefixDenoiser, batch: Sequence[Example], adapter: str) -> float:
    """Mean over texts of the loss per token."""
    return torch.cat([losses(denoiser, part, adapter) for part in parts(batch)]).mean().item()


def parts(batch: Sequence[Example]) -> list[Sequence[Example]]:
    """Cut a batch into parts of about ``PART`` tokens."""
    size = max(1, PART // max(len(e.target) for e in batch))
    return [batch[i : i + size] for i in range(0, len(batch), size)]


class _Checkpoint:
    """Adapter weights, AdamW moments and history of an interrupted training. Safetensors only."""

    def __init__(self, path: Path, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.path, self.parameters, self.optimizer = path, parameters, optimizer

    def save(self, history: list[dict]) -> None:
        state = {}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state[parameter]
            state |= {f"weight.{name}": parameter.detach(), f"first.{name}": moments["exp_avg"], f"second.{name}": moments["exp_avg_sq"]}
        fresh = self.path.with_suffix(".new")
        save_file({key: value.cpu() for key, value in state.items()}, fresh, metadata={"history": json.dumps(history)})
        fresh.replace(self.path)

    def load(self) -> list[dict]:
        if not self.path.exists():
            return []
        with safe_open(self.path, "pt") as stored:
            history = json.loads(stored.metadata()["history"])
            for name, parameter in self.parameters.items():
                parameter.data.copy_(stored.get_tensor(f"weight.{name}"))
                first, second = (stored.get_tensor(f"{moment}.{name}").to(parameter) for moment in ("first", "second"))
                self.optimizer.state[parameter] = {"step": torch.tensor(float(len(history))), "exp_avg": first, "exp_avg_sq": second}
        return history


def train_experts(lm: LanguageModel, config: AdapterConfig, folder: Path) -> PrefixDenoiser:
    """Train base, expert and anti-expert on the public data; ``folder`` keeps the states and the histories."""
    held = corpus.balanced("dev", config.seed)
    held_out = {name: held[held.label == label].text.tolist()[:96] for label, name in enumerate(CLASSES)}
    return train_all(lm, corpus.balanced("train", config.seed).text.tolist(), corpus.pairs("train", config.seed), held_out, config, folder)


def train_all(
    lm: LanguageModel, texts: list[str], pairs: list[tuple[str, str]], held_out: dict[str, list[str]], config: AdapterConfig, folder: Path
) -> PrefixDenoiser:
    """Train the base on texts of both classes, then from it the expert on the second side of pairs and the anti-expert on the first."""
    folder.mkdir(parents=True, exist_ok=True)
    denoiser = attach(lm, config)

    def alone(rows: list[int], seed: int) -> list[Example]:
        return examples(denoiser, [texts[i] for i in rows], seed)

    history = {BASE: train(denoiser, BASE, texts, alone, held_out, config.base_steps, config.base_rate, config, folder)}
    for side, adapter in ((1, EXPERT), (0, ANTI_EXPERT)):

        def paired(rows: list[int], seed: int, side: int = side) -> list[Example]:
            return paired_examples(denoiser, [pairs[i] for i in rows], side, seed)

        denoiser.model.add_adapter(adapter, denoiser.model.peft_config[BASE])
        own = dict(denoiser.model.named_parameters())
        for key, parameter in own.items():
            if f".{adapter}." in key:
                parameter.data.copy_(own[key.replace(f".{adapter}.", f".{BASE}.")])
        first = [toxic for toxic, _ in pairs]  # batches by the length of one side, so that both adapters meet the same pairs
        history[adapter] = train(denoiser, adapter, first, paired, held_out, config.expert_steps, config.expert_rate, config, folder)
    (folder / "history.json").write_text(json.dumps({"config": asdict(config), "history": history}))
    return denoiser
