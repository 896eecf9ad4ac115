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
from companion.lm.activations import Recorder, Sums
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
    """Let a model continue the prompts greedily; return its text and activation sums, from the store or made now."""

    def build(folder: Path) -> None:
        recorder = Recorder(lm, len(task.prompts), through_norm=through_norm)
        settings = {
            "new_tokens": task.new_tokens,
            "max_prompt_tokens": task.max_prompt_tokens,
            "batch_size": task.batch_size,
        }
        made = generation.generate(lm, task.prompts, recorder=recorder, progress=progress, **settings)
        save_file(
            {"ids": made.ids, "mask": made.mask, "total": recorder.total, "count": recorder.count},
            folder / "written.safetensors",
        )
        (folder / "texts.json").write_text(json.dumps(made.texts), encoding="utf-8")

    inputs = {"model": lm.fingerprint, "task": _key(task), "through_norm": _matters(lm, through_norm)}
    folder = store.artifact("activations", inputs, build)
    stored = load_file(folder / "written.safetensors")
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    return Generated(stored["ids"], stored["mask"], texts), Sums(
        stored["total"], stored["count"], len(task.prompts)
    )


def read(
    lm: LanguageModel, task: Task, text: Generated, *, through_norm: bool = True, progress: str | None = None
) -> Sums:
    """Let a model read prompts with the given continuations; return sums over the positions that predict them."""

    def build(folder: Path) -> None:
        recorder = Recorder(lm, len(task.prompts), through_norm=through_norm)
        _pass(lm, task, text, recorder, progress)
        save_file({"total": recorder.total, "count": recorder.count}, folder / "read.safetensors")

    content = store.key_of({"ids": text.ids.tolist(), "mask": text.mask.tolist()})
    inputs = {
        "model": lm.fingerprint,
        "task": _key(task),
        "text": content,
        "through_norm": _matters(lm, through_norm),
    }
    folder = store.artifact("activations", inputs, build)
    stored = load_file(folder / "read.safetensors")
    return Sums(stored["total"], stored["count"], len(task.prompts))


def teacher_forced(
    prompts: Sequence[Sequence[int]], ids: Int[Tensor, "batch new"], mask: Bool[Tensor, "batch new"]
) -> tuple[tokens.Batch, Bool[Tensor, "batch new"]]:
    """Prompts (padded on the left) with their continuations, and which of the last columns predict a continuation token.

    The last continuation token predicts nothing that was written, so it is left out: as many
    columns as the continuation is long, from the last prompt token on.
    """
    left = tokens.pad(prompts, "left")
    return tokens.Batch(torch.cat([left.ids, ids[:, :-1]], 1), torch.cat([left.mask, mask[:, :-1]], 1)), mask


@torch.inference_mode()
def _pass(lm: LanguageModel, task: Task, text: Generated, recorder: Recorder, progress: str | None) -> None:
    rows = tokens.encode(lm.tokenizer, task.prompts, task.max_prompt_tokens)
    for chosen in tqdm(tokens.by_length(rows, task.batch_size), desc=progress, disable=progress is None):
        batch, predicts = teacher_forced([rows[i] for i in chosen], text.ids[chosen], text.mask[chosen])
        with recorder.watching(chosen):
            recorder.count_last(predicts.to(lm.device))
            lm.model(
                input_ids=batch.ids.to(lm.device),
                attention_mask=batch.mask.long().to(lm.device),
                position_ids=batch.positions.to(lm.device),
                use_cache=False,
                logits_to_keep=1,
            )


def _matters(lm: LanguageModel, through_norm: bool) -> bool:
    """Without a norm behind the MLP both settings give the same sums, and one artifact does for both."""
    return through_norm and anatomy.mlp_norms(lm) is not None


def _key(task: Task) -> str:
    return store.key_of(
        {"prompts": list(task.prompts), "new": task.new_tokens, "cut": task.max_prompt_tokens}
    )
