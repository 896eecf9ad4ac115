"""A training that several processes share: given to them in a folder, and what they leave there.

The process that wants a model calls :func:`start`; each of those that train calls :func:`work`. What they
need stands in files, so that nothing but the folder goes from one to the others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, PreTrainedModel

from companion import store
from companion.lm import kernels, processes, sharding
from companion.lm.models import LanguageModel, quiet, usable_cuda
from companion.lm.sharding import Sharded

JOB, START, HISTORY = "job.json", "start", "history.json"  # what they are given, and leave


def start(module: str, lm: LanguageModel, job: dict[str, Any], folder: Path, what: str) -> None:
    """Train ``lm`` by running a module in several processes; ``folder`` has the model and its history then.

    Parameters
    ----------
    job
        What the module needs besides the model; it goes through JSON.
    what
        The name of the training, for progress and failures.
    """
    (folder / JOB).write_text(json.dumps({**job, "progress": what}), encoding="utf-8")
    lm.model.save_pretrained(folder / START)
    processes.launch(module, folder, what)
    (folder / JOB).unlink()
    shutil.rmtree(folder / START)


def work(
    folder: Path,
    precision: Callable[[dict[str, Any]], str],
    train: Callable[[Sharded, PreTrainedModel, dict[str, Any], str | None], list[dict]],
) -> None:
    """Train as one of several; the first process shows progress and leaves the result.

    ``train`` gets its team, the model to train, the job and what progress is called, and returns the
    history.
    """
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    if not usable_cuda():
        kernels.install()
    team = Sharded(precision(job))
    model = load(folder)
    history = train(team, model, job, job["progress"] if team.index == 0 else None)
    weights = sharding.whole(model)
    if team.index == 0:
        trained = load(folder)
        trained.load_state_dict(weights)
        trained.save_pretrained(folder)
        with store.replacing(folder / HISTORY) as fresh:
            fresh.write_text(json.dumps(history), encoding="utf-8")
    dist.destroy_process_group()


def load(folder: Path) -> PreTrainedModel:
    """The model to begin with, on the CPU: each layer goes to a device with its part only."""
    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder / START, use_safetensors=True, dtype=torch.float32)
