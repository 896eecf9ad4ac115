"""Train the embedded scorer on the *train* rows of the public labelled data.

Maintainers run it through ``companion make scorer``; it writes ``data/scorer/``. LoRA on every linear layer
of MiniLM and a linear head, three epochs on all rows and three with equally many of each source; a logistic
regression on hashed n-grams (C = 4); both logits combined by a logistic regression fitted on the *dev* rows.
Evaluation rows are scored for the card, which says what was changed after they had been seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from companion.data import public
from companion.lm import tokens
from companion.lm.sentence_encoder import MAX_TOKENS, embed, load_encoder
from companion.toxicity.embedded import EmbeddedScorer, lexical_features
from companion.toxicity.lexical import LexicalScorer

SEED, EPOCHS, BALANCED_EPOCHS, BATCH, LEARNING_RATE = 0, 3, 3, 32, 4e-4

LORA = LoraConfig(
    r=16,
    lora_alpha=32,
    lora_dropout=0.1,
    target_modules=["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"],
)

# Each source counts by the square root of its size, so that the small, subtle ones are heard.
EXPONENT = 0.5


def row_weights(rows: pd.DataFrame) -> Float[np.ndarray, "rows"]:
    """Weights with mean 1: classes balanced inside a source, sources by the root of their size."""
    cell = rows.groupby(["source", "label"]).text.transform("size").to_numpy(float)
    source = rows.groupby("source").text.transform("size").to_numpy(float)
    weight = source**EXPONENT / cell
    return weight / weight.mean()


def train_scorer(folder: Path) -> dict:
    """Train, write the adapter, the heads and ``evaluation.json`` to ``folder``; return the evaluation."""
    rows = public.labelled()
    train, dev = (rows[rows.split == split].reset_index(drop=True) for split in ("train", "dev"))
    lexical = LogisticRegression(C=4.0, max_iter=2000).fit(
        lexical_features(train.text), train.label, sample_weight=row_weights(train)
    )
    encoder, tokenizer, head = train_encoder(train)
    settings = encoder.peft_config["default"]
    settings.base_model_name_or_path = "sentence-transformers/all-MiniLM-L6-v2"  # not this machine's path
    encoder.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; ours is written by hand
    weights = {
        "semantic.weight": head.weight.detach()[0].numpy().astype(np.float32),
        "semantic.bias": head.bias.detach().numpy().astype(np.float32),
        "lexical.weight": lexical.coef_[0].astype(np.float16),  # half precision: 0.8 MB, AUC unchanged
        "lexical.bias": lexical.intercept_.astype(np.float32),
        "combine": np.array([1.0, 1.0, 0.0], dtype=np.float32),
    }
    scorer = EmbeddedScorer(encoder, tokenizer, weights)
    logits = np.stack([scorer.semantic(dev.text), scorer.lexical(dev.text)], axis=1)
    combine = LogisticRegression(C=1e3).fit(logits, dev.label, sample_weight=row_weights(dev))
    weights["combine"] = np.array([*combine.coef_[0], combine.intercept_[0]], dtype=np.float32)
    save_file(weights, folder / "heads.safetensors")
    result = evaluate(EmbeddedScorer.load(folder), rows)
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def train_encoder(train: pd.DataFrame) -> tuple[PeftModel, PreTrainedTokenizerBase, nn.Linear]:
    """LoRA fine-tuning with a linear head, in two stages: all rows, then equally many of each source.

    The second stage is for the subtle sources (Social Bias Frames, DynaHate), which are small.
    """
    torch.manual_seed(SEED)
    plain, tokenizer = load_encoder()
    encoder, head = get_peft_model(plain, LORA), nn.Linear(384, 1)
    fine_tune(encoder, tokenizer, head, [train] * EPOCHS, LEARNING_RATE)
    smallest = train.groupby("source").size().min()
    balanced = [
        train.groupby("source").sample(smallest, random_state=epoch) for epoch in range(BALANCED_EPOCHS)
    ]
    fine_tune(encoder, tokenizer, head, balanced, LEARNING_RATE / 2)
    return encoder.eval(), tokenizer, head


def fine_tune(
    encoder: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    head: nn.Linear,
    epochs: list[pd.DataFrame],
    learning_rate: float,
) -> None:
    """Train adapter and head in place, one pass over each table of rows; AdamW, warm-up, cosine decay."""
    parameters = [p for p in encoder.parameters() if p.requires_grad] + list(head.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    steps = sum(-(-len(rows) // BATCH) for rows in epochs)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 100) * 0.5 * (1 + math.cos(math.pi * s / steps))
    )
    encoder.train()
    with tqdm(total=steps, desc="training the scorer") as bar:
        for epoch, rows in enumerate(epochs):
            ids = tokens.encode(tokenizer, rows.text, MAX_TOKENS)
            weights = torch.tensor(row_weights(rows), dtype=torch.float32)
            labels = torch.tensor(rows.label.to_numpy(), dtype=torch.float32)
            for chosen in shuffled_batches([len(row) for row in ids], epoch):
                batch = tokens.pad([ids[i] for i in chosen], "right")
                with torch.autocast("cpu", torch.bfloat16):
                    embedded = embed(encoder, batch)
                loss = binary_cross_entropy_with_logits(
                    head(embedded.float())[:, 0], labels[chosen], weight=weights[chosen]
                )
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                bar.update()


def shuffled_batches(lengths: list[int], epoch: int) -> list[list[int]]:
    """Batches of similar length in random order (seeded by epoch)."""
    generator = np.random.default_rng([SEED, epoch])
    order = np.argsort(np.array(lengths) + generator.uniform(0, 4, len(lengths)), kind="stable")
    batches = [order[i : i + BATCH].tolist() for i in range(0, len(order), BATCH)]
    return [batches[i] for i in generator.permutation(len(batches))]


def evaluate(scorer: EmbeddedScorer, rows: pd.DataFrame) -> dict:
    """AUC of the scorer, its two parts and the lexical scorer on dev and evaluation rows of each source."""
    scorers: dict[str, Callable[[Iterable[str]], np.ndarray]] = {
        "embedded": scorer,
        "semantic part": scorer.semantic,
        "lexical part": scorer.lexical,
        "alt-profanity-check": LexicalScorer(),
    }
    result: dict[str, dict] = {}
    for (split, source), part in rows[rows.split != "train"].groupby(["split", "source"]):
        row = result.setdefault(split, {})[source] = {"n": len(part)}
        for name, score in scorers.items():
            row[name] = round(float(roc_auc_score(part.label, score(part.text))), 4)
    return result
