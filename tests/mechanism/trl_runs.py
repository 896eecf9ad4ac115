"""TRL's DPOTrainer on the pairs, in the order and with the optimiser of :mod:`companion.dpo`.

Used by ``test_dpo.py`` (same losses) and ``benchmarks/bench_dpo.py`` (seconds). The trainer gets
our token ids as they are: its own preparation would append an end-of-text token to completions.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import DPOConfig as TRLConfig
from trl import DPOTrainer

from companion.lm import models
from companion.mechanism.dpo import DPOConfig, Triple, schedule_batches


@dataclass
class Run:
    """What was measured: loss and seconds of each step, and seconds of everything from the start to the last
    step."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    total: float = 0.0


class _Trainer(DPOTrainer):
    """DPOTrainer that takes token ids and notes each step's loss before it is rounded for the log."""

    losses: list[float]

    def _prepare_dataset(self, dataset, *_args):
        return dataset

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.losses.append(float((result[0] if return_outputs else result).detach()))
        return result


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_args, **_kwargs) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_args, **_kwargs) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    triples: Sequence[Triple],
    config: DPOConfig,
    folder: Path,
    *,
    precompute: bool,
    gradient_checkpointing: bool,
) -> Run:
    """Train a copy of ``model``. ``precompute`` gives the reference's log-probabilities before training,
    else in the loop."""
    start = time.perf_counter()
    policy = copy.deepcopy(model)
    order = [
        i
        for batch in schedule_batches(len(triples), config.batch_size, config.steps, config.seed)
        for i in batch
    ]
    rows = Dataset.from_list(
        [
            {
                "prompt_ids": triples[i].prompt,
                "chosen_ids": triples[i].chosen,
                "rejected_ids": triples[i].rejected,
            }
            for i in order
        ]
    )
    optimizer = torch.optim.RMSprop(policy.parameters(), lr=config.learning_rate)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / config.warmup))
    arguments = TRLConfig(
        output_dir=str(folder),
        beta=config.beta,
        per_device_train_batch_size=config.batch_size,
        max_steps=config.steps,
        max_grad_norm=config.max_grad_norm,
        train_sampling_strategy="sequential",
        precompute_ref_log_probs=precompute,
        gradient_checkpointing=gradient_checkpointing,
        bf16=config.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=config.seed,
    )
    clock = _Clock()
    with models.quiet():
        trainer = _Trainer(
            policy,
            None if precompute else copy.deepcopy(model),
            args=arguments,
            train_dataset=rows,
            processing_class=tokenizer,
            optimizers=(optimizer, warm_up),
            callbacks=[clock],
        )
        trainer.losses = []
        trainer.train()
    return Run(trainer.losses, clock.seconds, time.perf_counter() - start)
