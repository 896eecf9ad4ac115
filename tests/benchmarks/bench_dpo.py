"""Seconds per DPO step and losses: ours against TRL's DPOTrainer, all in one run.

    python tests/benchmarks/bench_dpo.py --steps 20

Every trainer gets the same token ids in the same order, the same batch size, RMSprop, warm-up
and clipping. A step is timed from its batch to the updated weights; medians leave out the first
two steps. ``total`` is everything from the untrained model to the last step, with the
reference's log-probabilities, copies of the model and TRL's preparations.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import trl
import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "mechanism"))
import trl_runs

from companion import paths, profiles
from companion.data import by_profile
from companion.lm import models
from companion.mechanism import dpo, pairs
from companion.mechanism.pairs import Pair

UNTIMED = 2  # steps at the start of a run that the medians leave out


def some_pairs() -> list[Pair]:
    """The pairs of the book; while there are none, halves of labelled comments."""
    path = paths.DATA / "pairs" / "pairs.jsonl"
    if path.is_file():
        return pairs.read(path)
    comments = by_profile.comments(profiles.load("embedded"), "train")
    halves = {label: by_profile.openings(comments[comments.label == label].text.tolist()) for label in (0, 1)}
    return [
        Pair(prompt, f" {civil}", f" {toxic}", 0.0, 1.0)
        for prompt, civil, toxic in zip(halves[0][0], halves[0][1], halves[1][1], strict=False)
    ]


def ours(lm: models.LanguageModel, triples: list[dpo.Triple], config: dpo.DPOConfig) -> trl_runs.Run:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        history = dpo.train(copy.deepcopy(lm.model), triples, config, Path(folder), save_every=config.steps)
    return trl_runs.Run(
        [row["loss"] for row in history], [row["seconds"] for row in history], time.perf_counter() - start
    )


def theirs(
    lm: models.LanguageModel,
    triples: list[dpo.Triple],
    config: dpo.DPOConfig,
    *,
    precompute: bool,
    gradient_checkpointing: bool,
) -> trl_runs.Run:
    with tempfile.TemporaryDirectory() as folder:
        return trl_runs.train(
            lm.model,
            lm.tokenizer,
            triples,
            config,
            Path(folder),
            precompute=precompute,
            gradient_checkpointing=gradient_checkpointing,
        )


def main(
    steps: Annotated[int, typer.Option(min=UNTIMED + 1)] = 20,
    model: str = models.EMBEDDED,
    batch: int = 8,
    bf16: Annotated[bool, typer.Option(help="Also time bf16 autocast, ours and TRL's.")] = True,
    out: Annotated[Path | None, typer.Option(help="Write the JSON here, too.")] = None,
) -> None:
    lm = models.load(model)
    config = dpo.DPOConfig(steps=steps, batch_size=batch, precision="no")
    half = dataclasses.replace(config, precision="bf16")
    triples = dpo.encode_pairs(lm.tokenizer, some_pairs(), config.max_prompt_tokens, config.max_new_tokens)[
        : steps * batch
    ]
    runs = {
        "ours, fp32": lambda c=config: ours(lm, triples, c),
        "TRL, fp32, reference in the loop": lambda c=config: theirs(
            lm, triples, c, precompute=False, gradient_checkpointing=True
        ),
        "TRL, fp32, reference in the loop, no checkpointing": lambda c=config: theirs(
            lm, triples, c, precompute=False, gradient_checkpointing=False
        ),
        "TRL, fp32, precomputed": lambda c=config: theirs(
            lm, triples, c, precompute=True, gradient_checkpointing=True
        ),
        "TRL, fp32, precomputed, no checkpointing": lambda c=config: theirs(
            lm, triples, c, precompute=True, gradient_checkpointing=False
        ),
    }
    if bf16:
        runs |= {
            "ours, bf16": lambda c=half: ours(lm, triples, c),
            "TRL, bf16, reference in the loop (its defaults)": lambda c=half: theirs(
                lm, triples, c, precompute=False, gradient_checkpointing=True
            ),
            "TRL, bf16, precomputed, no checkpointing": lambda c=half: theirs(
                lm, triples, c, precompute=True, gradient_checkpointing=False
            ),
        }
    warm = dataclasses.replace(config, steps=1)
    ours(lm, triples, warm)
    theirs(lm, triples, warm, precompute=False, gradient_checkpointing=True)

    results = {}
    for name, run in runs.items():
        measured = run()
        results[name] = {
            "seconds_per_step": statistics.median(measured.seconds[UNTIMED:]),
            "total_seconds": measured.total,
            "losses": measured.losses,
        }
        print(
            f"done: {name}, {results[name]['seconds_per_step']:.3f} s per step", file=sys.stderr, flush=True
        )
    for name, result in results.items():
        fastest = results["ours, bf16" if "bf16" in name else "ours, fp32"]
        result["times_ours"] = result["seconds_per_step"] / fastest["seconds_per_step"]
        result["total_times_ours"] = result["total_seconds"] / fastest["total_seconds"]
        result["max_loss_difference"] = max(
            abs(a - b) for a, b in zip(result["losses"], fastest["losses"], strict=True)
        )

    print(f"{'':52}{'s/step':>8}{'× ours':>8}{'total s':>9}{'× ours':>8}{'max |Δloss|':>13}")
    for name, r in results.items():
        numbers = f"{r['seconds_per_step']:8.3f}{r['times_ours']:8.2f}{r['total_seconds']:9.1f}"
        numbers += f"{r['total_times_ours']:8.2f}{r['max_loss_difference']:13.1e}"
        print(f"{name:52}{numbers}")
    about = {
        "model": model,
        "steps": steps,
        "batch": batch,
        "pairs": len(triples),
        "device": str(lm.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "trl": trl.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    text = json.dumps({**about, "results": results}, indent=1)
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
