"""Train the two fine-tuned scorers; maintainers run it through ``companion make scorer``.

Each reader: LoRA and a linear head on an encoder whose lower layers stay frozen, so their states are computed
once. The loss is cross-entropy with smoothed labels, and an invariance term: a text and the same text about
another group must get the same logit (counterfactual logit pairing, Garg et al., 2019), and the exchanged
text has the same label. A linear model of words is fitted beside them, and all are combined on *dev* rows.
Training is resumable and depends on nothing but its seed.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from tqdm import tqdm

from companion import store
from companion.data import public
from companion.lm import tokens
from companion.toxicity import own_sentences, training_rows
from companion.toxicity.encoders import Encoder, States
from companion.toxicity.fine_tuned import (
    COMBINATION,
    READERS,
    FineTunedScorer,
    Head,
    Reader,
    lexical_features,
)
from companion.toxicity.normalise import normalised

SEED, BATCH, MAX_TOKENS = 0, 32, 96
LEARNING_RATE, HEAD_RATE, WARMUP, WEIGHT_DECAY = 4e-4, 1e-3, 60, 0.01
RANK, ALPHA, DROPOUT = 16, 32, 0.1  # of LoRA
SMOOTHING = 0.03  # of labels
INVARIANCE, PAIRS, WORST = 0.15, 6, 16.0  # its weight, exchanged texts a batch, bound on a squared difference
EXCHANGED = 0.5  # what the label of an exchanged text counts
SAVED_EVERY = 100  # steps


def train(name: str, folder: Path) -> FineTunedScorer:
    """Train ``embedded`` or ``second`` and write it to ``folder/name``; readers that are finished stay.

    An interrupted call goes on from the last checkpoint.
    """
    rows = training_rows.table(name, SEED)
    for reader, kind in READERS[name].items():
        train_reader(kind, rows, store.writable(folder / name / reader))
    readers = {reader: Reader.load(kind, folder / name / reader) for reader, kind in READERS[name].items()}
    words = fitted_words(name, rows)
    scorer = FineTunedScorer(name, readers, words, np.zeros(len(readers) + 2))
    save_file({"words": words, "combine": combined(scorer)}, folder / name / COMBINATION)
    return FineTunedScorer.load(name, folder)


def train_reader(kind: type[Encoder], rows: pd.DataFrame, folder: Path) -> None:
    """Train one encoder with its head, unless the folder already has them."""
    if (folder / "head.safetensors").is_file():
        return
    run = Training(kind, rows, folder)
    run.finish()
    settings = run.model.peft_config["default"]
    settings.base_model_name_or_path = kind.source  # not this machine's path
    run.model.half().save_pretrained(str(folder), save_embedding_layers=False)  # as it ships: half the size
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; ours is written by hand
    stored = {key: value.numpy() for key, value in run.head.state_dict().items()}
    with store.replacing(folder / "head.safetensors") as fresh:
        save_file(stored, fresh)
    run.checkpoint.unlink(missing_ok=True)


class Training:
    """Model, head, optimizer and the frozen layers' states of all rows; on the CPU."""

    def __init__(self, kind: type[Encoder], rows: pd.DataFrame, folder: Path) -> None:
        torch.manual_seed(SEED)
        self.rows, self.checkpoint = rows, folder / "checkpoint.pt"
        encoder = self.encoder = kind().to("cpu")
        self.frozen, self.trained = slice(0, encoder.n_frozen), slice(encoder.n_frozen, None)
        texts = [*rows.text, *rows.exchanged[rows.exchanged != ""]]
        paired = np.flatnonzero(rows.exchanged != "").tolist()
        self.partner = dict(zip(paired, range(len(rows), len(texts)), strict=True))
        self.ids = encoder.encode(texts, MAX_TOKENS)
        self.states = self._frozen_states()
        self.head = self._head()
        settings = LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=DROPOUT,
            target_modules=encoder.adapted,
            layers_to_transform=list(range(len(encoder.layers)))[self.trained],
            layers_pattern="layers",
        )
        self.model: PeftModel = get_peft_model(encoder, settings)
        self.adapter = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.adapter, "lr": LEARNING_RATE},
                {"params": list(self.head.parameters()), "lr": HEAD_RATE},
            ],
            weight_decay=WEIGHT_DECAY,
        )
        self.plan = [batch for epoch in range(kind.epochs) for batch in self._batches(epoch)]
        # A function of its own: the state of a bound method would be saved with the schedule's.
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: self._rate(step))

    @torch.no_grad()
    def _frozen_states(self) -> list[Tensor]:
        """Of each text the states after the frozen layers, in bf16 as training computes anyway."""
        states: list[Tensor] = [torch.empty(0)] * len(self.ids)
        for chosen in tqdm(tokens.by_length(self.ids, 64), desc="frozen layers"):
            batch = tokens.pad([self.ids[i] for i in chosen], "right")
            with torch.autocast("cpu", torch.bfloat16):
                out = self.encoder.run(self.encoder.embed(batch), batch.mask, self.frozen)
            for i, row in zip(chosen, out, strict=True):
                states[i] = row[: len(self.ids[i])].bfloat16().clone()
        return states

    @torch.no_grad()
    def _head(self, sampled: int = 1500) -> Head:
        """A head that standardises by the pooled states of some rows before fine-tuning."""
        some = np.random.default_rng(SEED).permutation(len(self.rows))[:sampled]
        pooled = []
        for start in range(0, len(some), 64):
            states, mask = self._padded(some[start : start + 64].tolist())
            with torch.autocast("cpu", torch.bfloat16):
                states = self.encoder.run(states, mask, self.trained)
            pooled.append(self.encoder.pool(states, mask))
        features = torch.cat(pooled)
        return Head(features.mean(0).clone(), features.std(0).clamp(min=1e-3).clone())

    def _padded(self, chosen: list[int]) -> tuple[States, Bool[Tensor, "batch pos"]]:
        some = [self.states[i] for i in chosen]
        states = torch.nn.utils.rnn.pad_sequence(some, batch_first=True).float()
        lengths = torch.tensor([len(row) for row in some])
        return states, torch.arange(states.shape[1])[None] < lengths[:, None]

    def _batches(self, epoch: int) -> list[list[int]]:
        """Rows of similar length together, in random order (seeded by epoch)."""
        generator = np.random.default_rng([SEED, epoch])
        lengths = np.array([len(self.ids[i]) for i in range(len(self.rows))])
        order = np.argsort(lengths + generator.uniform(0, 4, len(lengths)), kind="stable")
        batches = [order[i : i + BATCH].tolist() for i in range(0, len(order), BATCH)]
        return [batches[i] for i in generator.permutation(len(batches))]

    def _rate(self, step: int) -> float:
        """Of the learning rates: warm-up, then cosine decay."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / len(self.plan)))
        return min(1.0, (step + 1) / WARMUP) * max(0.02, cosine)

    def finish(self) -> None:
        """All steps that are still to be made."""
        done = self._resumed()
        self.model.train()
        with tqdm(total=len(self.plan), initial=done, desc="training the scorer") as bar:
            for step in range(done, len(self.plan)):
                loss = self._step(step)
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update()
                if (step + 1) % SAVED_EVERY == 0 or step + 1 == len(self.plan):
                    self._save(step + 1)
        self.model.eval()

    def _step(self, step: int) -> float:
        torch.manual_seed(SEED + step)  # dropout, the same after a resumption
        chosen = self.plan[step]
        paired = [i for i in chosen if i in self.partner]
        paired = [paired[i] for i in torch.randperm(len(paired))[:PAIRS]]
        states, mask = self._padded(chosen + [self.partner[i] for i in paired])
        with torch.autocast("cpu", torch.bfloat16):
            states = self.encoder.run(states, mask, self.trained)
        logits = self.head(self.encoder.pool(states, mask))
        loss = self._loss(logits, chosen, paired)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*self.adapter, *self.head.parameters()], 1.0)
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    def _loss(
        self, logits: Float[Tensor, "texts"], chosen: list[int], paired: list[int]
    ) -> Float[Tensor, ""]:
        def part(logits: Tensor, rows: list[int]) -> Tensor:
            """Summed weighted cross-entropy."""
            labels = torch.tensor(self.rows.label.to_numpy()[rows], dtype=torch.float32)
            weights = torch.tensor(self.rows.weight.to_numpy()[rows], dtype=torch.float32)
            smooth = labels * (1 - 2 * SMOOTHING) + SMOOTHING
            return cross_entropy(logits, smooth, weight=weights, reduction="sum")

        own, others = logits[: len(chosen)], logits[len(chosen) :]
        loss = part(own, chosen)
        if paired:
            same = own[[chosen.index(i) for i in paired]]
            loss = loss + EXCHANGED * part(others, paired)
            apart = ((others - same) ** 2).clamp(max=WORST)
            loss = loss + INVARIANCE * apart.sum() * len(chosen) / PAIRS
        return loss / len(chosen)

    def _save(self, step: int) -> None:
        adapter = {key: value for key, value in self.model.state_dict().items() if "lora_" in key}
        state = {"step": step, "adapter": adapter, "head": self.head.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
        with store.replacing(self.checkpoint) as fresh:
            torch.save(state, fresh)

    def _resumed(self) -> int:
        """Steps already made, from the checkpoint if there is one."""
        if not self.checkpoint.exists():
            return 0
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["adapter"], strict=False)
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        return int(state["step"])


def fitted_words(name: str, rows: pd.DataFrame) -> Float[np.ndarray, "_features"]:
    """The linear model of words: on all public rows dealt to a scorer, its own sentences and harvested ones.

    Sources count by the root of their size, our own sentences half of that. In half precision, as it ships:
    0.8 MB, with the same AUC.
    """
    public_rows = training_rows.dealt(public.labelled().query("split == 'train'"), name)
    own = rows[rows.source.isin(["own", "harvest"])]
    table = pd.concat([public_rows[["text", "label", "source"]], own[["text", "label", "source"]]])
    table = table.assign(text=table.text.map(normalised), label=table.label.astype(int))
    share = table.source.value_counts() ** 0.5
    share[["own", "harvest"]] /= 2
    fit = LogisticRegression(C=4.0, max_iter=2000)
    weights = training_rows.weights(table, share.to_dict())
    fit.fit(lexical_features(table.text), table.label, sample_weight=weights)
    return fit.coef_[0].astype(np.float16)


def dev_rows() -> pd.DataFrame:
    """Public and own *dev* rows: text, label, source (own ones with category, frame and group)."""
    rows = public.labelled().query("split == 'dev'")
    rows = pd.concat([part.sample(min(len(part), 500), random_state=0) for _, part in rows.groupby("source")])
    writer = own_sentences.Writer("dev", own_sentences.frames("dev"), SEED)
    return pd.concat([rows, writer.rows(3).assign(source="own")], ignore_index=True)


def combined(scorer: FineTunedScorer) -> Float[np.ndarray, "_parts"]:
    """Weights of all parts and the shift: logistic regression on dev rows, each source and class alike."""
    rows = dev_rows()
    weight = 1 / rows.groupby(["source", "label"]).text.transform("size")
    fit = LogisticRegression(C=1e3, fit_intercept=False)  # the last part is constant
    fit.fit(scorer.parts(rows.text), rows.label, sample_weight=weight * 1e3)
    return fit.coef_[0].astype(np.float32)
