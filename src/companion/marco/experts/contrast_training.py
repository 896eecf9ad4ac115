"""Train expert and anti-expert: first each on its side of pairs, then together on texts of all sources.

The log odds of a whole text, log P(text | anti-expert) − log P(text | expert), are a classifier. Trained
one by one, the two learn mostly what both classes share. So when they are trained together, part of the
loss asks for what masking and refilling live on: that the log odds have the right sign
(generative–discriminative training; GeDi, Krause et al., 2021, section 3).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from companion import store
from companion.lm.generation import STRIDE
from companion.lm.models import LanguageModel
from companion.marco.denoisers.causal import PrefixDenoiser
from companion.marco.denoisers.protocol import ANTI_EXPERT, BASE, EXPERT
from companion.marco.experts import adapter_training, corpus, examples
from companion.marco.experts.adapter_training import CLASSES, AdapterConfig
from companion.marco.experts.examples import Example
from companion.marco.experts.noise import VARIED

EXPERTS = (EXPERT, ANTI_EXPERT)  # by label of the text that each restores
SHORT = 24  # words at most: a longer text takes the time of several and says less about each word
OWN = 0.2  # weight of the summed loss of a text under its own expert, against the loss of the classifier


class Corpus(NamedTuple):
    """Texts of both classes, pairs (toxic, non-toxic) of versions of a sentence, and the telling words.

    Those are the words that tell the classes apart (:func:`companion.marco.experts.corpus.telling`).
    """

    toxic: list[str]
    non_toxic: list[str]
    pairs: list[tuple[str, str]]
    telling: frozenset[str]


Step = tuple[list[int], list[int], list[int]]  # indices of its toxic texts, non-toxic texts and pairs


def likelihoods(denoiser: PrefixDenoiser, batch: Sequence[Example]) -> Float[Tensor, "rows role"]:
    """Log-likelihood (nats, summed over tokens) of each target under expert and anti-expert, read once."""
    return -denoiser.surprise(EXPERTS, [e.source for e in batch], [e.target for e in batch])


def loss(log_p: Float[Tensor, "rows role"], labels: Float[Tensor, "rows"]) -> Float[Tensor, "rows"]:
    """Loss of the classifier plus ``OWN`` times the loss of each text under the expert of its class."""
    own = log_p.gather(1, labels.long()[:, None])[:, 0]
    return binary_cross_entropy_with_logits(log_p[:, 1] - log_p[:, 0], labels, reduction="none") - OWN * own


def batches(rows: Corpus, config: AdapterConfig) -> list[Step]:
    """What each step reads: a third of the texts of a batch come from pairs."""
    pairs = max(1, config.batch_size // 6)
    each = config.batch_size // 2 - pairs
    lists = ((rows.toxic, each), (rows.non_toxic, each), ([a for a, _ in rows.pairs], pairs))
    parts = [adapter_training.batches(some, config, config.contrast_steps, size) for some, size in lists]
    return list(zip(*parts, strict=True))


def corrupted(denoiser: PrefixDenoiser, rows: Corpus, step: Step, seed: int) -> list[Example]:
    """The examples of one step, short ones first; both versions of a pair have the same noise."""
    toxic, non_toxic = [rows.toxic[i] for i in step[0]], [rows.non_toxic[i] for i in step[1]]
    pairs = [rows.pairs[i] for i in step[2]]
    batch = examples.corrupted(denoiser, toxic, seed, VARIED, rows.telling, label=1)
    batch += examples.corrupted(denoiser, non_toxic, seed + 1, VARIED, rows.telling)
    for side in (0, 1):
        batch += examples.corrupted_pairs(denoiser, pairs, side, seed + 2, VARIED)
    return sorted(batch, key=lambda example: len(example.target))


def train(
    denoiser: PrefixDenoiser,
    rows: Corpus,
    held_out: Mapping[str, Sequence[str]],
    config: AdapterConfig,
    folder: Path,
) -> dict[str, list[dict]]:
    """Train both experts in place; returns a history for each, as the training of one adapter does.

    A row's ``loss`` is the mean loss per token of texts of the own class, ``told_apart`` the AUC of the log
    odds on the held-out texts, under noise that masks telling words besides.
    """
    task = [
        examples.corrupted(denoiser, held_out[name], config.seed, telling=rows.telling, label=label)
        for label, name in enumerate(CLASSES)
    ]

    def gradients(step: int, chosen: Step) -> dict[str, float]:
        seed = STRIDE * config.seed + 3 * step
        return _step(denoiser, corrupted(denoiser, rows, chosen, seed), config)

    history = adapter_training.loop(
        "experts",
        batches(rows, config),
        adapter_training.weights(denoiser, *EXPERTS),
        gradients,
        lambda: _held_out(denoiser, task),
        rate=config.contrast_rate,
        warmup=config.warmup,
        folder=folder,
    )
    return {role: [_of(row, role) for row in history] for role in EXPERTS}


def _step(denoiser: PrefixDenoiser, batch: list[Example], config: AdapterConfig) -> dict[str, float]:
    """Gradients of one batch, added up part by part; its losses."""
    device = denoiser.model.device
    per_token: dict[str, list[float]] = {role: [] for role in EXPERTS}
    classifier = 0.0
    for part in adapter_training.parts(batch, len(EXPERTS)):
        labels = torch.tensor([float(example.label) for example in part], device=device)
        with config.autocast(device):
            log_p = likelihoods(denoiser, part)
        (loss(log_p, labels).sum() / len(batch)).backward()
        log_p = log_p.detach()
        odds = log_p[:, 1] - log_p[:, 0]
        classifier += binary_cross_entropy_with_logits(odds, labels, reduction="sum").item() / len(batch)
        for example, values in zip(part, log_p.tolist(), strict=True):
            per_token[EXPERTS[example.label]].append(-values[example.label] / (len(example.target) + 1))
    return {"classifier": classifier} | {role: sum(some) / len(some) for role, some in per_token.items()}


@torch.no_grad()
def _held_out(denoiser: PrefixDenoiser, task: list[list[Example]]) -> dict[str, float]:
    """Loss per token of each expert on each class, and how well their log odds tell the classes apart."""
    measured: dict[str, float] = {}
    odds: list[float] = []
    for name, some in zip(CLASSES, task, strict=True):
        parts = adapter_training.parts(some, len(EXPERTS))
        log_p = torch.cat([likelihoods(denoiser, part) for part in parts])  # rows, role
        each = (-log_p / adapter_training.lengths(some).to(log_p.device)[:, None]).mean(0).tolist()
        measured |= {f"{role} {name}": value for role, value in zip(EXPERTS, each, strict=True)}
        odds += (log_p[:, 1] - log_p[:, 0]).tolist()
    labels = [example.label for some in task for example in some]
    return measured | {"told_apart": float(roc_auc_score(labels, odds))}


def _of(row: dict, role: str) -> dict:
    """One expert's part of a row of the common history; the time is shared between the two."""
    own = {"step": row["step"], "loss": row[role], "seconds": round(row["seconds"] / 2, 2)}
    measured = {name: row[f"{role} {name}"] for name in CLASSES if f"{role} {name}" in row}
    return own | measured | ({"told_apart": row["told_apart"]} if measured else {})


