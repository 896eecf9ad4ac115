"""Train expert and anti-expert: first each on its side of pairs, then together on texts of all sources.

The log odds of a whole text, log P(text | anti-expert) − log P(text | expert), are a classifier. Trained
one by one, the two learn mostly what both classes share. So when they are trained together, part of the
loss asks for what masking and refilling live on: that the log odds have the right sign
(generative–discriminative training; GeDi, Krause et al., 2021, section 3).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from companion import store
from companion.lm.models import LanguageModel
from companion.marco.denoisers.causal import PrefixDenoiser
from companion.marco.denoisers.protocol import ANTI_EXPERT, BASE, EXPERT
from companion.marco.experts import adapter_training, corpus, examples
from companion.marco.experts.adapter_training import AdapterConfig
from companion.marco.experts.examples import Example
from companion.marco.experts.noise import VARIED

EXPERTS = (EXPERT, ANTI_EXPERT)  # by label of the text that each restores
LONGEST = (
    24  # words of a text for the experts: a long one takes the time of several and says less about each word
)
OWN = 0.2  # weight of the summed loss of a text under its own expert, against the loss of the classifier


class Corpus(NamedTuple):
    """Texts of both classes, pairs (toxic, non-toxic) of versions of a sentence, and the words that tell the classes apart."""

    toxic: list[str]
    non_toxic: list[str]
    pairs: list[tuple[str, str]]
    telling: frozenset[str]


class Labelled(NamedTuple):
    """An example and its class: 1 toxic."""

    example: Example
    label: int


def likelihoods(denoiser: PrefixDenoiser, batch: Sequence[Labelled]) -> Float[Tensor, "rows role"]:
    """Log-likelihood (nats, summed over tokens) of each target under expert and anti-expert, read once and written by both."""
    return -denoiser.surprise(
        EXPERTS, [row.example.source for row in batch], [row.example.target for row in batch]
    )


def loss(found: Float[Tensor, "rows role"], labels: Float[Tensor, "rows"]) -> Float[Tensor, "rows"]:
    """Loss of the classifier plus ``OWN`` times the loss of each text under the expert of its class."""
    own = found.gather(1, labels.long()[:, None])[:, 0]
    return binary_cross_entropy_with_logits(found[:, 1] - found[:, 0], labels, reduction="none") - OWN * own


def batches(rows: Corpus, config: AdapterConfig) -> list[tuple[list[int], list[int], list[int]]]:
    """Indices of toxic texts, non-toxic texts and pairs in each step: a third of the texts of a batch come from pairs."""
    pairs = max(1, config.batch_size // 6)
    each = config.batch_size // 2 - pairs
    lists = ((rows.toxic, each), (rows.non_toxic, each), ([a for a, _ in rows.pairs], pairs))
    return list(
        zip(
            *(adapter_training.batches(some, config, config.contrast_steps, size) for some, size in lists),
            strict=True,
        )
    )


def corrupted(
    denoiser: PrefixDenoiser, rows: Corpus, step: tuple[list[int], list[int], list[int]], seed: int
) -> list[Labelled]:
    """The examples of one step, short ones first; both versions of a pair have the same noise."""
    toxic, non_toxic, both = step
    pairs = [rows.pairs[i] for i in both]
    level = (VARIED, rows.telling)
    found = [
        Labelled(e, 1) for e in examples.corrupted(denoiser, [rows.toxic[i] for i in toxic], seed, *level)
    ]
    found += [
        Labelled(e, 0)
        for e in examples.corrupted(denoiser, [rows.non_toxic[i] for i in non_toxic], seed + 1, *level)
    ]
    for side, label in ((0, 1), (1, 0)):
        found += [
            Labelled(e, label) for e in examples.corrupted_pairs(denoiser, pairs, side, seed + 2, VARIED)
        ]
    return sorted(found, key=lambda row: len(row.example.target))


def train(
    denoiser: PrefixDenoiser,
    rows: Corpus,
    held_out: dict[str, Sequence[str]],
    config: AdapterConfig,
    folder: Path,
) -> dict[str, list[dict]]:
    """Train both experts in place; returns a history for each, as :func:`companion.marco.experts.adapter_training.train` does.

    A row's ``loss`` is the mean loss per token of texts of the own class, ``told_apart`` the AUC of the log
    odds on the held-out texts, under noise that masks telling words besides.
    """
    parameters = {
        name: p
        for name, p in denoiser.model.named_parameters()
        if any(f".{role}." in name for role in EXPERTS)
    }
    task = [
        [
            Labelled(e, label)
            for e in examples.corrupted(denoiser, held_out[name], config.seed, telling=rows.telling)
        ]
        for label, name in enumerate(adapter_training.CLASSES)
    ]

    def gradients(step: int, chosen: tuple[list[int], list[int], list[int]]) -> dict[str, float]:
        return _step(denoiser, corrupted(denoiser, rows, chosen, 1_000_003 * config.seed + 3 * step), config)

    def measured() -> dict[str, float]:
        return _held_out(denoiser, task)

    history = adapter_training.loop(
        "experts",
        batches(rows, config),
        gradients,
        measured,
        parameters,
        config.contrast_rate,
        config.warmup,
        folder,
    )
    return {role: [_of(row, role) for row in history] for role in EXPERTS}


def _step(denoiser: PrefixDenoiser, batch: list[Labelled], config: AdapterConfig) -> dict:
    """Gradients of one batch, added up part by part; its losses."""
    per_token: dict[str, list[float]] = {role: [] for role in EXPERTS}
    classifier = 0.0
    for part in adapter_training.parts(batch, lambda row: 2 * len(row.example.target)):
        labels = torch.tensor([float(row.label) for row in part], device=denoiser.model.device)
        with torch.autocast(denoiser.model.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            found = likelihoods(denoiser, part)
        (loss(found, labels).sum() / len(batch)).backward()
        found = found.detach()
        classifier += binary_cross_entropy_with_logits(
            found[:, 1] - found[:, 0], labels, reduction="sum"
        ).item() / len(batch)
        for row, values in zip(part, found.tolist(), strict=True):
            per_token[EXPERTS[row.label]].append(-values[row.label] / (len(row.example.target) + 1))
    return {"classifier": classifier} | {
        role: sum(values) / len(values) for role, values in per_token.items()
    }


@torch.no_grad()
def _held_out(denoiser: PrefixDenoiser, task: list[list[Labelled]]) -> dict:
    """Loss per token of each expert on each class, and how well their log odds tell the classes apart."""
    found, odds, labels = {}, [], []
    for name, some in zip(adapter_training.CLASSES, task, strict=True):
        sums = torch.cat(
            [
                likelihoods(denoiser, part)
                for part in adapter_training.parts(some, lambda row: 2 * len(row.example.target))
            ]
        )
        each = (
            -sums / torch.tensor([len(row.example.target) + 1.0 for row in some], device=sums.device)[:, None]
        )
        found |= {f"{role} {name}": value for role, value in zip(EXPERTS, each.mean(0).tolist(), strict=True)}
        odds += (sums[:, 1] - sums[:, 0]).tolist()
        labels += [row.label for row in some]
    return found | {"told_apart": float(roc_auc_score(labels, odds))}


def _of(row: dict, role: str) -> dict:
    """One expert's part of a row of the common history; the time is shared between the two."""
    found = {"step": row["step"], "loss": row[role], "seconds": round(row["seconds"] / 2, 2)}
    measured = {name: row[f"{role} {name}"] for name in adapter_training.CLASSES if f"{role} {name}" in row}
    return found | measured | ({"told_apart": row["told_apart"]} if measured else {})


