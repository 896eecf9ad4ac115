"""What neurons do on a text: while a model writes its own, and while it reads a given one.

The papers let each model write and compare activations on *different* texts. Reading the same
continuation with both models separates what the weights change from what the text changes.
Results are kept in the store, because chapters 4 to 8 share them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from companion import store
from companion.lm import anatomy, generation, tokens
from companion.lm.activations import Recorder, Sums, Watcher
from companion.lm.generation import Generated
from companion.lm.models import LanguageModel


@dataclass(frozen=True)
class Task:
    """Prompts and the lengths they are cut and continued to."""

    prompts: Sequence[str]
    new_tokens: int
    max_prompt_tokens: int
    batch_size: int = 64


def write(
    lm: LanguageModel, task: Task, *, through_norm: bool = True, progress: str | None = None
) -> tuple[Generated, Sums]:
    """Let a model continue the prompts greedily; return its text and activation sums."""

    def build(folder: Path) -> None:
        recorder = Recorder(lm, len(task.prompts), through_norm=through_norm)
        made = generation.generate(
            lm,
            task.prompts,
            new_tokens=task.new_tokens,
            max_prompt_tokens=task.max_prompt_tokens,
            batch_size=task.batch_size,
            recorder=recorder,
            progress=progress,
        )
        save_file(
            {"ids": made.ids, "mask": made.mask, "total": recorder.total, "count": recorder.count},
            folder / "written.safetensors",
        )
        (folder / "texts.json").write_text(json.dumps(made.texts), encoding="utf-8")

    folder = store.artifact("activations", inputs_of(lm, task) | _norm_counts(lm, through_norm), build)
    stored = load_file(folder / "written.safetensors")
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    sums = Sums(stored["total"], stored["count"], len(task.prompts))
    return Generated(stored["ids"], stored["mask"], texts), sums


def read(
    lm: LanguageModel, task: Task, text: Generated, *, through_norm: bool = True, progress: str | None = None
) -> Sums:
    """Let a model read prompts with the given continuations; sums over the positions that predict them."""

    def build(folder: Path) -> None:
        recorder = Recorder(lm, len(task.prompts), through_norm=through_norm)
        watch(lm, task, text, recorder, progress)
        save_file({"total": recorder.total, "count": recorder.count}, folder / "read.safetensors")

    inputs = inputs_of(lm, task, text) | _norm_counts(lm, through_norm)
    stored = load_file(store.artifact("activations", inputs, build) / "read.safetensors")
    return Sums(stored["total"], stored["count"], len(task.prompts))


@torch.inference_mode()
def watch(
    lm: LanguageModel, task: Task, text: Generated, watcher: Watcher, progress: str | None = None
) -> None:
    """Let a model read prompts with the given continuations while a watcher adds up."""
    rows = tokens.encode(lm.tokenizer, task.prompts, task.max_prompt_tokens)
    for chosen in tqdm(tokens.by_length(rows, task.batch_size), desc=progress, disable=progress is None):
        mask = text.mask[chosen]
        batch = teacher_forced([rows[i] for i in chosen], text.ids[chosen], mask)
        with watcher.watching(chosen):
            watcher.count_last(mask.to(lm.device))
            lm.model(
                input_ids=batch.ids.to(lm.device),
                attention_mask=batch.mask.long().to(lm.device),
                position_ids=batch.positions.to(lm.device),
                use_cache=False,
                logits_to_keep=1,
            )


def teacher_forced(
    prompts: Sequence[Sequence[int]], ids: Int[Tensor, "batch new"], mask: Bool[Tensor, "batch new"]
) -> tokens.Batch:
    """Prompts (padded on the left) with their continuations, without the last token, which predicts nothing.

    As many columns as a continuation is long, from the last prompt token on, predict it; ``mask`` says which
    of them predict a token that was written.
    """
    left = tokens.pad(prompts, "left")
    return tokens.Batch(torch.cat([left.ids, ids[:, :-1]], 1), torch.cat([left.mask, mask[:, :-1]], 1))


def inputs_of(lm: LanguageModel, task: Task, text: Generated | None = None) -> dict[str, str]:
    """What sums depend on, for the store: model, task, and the text that the model was given to read."""
    prompts = {"prompts": list(task.prompts), "new": task.new_tokens, "cut": task.max_prompt_tokens}
    inputs = {"model": lm.fingerprint, "task": store.key_of(prompts)}
    if text is None:
        return inputs
    return inputs | {"text": store.key_of({"ids": text.ids.tolist(), "mask": text.mask.tolist()})}


def _norm_counts(lm: LanguageModel, through_norm: bool) -> dict[str, bool]:
    """The same for ``through_norm``, which does not count without a norm behind the MLP."""
    return {"through_norm": through_norm and anatomy.output_norm_eps(lm) is not None}
