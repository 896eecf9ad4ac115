"""What each process of a shared DPO training does: ``python -m torch.distributed.run … -m`` this.

:func:`companion.mechanism.dpo.trained` starts it with a folder that holds the pairs, the settings and the
model to begin with; the trained model and its history are left there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, PreTrainedModel

from companion import store
from companion.lm import kernels, sharding
from companion.lm.models import quiet, usable_cuda
from companion.mechanism.dpo import HISTORY, JOB, START, DPOConfig, Triple, train


def main(folder: Path) -> None:
    """Train as one of several; the first process leaves the result."""
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    config, triples = DPOConfig(**job["config"]), [Triple(*row) for row in job["triples"]]
    if not usable_cuda():
        kernels.install()
    team = sharding.Sharded(config.precision)
    model = _load(folder / START)
    shown = job["progress"] if team.index == 0 else None
    history = train(model, triples, config, folder, team=team, progress=shown)
    weights = sharding.whole(model)
    if team.index == 0:
        trained = _load(folder / START)
        trained.load_state_dict(weights)
        trained.save_pretrained(folder)
        with store.replacing(folder / HISTORY) as fresh:
            fresh.write_text(json.dumps(history), encoding="utf-8")
    dist.destroy_process_group()


def _load(folder: Path) -> PreTrainedModel:
    """On the CPU: each layer goes to a device with its part only."""
    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