def train_experts(lm: LanguageModel, config: AdapterConfig, folder: Path) -> PrefixDenoiser:
    """Train base, expert and anti-expert on the public data; ``folder`` keeps the states and the histories."""
    held, rows = corpus.balanced("dev", config.seed), corpus.balanced("train", config.seed)
    held_out = {
        name: held[held.label == label].text.tolist()[:96]
        for label, name in enumerate(adapter_training.CLASSES)
    }
    others = rows[(rows.source != "paradetox") & (rows.text.str.split().str.len() <= LONGEST)]
    toxic, non_toxic = (others[others.label == label].text.tolist() for label in (1, 0))
    both = Corpus(toxic, non_toxic, corpus.pairs("train", config.seed), corpus.telling(toxic, non_toxic))
    return train_all(lm, rows.text.tolist(), both, held_out, config, folder)


def train_all(
    lm: LanguageModel,
    texts: list[str],
    rows: Corpus,
    held_out: dict[str, list[str]],
    config: AdapterConfig,
    folder: Path,
) -> PrefixDenoiser:
    """Train the base on texts of both classes; from it the expert on the second side of pairs, the anti-expert on the first; then both together."""
    store.writable(folder)
    denoiser = adapter_training.attach(lm, config)

    def alone(chosen: list[int], seed: int) -> list[Example]:
        return examples.corrupted(denoiser, [texts[i] for i in chosen], seed)

    history = {
        BASE: adapter_training.train(
            denoiser, BASE, texts, alone, held_out, config.base_steps, config.base_rate, config, folder
        )
    }
    for side, role in ((1, EXPERT), (0, ANTI_EXPERT)):

        def paired(chosen: list[int], seed: int, side: int = side) -> list[Example]:
            return examples.corrupted_pairs(denoiser, [rows.pairs[i] for i in chosen], side, seed)

        denoiser.model.add_adapter(role, denoiser.model.peft_config[BASE])
        own = dict(denoiser.model.named_parameters())
        for key, parameter in own.items():
            if f".{role}." in key:
                parameter.data.copy_(own[key.replace(f".{role}.", f".{BASE}.")])
        first = [
            toxic for toxic, _ in rows.pairs
        ]  # batches by the length of one side, so that both adapters meet the same pairs
        history[role] = adapter_training.train(
            denoiser, role, first, paired, held_out, config.expert_steps, config.expert_rate, config, folder
        )
    differing = rows._replace(pairs=[(a, b) for a, b in rows.pairs if a != b and len(a.split()) <= LONGEST])
    for role, more in train(
        denoiser, differing, {name: some[:48] for name, some in held_out.items()}, config, folder
    ).items():
        history[role] += [row | {"step": row["step"] + config.expert_steps} for row in more]
    (folder / "history.json").write_text(
        json.dumps({"config": asdict(config), "history": history}), encoding="utf-8"
    )
    return denoiser
