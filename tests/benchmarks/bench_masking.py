"""Scores of every word: packed tries against one word of one sentence at a time, same model and precision.

Run with ``python tests/benchmarks/bench_masking.py [--sentences 200] [--alone 10]``; the slow way is timed
on the first ``--alone`` sentences. The divergence is the published score; the log odds with every third
content word blanked at once are the score of the shipped settings. Adapters have random weights: the time
does not depend on them.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import numpy as np
import torch

from companion import profiles
from companion.data import by_profile
from companion.lm import models
from companion.marco.denoisers.causal import PrefixDenoiser
from companion.marco.denoisers.protocol import ANTI_EXPERT, BASE, EXPERT
from companion.marco.experts import adapter_training
from companion.marco.rewriting import masking, words


def one_at_a_time(denoiser: PrefixDenoiser, sentences: list[words.Sentence]) -> list[np.ndarray]:
    """As one would write it first: for each word read the sentence with its blank once, then write with
    either adapter."""
    found = []
    for sentence in sentences:
        scores = np.full(len(sentence.words), np.nan)
        for j, word in enumerate(sentence.words):
            if word.maskable:
                source = torch.tensor([denoiser.opened(sentence.masked([j], denoiser.mask_id))])
                target = torch.tensor([[denoiser.separator_id, *sentence.ids[: word.tokens.start]]])
                with torch.inference_mode():
                    with denoiser.model.disable_adapter():
                        read = denoiser.model(input_ids=source, use_cache=True).past_key_values
                    caches = (read, copy.deepcopy(read))
                    logits = [
                        denoiser.model(
                            input_ids=target, past_key_values=cache, adapter_names=[adapter]
                        ).logits[0, -1]
                        for adapter, cache in zip((EXPERT, ANTI_EXPERT), caches, strict=True)
                    ]
                scores[j] = masking.jensen_shannon(*logits).item()
        found.append(scores)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--alone", type=int, default=10)
    asked = parser.parse_args()
    profile = profiles.load("embedded")
    denoiser = adapter_training.attach(models.load(profile.model), adapter_training.AdapterConfig())
    for role in (EXPERT, ANTI_EXPERT):
        denoiser.model.add_adapter(role, denoiser.model.peft_config[BASE])
    for name, parameter in denoiser.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    denoiser.model.eval()
    texts = [" ".join(text.split()[:15]) for text in by_profile.comments(profile, "train").text][
        : asked.sentences
    ]
    sentences = [words.split(denoiser, text) for text in texts]
    masking.divergences(denoiser, sentences[:2])
    packed, ours = timed(lambda: masking.divergences(denoiser, sentences), len(sentences))
    alone, theirs = timed(lambda: one_at_a_time(denoiser, sentences[: asked.alone]), asked.alone)
    _, settings = timed(
        lambda: masking.divergences(denoiser, sentences, masking.log_odds, masking.EVERY), len(sentences)
    )
    largest = max(np.nanmax(np.abs(a - b), initial=0) for a, b in zip(packed, alone, strict=False))
    print(
        f"{np.mean([len(s.words) for s in sentences]):.1f} words a sentence, "
        f"{torch.get_num_threads()} threads; seconds a sentence:"
    )
    print(
        f"one word at a time {theirs:.2f}, packed {ours:.2f}: "
        f"{theirs / ours:.1f} times as fast; largest difference {largest:.1e}"
    )
    print(
        f"every third content word at once (another score, that of the settings) {settings:.2f}: "
        f"{theirs / settings:.1f} times as fast"
    )


def timed(work: Callable[[], list[np.ndarray]], sentences: int) -> tuple[list[np.ndarray], float]:
    """What some work gives, and its seconds a sentence."""
    started = time.perf_counter()
    return work(), (time.perf_counter() - started) / sentences


if __name__ == "__main__":
    main()
