"""What each process of a shared DPO training does: ``python -m torch.distributed.run … -m`` this.

:func:`companion.mechanism.dpo.trained` starts it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from companion.lm.sharding import Sharded
from companion.mechanism import shared_training
from companion.mechanism.dpo import DPOConfig, Triple, train


def main(folder: Path) -> None:
    """Train as one of several."""

    def run(team: Sharded, model: PreTrainedModel, job: dict[str, Any], progress: str | None) -> list[dict]:
        triples = [Triple(*row) for row in job["triples"]]
        return train(model, triples, DPOConfig(**job["config"]), folder, team=team, progress=progress)

    shared_training.work(folder, lambda job: job["config"]["precision"], run)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
