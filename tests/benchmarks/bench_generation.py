"""Seconds of greedy decoding with all layers' neuron activations summed, against plain Hugging Face
``generate``.

    python tests/benchmarks/bench_generation.py

Both decode the same left-padded batch in fp32; runs alternate and medians are compared. The ids
must be equal up to each row's end. Also timed: scoring 256 continuations with the offline scorer.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from report import show

from companion import profiles, toxicity
from companion.data import by_profile
from companion.lm import generation, models, tokens
from companion.lm.activations import Recorder


def seconds(call) -> tuple[float, object]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def main(
    prompts: int = 64,
    new_tokens: int = 20,
    model: str = models.EMBEDDED,
    repetitions: Annotated[int, typer.Option(min=3)] = 5,
    continuations: int = 256,
    out: Annotated[Path | None, typer.Option(help="Write the JSON here, too.")] = None,
) -> None:
    lm = models.load(model)
    texts = by_profile.prompts(profiles.load("embedded"), limit=prompts).prompt.tolist()
    batch = tokens.pad(tokens.encode(lm.tokenizer, texts, 32), "left")
    ids, mask = batch.ids.to(lm.device), batch.mask.long().to(lm.device)
    options = {
        "do_sample": False,
        "max_new_tokens": new_tokens,
        "pad_token_id": 0,
        "eos_token_id": lm.eos_ids,
    }
    recorders: list[Recorder] = []

    def ours(recorder: Recorder | None = None) -> generation.Generated:
        return generation.generate(
            lm, texts, new_tokens=new_tokens, max_prompt_tokens=32, recorder=recorder, batch_size=prompts
        )

    def recorded() -> generation.Generated:
        recorders.append(Recorder(lm, len(texts)))
        return ours(recorders[-1])

    calls = {
        "ours, with activations": recorded,
        "ours, without": ours,
        "Hugging Face": lambda: lm.model.generate(ids, attention_mask=mask, **options)[
            :, ids.shape[1] :
        ].cpu(),
    }
    results = {name: call() for name, call in calls.items()}  # warm-up
    for name in ("ours, with activations", "ours, without"):
        run, theirs = results[name], results["Hugging Face"]
        width = theirs.shape[1]  # Hugging Face stops when every row has ended
        assert not run.mask[:, width:].any()
        kept = run.mask[:, :width]
        assert torch.equal(run.ids[:, :width][kept], theirs[kept]), f"other ids than Hugging Face: {name}"
    assert recorders[0].sums.count.sum() == results["ours, with activations"].mask.sum()
    assert (recorders[0].sums.mean != 0).any(-1).all()

    times: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(repetitions):
        for name in list(calls) if repetition % 2 else reversed(calls):  # alternate also who comes first
            times[name].append(seconds(calls[name])[0])
        print(f"repetition {repetition + 1} of {repetitions}", file=sys.stderr, flush=True)
    median = {name: statistics.median(values) for name, values in times.items()}

    scorer = toxicity.load("embedded")
    made = (results["ours, with activations"].texts * continuations)[:continuations]
    scored = [f"{text} {i}" for i, text in enumerate(made)]  # no text twice
    scorer(scored[:32])
    scoring = statistics.median(seconds(lambda: scorer(scored))[0] for _ in range(3))

    print(f"{'':26}{'median s':>10}{'min s':>9}{'× HF':>8}")
    for name, values in times.items():
        print(f"{name:26}{median[name]:10.3f}{min(values):9.3f}{median[name] / median['Hugging Face']:8.2f}")
    print(f"{'scoring':26}{scoring:10.3f}  ({continuations / scoring:.0f} texts per second)")
    result = {
        "model": model,
        "prompts": prompts,
        "new_tokens": new_tokens,
        "device": str(lm.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": times,
        "ratio_with_activations": median["ours, with activations"] / median["Hugging Face"],
        "ratio_without": median["ours, without"] / median["Hugging Face"],
        "scoring": {"texts": continuations, "seconds": scoring},
    }
    show(result, out)


if __name__ == "__main__":
    typer.run(main)
