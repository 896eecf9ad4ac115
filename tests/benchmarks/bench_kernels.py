"""What oneDNN's matrix products save beside torch's own: reading, DPO steps and writing, in one run.

Run with ``python tests/benchmarks/bench_kernels.py [--repeat 5]``; medians in seconds, the embedded model in
fp32.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch

from companion import profiles
from companion.data import by_profile
from companion.lm import generation, kernels, models
from companion.mechanism import dpo, pairs


def seconds(work: Callable[[], object], repeat: int) -> float:
    """Median time of ``work``, after one untimed call."""
    work()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    profile = profiles.load("embedded")
    with patch.object(kernels, "install"):  # at first, torch's own products
        lm = models.load(profile.model)
    config = dpo.DPOConfig(steps=10)
    triples = dpo.encode_pairs(
        lm.tokenizer,
        pairs.load(profile, lm, None, None)[:80],
        config.max_prompt_tokens,
        config.max_new_tokens,
    )
    prompts = by_profile.prompts(profile, "dev").prompt.tolist()[:64]
    window = torch.randint(1000, 40000, (2, 512), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        with tempfile.TemporaryDirectory() as folder:
            steps.extend(
                row["seconds"]
                for row in dpo.train(
                    copy.deepcopy(lm.model), triples, config, Path(folder), save_every=config.steps
                )[2:]
            )

    found = {}
    for name in ("torch's own", "oneDNN"):
        if name == "oneDNN" and kernels.install() is None:
            raise SystemExit("this is no AMD processor under Linux: torch keeps its own products")
        steps: list[float] = []
        with torch.inference_mode():
            found[name] = {
                "reading 1,024 tokens": seconds(lambda: lm.model(window), repeat),
                "writing 20 tokens after 64 prompts": seconds(
                    lambda: generation.generate(
                        lm,
                        prompts,
                        new_tokens=profile.new_tokens,
                        max_prompt_tokens=profile.max_prompt_tokens,
                    ),
                    repeat,
                ),
            }
        step()
        found[name]["DPO step, 8 pairs"] = statistics.median(steps)
    for what, slow in found["torch's own"].items():
        fast = found["oneDNN"][what]
        print(f"{what}: {fast:.2f} s, torch's own {slow:.2f} s, ratio {slow / fast:.2f}")


if __name__ == "__main__":
    main()
