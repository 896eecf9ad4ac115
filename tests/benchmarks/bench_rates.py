"""Seconds and GFLOP/s of what chapters do with a model: the rates that ``companion plan`` scales.

Run with ``python tests/benchmarks/bench_rates.py [--repeat 5] [--out rates.json]``; medians, fp32, the
embedded model. *CPU seconds* are those of the process: on one thread (``OMP_NUM_THREADS=1``) they say what a
core needs even if others are at work. FLOPs are those of matrix products, as torch counts them.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from report import show
from torch.utils.flop_counter import FlopCounterMode

from companion import profiles, toxicity
from companion.data import by_profile
from companion.lm import generation, models
from companion.mechanism import dpo, pairs, pplm, probe

PROMPTS, WINDOW, TEXTS = 64, 512, 100


def measured(work: Callable[[], object], repeat: int) -> dict[str, float]:
    """Median seconds of some work, on the clock and of the CPU; in a call before, its FLOPs are counted."""
    with FlopCounterMode(display=False) as counter:
        work()
    clock, cpu = list[float](), list[float]()
    for _ in range(repeat):
        begun = time.perf_counter(), time.process_time()
        work()
        clock.append(time.perf_counter() - begun[0])
        cpu.append(time.process_time() - begun[1])
    print(f"measured: {cpu[0]:.2f} s of the CPU", file=sys.stderr, flush=True)
    seconds, of_cpu = statistics.median(clock), statistics.median(cpu)
    rate = counter.get_total_flops() / 1e9 / of_cpu
    return {"seconds": seconds, "cpu_seconds": of_cpu, "gflop_per_cpu_second": rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    profile = profiles.load("embedded")
    lm = models.load(profile.model)
    prompts = by_profile.prompts(profile, "dev").prompt.tolist()[:PROMPTS]
    lengths = {"new_tokens": profile.new_tokens, "max_prompt_tokens": profile.max_prompt_tokens}
    window = torch.randint(1000, 40000, (2, WINDOW), generator=torch.Generator().manual_seed(0))
    triples = dpo.encode_pairs(lm.tokenizer, pairs.load(profile, lm, None, None)[:4], 32, 20)
    settings = pplm.PPLM(iterations=2)
    direction = torch.randn(lm.model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    fitted = probe.Probe(direction, torch.zeros(()), lm.n_layers - 1)
    ids = [row[:32] for row in lm.tokenizer(prompts)["input_ids"]]
    policy, config = copy.deepcopy(lm.model), dpo.DPOConfig(batch_size=4, steps=3)

    def learn() -> None:
        with tempfile.TemporaryDirectory() as folder:
            dpo.train(policy, triples, config, Path(folder), save_every=config.steps)

    def steer() -> None:
        pplm.sample(lm, fitted, ids, settings, toxic=True, new_tokens=2, seed=0)

    texts = [text[:100] for text in by_profile.comments(profile, "dev").text.tolist()[:TEXTS]]
    scorers = [toxicity.load(name) for name in ("embedded", "second")]
    with torch.inference_mode():
        found = {
            "reading 1,024 tokens": measured(lambda: lm.model(window), given.repeat),
            f"writing 20 tokens after {PROMPTS} prompts": measured(
                lambda: generation.generate(lm, prompts, **lengths), given.repeat
            ),
            f"scoring {TEXTS} texts, both scorers": measured(
                lambda: [scorer(texts) for scorer in scorers], given.repeat
            ),
        }
    found["3 DPO steps of 4 pairs, and the reference"] = measured(learn, given.repeat)
    found[f"4 gradient steps of PPLM, {PROMPTS} prompts"] = measured(steer, given.repeat)
    about = {"threads": torch.get_num_threads(), "torch": torch.__version__, "load": os.getloadavg()[0]}
    show(about | {"found": found}, given.out)


if __name__ == "__main__":
    main()