def train_experts(lm: LanguageModel, config: AdapterConfig, folder: Path) -> PrefixDenoiser:
    """Train base, expert and anti-expert on the public data; ``folder`` keeps states and histories."""
    held, rows = corpus.balanced("dev", config.seed), corpus.balanced("train", config.seed)
    held_out = {name: held[held.label == label].text.tolist()[:96] for label, name in enumerate(CLASSES)}
    others = rows[(rows.source != "paradetox") & (rows.text.str.split().str.len() <= SHORT)]
    toxic, non_toxic = (others[others.label == label].text.tolist() for label in (1, 0))
    both = Corpus(toxic, non_toxic, corpus.pairs("train", config.seed), corpus.telling(toxic, non_toxic))
    return train_all(lm, rows.text.tolist(), both, held_out, config, folder)


def train_all(
    lm: LanguageModel,
    texts: list[str],
    rows: Corpus,
    held_out: Mapping[str, Sequence[str]],
    config: AdapterConfig,
    folder: Path,
) -> PrefixDenoiser:
    """Train the base on texts of both classes, from it each expert on its side of pairs, then both together.

    The expert learns from the second side, the anti-expert from the first.
    """
    store.writable(folder)
    denoiser = adapter_training.attach(lm, config)

    def alone(chosen: list[int], seed: int) -> list[Example]:
        return examples.corrupted(denoiser, [texts[i] for i in chosen], seed)

    train_one = partial(adapter_training.train, denoiser, config=config, folder=folder)
    steps, rate = config.base_steps, config.base_rate
    history = {BASE: train_one(BASE, texts, alone, held_out, steps=steps, rate=rate)}
    first = [toxic for toxic, _ in rows.pairs]  # makes the batches of both: they meet the same pairs
    for side, role in ((1, EXPERT), (0, ANTI_EXPERT)):

        def paired(chosen: list[int], seed: int, side: int = side) -> list[Example]:
            return examples.corrupted_pairs(denoiser, [rows.pairs[i] for i in chosen], side, seed)

        denoiser.model.add_adapter(role, denoiser.model.peft_config[BASE])
        begun = adapter_training.weights(denoiser, BASE)
        for name, weight in adapter_training.weights(denoiser, role).items():
            weight.data.copy_(begun[name.replace(f".{role}.", f".{BASE}.")])
        steps, rate = config.expert_steps, config.expert_rate
        history[role] = train_one(role, first, paired, held_out, steps=steps, rate=rate)
    differing = rows._replace(pairs=[(a, b) for a, b in rows.pairs if a != b and len(a.split()) <= SHORT])
    fewer = {name: some[:48] for name, some in held_out.items()}
    for role, more in train(denoiser, differing, fewer, config, folder).items():
        history[role] += [row | {"step": row["step"] + config.expert_steps} for row in more]
    about = json.dumps({"config": asdict(config), "history": history})
    (folder / "history.json").write_text(about, encoding="utf-8")
    return denoiser
