"""Rewriting 64 sentences of 15 words with the shipped adapters: seconds, and peak memory of the process.

Run with ``python tests/benchmarks/bench_rewriting.py [--sentences 64]``.
"""

from __future__ import annotations

import argparse
import threading
import time

import psutil
import torch

from companion import profiles
from companion.data import by_profile
from companion.lm import models
from companion.marco.experts import loading
from companion.marco.rewriting.rewriter import Rewriter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=64)
    asked = parser.parse_args()
    experts = loading.shipped(models.load(models.EMBEDDED))
    pool = by_profile.toxic_sentences(profiles.load("embedded"), "eval")
    long = [
        " ".join(text.split()[:15]) for rows in pool.values() for text in rows.text if len(text.split()) >= 15
    ]
    texts = [
        long[i % len(long)] + "!" * (i // len(long)) for i in range(asked.sentences)
    ]  # no sentence twice
    rewriter = Rewriter(experts.denoiser, experts.settings)
    rewriter(texts[:2])
    peak = watched()
    started = time.perf_counter()
    found = rewriter(texts)
    seconds = time.perf_counter() - started
    masked = sum(bool(rewrite.masked) for rewrite in found)
    print(
        f"{len(texts)} sentences of 15 words, {masked} with a mask: "
        f"{seconds:.1f} s on {torch.get_num_threads()} threads"
    )
    print(f"peak memory {max(peak) / 2**30:.2f} GiB, weights in memory {megabytes(experts):.0f} MB")


def watched() -> list[int]:
    """Bytes that this process holds, every 20 ms from now on: not every system keeps a peak."""
    found, process = [], psutil.Process()

    def watch() -> None:
        while True:
            found.append(process.memory_info().rss)
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    return found


def megabytes(experts: loading.Experts) -> float:
    """Size of the model with its three adapters."""
    return sum(p.numel() * p.element_size() for p in experts.denoiser.model.parameters()) / 1e6


if __name__ == "__main__":
    main()
