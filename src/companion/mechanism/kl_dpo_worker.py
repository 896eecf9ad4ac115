"""What each process of a shared DPO training with the KL term does.

:func:`companion.mechanism.kl_dpo.trained` starts it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from companion.lm.sharding import Sharded
from companion.mechanism import shared_training
from companion.mechanism.dpo import DPOConfig, Triple
from companion.mechanism.kl_dpo import KLConfig, train


def main(folder: Path) -> None:
    """Train as one of several; all share the reference, too."""

    def run(team: Sharded, model: PreTrainedModel, job: dict[str, Any], progress: str | None) -> list[dict]:
        triples = [Triple(*row) for row in job["triples"]]
        config = KLConfig(**{**job["config"], "dpo": DPOConfig(**job["config"]["dpo"])})
        reference = shared_training.load(folder)
        return train(model, reference, triples, config, folder, team=team, progress=progress)

    shared_training.work(folder, lambda job: job["config"]["dpo"]["precision"], run)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
