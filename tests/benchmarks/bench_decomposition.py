"""Seconds and memory of decomposing a model into neurons, beside plain decoding and beside full caches;
seconds of a sweep.

    python tests/benchmarks/bench_decomposition.py --out decomposition.json

On the CPU, in fp32, greedily. Every run has a process of its own (this script with ``--worker``),
which loads the model, decodes 8 prompts to warm up and runs once. Runs are long, so each is made
once; ``--repetitions`` alternates variants and takes medians. The machine must be quiet.

*Two passes* is what one writes first: decode with Hugging Face ``generate``, read prompts with
continuations in TransformerBridge under ``run_with_cache``, as TransformerLens gives it, keep each
token's activations, average; batches as the texts come. *Sorted* is the same with our decoding and
texts of similar length together. Building the bridge is left out of
its seconds, but not out of the sweep's, and so is the draft that its interventions are written from. There
the plain pass is made three times, by another copy.

Memory is the high-water mark of resident memory above the loaded model (Linux), and is judged in
runs of its own, in which glibc gives large blocks back at once: what it holds on to otherwise varies
by 100 MB from run to run.
"""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from report import show
from transformer_lens import TransformerBridge

from companion import profiles
from companion.data import by_profile
from companion.lm import anatomy, generation, models, recording, tokens
from companion.lm.activations import Recorder
from companion.lm.drafts import Drafts
from companion.lm.generation import Generated
from companion.lm.models import LanguageModel
from companion.mechanism import neurons
from companion.mechanism.interventions import AblateValues, Intervention, Patch, Positions, applied

MAX_PROMPT_TOKENS, BATCH = 32, 64
NAMES = {
    "plain": "plain decoding",
    "recorded": "ours: with activations, projected",
    "two-pass": "two passes, full caches",
    "two-pass-sorted": "the same, sorted by length",
}


def texts_of(count: int) -> list[str]:
    """The embedded evaluation prompts; beyond their number the same again, numbered."""
    prompts = by_profile.prompts(profiles.load("embedded"), limit=count).prompt.tolist()
    return [
        prompts[i % len(prompts)] + (f" {i // len(prompts)}" if i >= len(prompts) else "")
        for i in range(count)
    ]


def seconds(call) -> tuple[float, object]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def resident(field: str = "VmRSS") -> float:
    """Resident memory of this process in MB: now, or at most since the last reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / 1e6


def written(
    lm: LanguageModel, texts: list[str], new_tokens: int, recorder: Recorder | None = None
) -> Generated:
    return generation.generate(
        lm,
        texts,
        new_tokens=new_tokens,
        max_prompt_tokens=MAX_PROMPT_TOKENS,
        batch_size=BATCH,
        recorder=recorder,
    )


def drafted(lm: LanguageModel, texts: list[str], new_tokens: int) -> Drafts:
    return Drafts(lm, texts, new_tokens=new_tokens, max_prompt_tokens=MAX_PROMPT_TOKENS, batch_size=128)


@torch.no_grad()
def written_by_transformers(lm: LanguageModel, texts: list[str], new_tokens: int) -> Generated:
    """The same continuations by Hugging Face ``generate``, batches as the texts come."""
    rows = tokens.encode(lm.tokenizer, texts, MAX_PROMPT_TOKENS)
    ids, mask = (
        torch.zeros(len(rows), new_tokens, dtype=torch.long),
        torch.zeros(len(rows), new_tokens, dtype=torch.bool),
    )
    for start in range(0, len(rows), BATCH):
        batch = tokens.pad(rows[start : start + BATCH], "left")
        options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
        new = lm.model.generate(batch.ids, attention_mask=batch.mask.long(), **options)[
            :, batch.ids.shape[1] :
        ]
        ended = torch.isin(new, torch.tensor(lm.eos_ids)).cumsum(-1)
        alive = (
            ended - torch.isin(new, torch.tensor(lm.eos_ids)).long()
        ) == 0  # up to and with the first end
        ids[start : start + BATCH, : new.shape[1]], mask[start : start + BATCH, : new.shape[1]] = (
            new * alive,
            alive,
        )
    return Generated(ids, mask, [])


@torch.no_grad()
def cached_mean(
    lm: LanguageModel, view, texts: list[str], made: Generated, batch_size: int, by_length: bool
) -> tuple[torch.Tensor, float]:
    """Mean activations by way of full caches, and the MB of activations kept."""
    rows, kept = tokens.encode(lm.tokenizer, texts, MAX_PROMPT_TOKENS), []
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]) if by_length else i)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        predicts = made.mask[chosen]
        batch = recording.teacher_forced([rows[i] for i in chosen], made.ids[chosen], predicts)
        _, cache = view.run_with_cache(batch.ids, attention_mask=batch.mask.long())
        last = predicts.shape[1]
        kept.append(
            torch.stack(
                [cache[f"blocks.{layer}.mlp.hook_post"][:, -last:][predicts] for layer in range(lm.n_layers)],
                1,
            )
        )
        del _, cache  # or there would be two during the next pass
    return sum(part.double().sum(0) for part in kept) / made.mask.sum(), sum(
        part.nbytes for part in kept
    ) / 1e6


def decompose(variant: str, lm: LanguageModel, texts: list[str], new_tokens: int, cache_batch: int) -> dict:
    direction = torch.nn.functional.normalize(
        torch.randn(lm.model.config.hidden_size, generator=torch.Generator().manual_seed(0)), dim=0
    )
    recorder = Recorder(lm, len(texts)) if variant == "recorded" else None
    spent, made = seconds(
        lambda: (
            written_by_transformers(lm, texts, new_tokens)
            if variant == "two-pass"
            else written(lm, texts, new_tokens, recorder)
        )
    )
    found = {"ids": made.ids, "mask": made.mask, "decoding_seconds": spent}
    if recorder:
        more, projections = seconds(lambda: recorder.sums.mean * neurons.projected(lm, direction))
        assert torch.isfinite(projections).all()
        return found | {
            "mean": recorder.sums.mean,
            "held_mb": recorder.total.nbytes / 1e6,
            "seconds": spent + more,
        }
    if variant.startswith("two-pass"):
        before = resident()
        bridging, view = seconds(
            lambda: TransformerBridge.boot_transformers(lm.name, hf_model=lm.model, tokenizer=lm.tokenizer)
        )
        found |= {"bridging_seconds": bridging, "bridging_mb": resident() - before}
        more, (mean, held) = seconds(
            lambda: cached_mean(lm, view, texts, made, cache_batch, variant == "two-pass-sorted")
        )
        last, _ = seconds(lambda: mean * neurons.projected(lm, direction))
        return found | {"mean": mean, "held_mb": held, "seconds": spent + more + last}
    return found | {"seconds": spent}


def some_interventions(shape: tuple[int, int], count: int) -> Iterator[Intervention]:
    """Random sets of neurons, growing geometrically to a quarter of all; ablated and patched with zeros in
    turn."""
    order, most = (
        torch.randperm(shape[0] * shape[1], generator=torch.Generator().manual_seed(0)),
        shape[0] * shape[1] // 4,
    )
    for i in range(count):
        chosen = torch.zeros(shape, dtype=torch.bool)
        chosen.view(-1)[order[: round(most ** ((i + 1) / count))]] = True
        yield Patch(chosen, torch.zeros(shape)) if i % 2 else AblateValues(chosen)


def sweep(lm: LanguageModel, texts: list[str], new_tokens: int, count: int) -> dict:
    plain_lm = models.load(lm.name)
    written(plain_lm, texts[:8], new_tokens)
    plain, swept = [seconds(lambda: written(plain_lm, texts, new_tokens))], []
    bridging, view = seconds(lambda: anatomy.bridge(lm))
    drafting, drafts = seconds(lambda: drafted(lm, texts, new_tokens))
    same = drafts.plain
    assert torch.equal(same.ids, plain[0][1].ids), "the bridged model writes otherwise"
    for i, intervention in enumerate(some_interventions((view.cfg.n_layers, view.cfg.d_mlp), count)):
        if i == count // 2:
            plain.append(seconds(lambda: written(plain_lm, texts, new_tokens)))

        whole = isinstance(intervention, AblateValues)  # as in chapters 4 and 5

        def run(intervention: Intervention = intervention, whole: bool = whole) -> Generated:
            with applied(view, intervention, positions=Positions.ALL):
                return drafts.variant(whole=whole)

        swept.append(seconds(run))
        if i % 5 == 4:  # some decoded as usual, besides the clock
            with applied(view, intervention, positions=Positions.ALL if whole else Positions.GENERATED):
                usual = written(lm, texts, new_tokens)
            assert torch.equal(usual.ids, swept[-1][1].ids), "drafts changed tokens"
        print(f"intervention {i + 1} of {count}: {swept[-1][0]:.1f} s", file=sys.stderr, flush=True)
    plain.append(seconds(lambda: written(plain_lm, texts, new_tokens)))
    assert not torch.equal(swept[-1][1].ids, same.ids), "interventions changed nothing"
    return {
        "plain_seconds": [spent for spent, _ in plain],
        "bridging_seconds": bridging,
        "drafting_seconds": drafting,
        "intervention_seconds": [spent for spent, _ in swept],
        "seconds": bridging + drafting + sum(spent for spent, _ in swept),
        "tokens_written_to_plain": statistics.mean(made.mask.sum().item() for _, made in swept)
        / same.mask.sum().item(),
    }


def work(
    variant: str, prompts: int, new_tokens: int, cache_batch: int, interventions: int, out: Path
) -> None:
    """One run; what it found and the memory it took go to ``out``."""
    lm, texts = models.load(models.EMBEDDED), texts_of(prompts)
    written(lm, texts[:8], new_tokens)
    gc.collect()
    Path("/proc/self/clear_refs").write_text(
        "5", encoding="utf-8"
    )  # the high-water mark starts again from what is resident now
    before = resident()
    found = (
        sweep(lm, texts, new_tokens, interventions)
        if variant == "sweep"
        else decompose(variant, lm, texts, new_tokens, cache_batch)
    )
    torch.save(found | {"model_mb": before, "peak_mb": resident("VmHWM") - before}, out)


def main(
    prompts: Annotated[int, typer.Option(min=1)] = 1199,
    new_tokens: int = 20,
    two_pass_prompts: Annotated[
        int, typer.Option(min=1, help="Prompts of the comparison with two passes.")
    ] = 128,
    cache_batch: Annotated[int, typer.Option(min=1, help="Batch size of run_with_cache.")] = 16,
    sweep_prompts: Annotated[int, typer.Option(min=8)] = 256,
    interventions: Annotated[int, typer.Option(min=1)] = 20,
    repetitions: Annotated[int, typer.Option(min=1)] = 1,
    out: Annotated[Path | None, typer.Option(help="Write the JSON here, too.")] = None,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    if worker is not None:
        return work(worker, prompts, new_tokens, cache_batch, interventions, out)

    def run(variant: str, count: int, **environment: str) -> dict:
        with tempfile.TemporaryDirectory() as folder:
            options = {
                "worker": variant,
                "prompts": count,
                "new-tokens": new_tokens,
                "cache-batch": cache_batch,
                "interventions": interventions,
            }
            arguments = [str(a) for name, value in options.items() for a in (f"--{name}", value)]
            command = [sys.executable, __file__, *arguments, "--out", f"{folder}/found.pt"]
            subprocess.run(command, check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment)
            found = torch.load(f"{folder}/found.pt")
        print(f"done: {variant}, {count} prompts, {found['seconds']:.1f} s", file=sys.stderr, flush=True)
        return found

    def compared(variants: list[str], count: int, **environment: str) -> dict[str, dict]:
        """Medians by variant; all must have written the same tokens and found the same means."""
        runs: dict[str, list[dict]] = {variant: [] for variant in variants}
        for repetition in range(repetitions):
            for variant in reversed(variants) if repetition % 2 else variants:  # alternate who comes first
                runs[variant].append(run(variant, count, **environment))
        first = {variant: found[0] for variant, found in runs.items()}
        result = {
            v: {k: statistics.median(f[k] for f in fs) for k in fs[0] if not torch.is_tensor(fs[0][k])}
            for v, fs in runs.items()
        }
        for variant, found in first.items():
            assert torch.equal(found["ids"], first["plain"]["ids"]) and torch.equal(
                found["mask"], first["plain"]["mask"]
            ), f"other tokens: {variant}"
            result[variant]["above_plain_mb"] = result[variant]["peak_mb"] - result["plain"]["peak_mb"]
            result[variant]["all_seconds"] = [f["seconds"] for f in runs[variant]]
        if "two-pass" in first:
            ours, theirs = first["recorded"]["mean"], first["two-pass"]["mean"]
            error = (
                ((ours - theirs).abs().amax(-1) / theirs.abs().amax(-1)).max().item()
            )  # each layer by its own scale
            assert error < 1e-4, f"other means, by {error:.1e}"
            result["two-pass"]["means_differ_by"] = error
        return result

    alone = compared(["plain", "recorded"], prompts)
    beside = compared(list(NAMES), two_pass_prompts)
    memory = compared(
        list(NAMES), two_pass_prompts, MALLOC_MMAP_THRESHOLD_="1000000"
    )  # blocks of 1 MB go back when freed
    swept = run("sweep", sweep_prompts)
    ours, theirs = memory["recorded"], memory["two-pass"]
    measures = {  # value, target
        "decomposing / plain decoding, seconds": (
            alone["recorded"]["seconds"] / alone["plain"]["seconds"],
            "<= 1.25",
        ),
        "decomposing, MB above plain decoding": (ours["above_plain_mb"], "< 200"),
        "two passes / ours, seconds": (beside["two-pass"]["seconds"] / beside["recorded"]["seconds"], ">= 2"),
        "two passes sorted by length / ours, seconds": (
            beside["two-pass-sorted"]["seconds"] / beside["recorded"]["seconds"],
            "none: shown for fairness",
        ),
        "two passes / ours, MB above plain": (
            theirs["above_plain_mb"] / max(ours["above_plain_mb"], ours["held_mb"]),
            ">= 10",
        ),
        "sweep / as many plain passes, seconds": (
            swept["seconds"] / (interventions * statistics.median(swept["plain_seconds"])),
            "<= 0.6",
        ),
    }
    print(f"{'':48}{'seconds':>9}{'× plain':>9}{'peak MB':>9}{'above plain':>13}")
    for title, found in (
        (f"{prompts} prompts", alone),
        (f"{two_pass_prompts} prompts", beside),
        ("for memory", memory),
    ):
        for variant, r in found.items():
            ratio = r["seconds"] / found["plain"]["seconds"]
            numbers = f"{r['seconds']:9.1f}{ratio:9.2f}{r['peak_mb']:9.0f}{r['above_plain_mb']:13.0f}"
            print(f"{f'{title}, {NAMES[variant]}':48}{numbers}")
    print(f"{f'{sweep_prompts} prompts, {interventions} interventions':48}{swept['seconds']:9.1f}")
    print(
        "\n".join(f"{name:48}{value:9.2f}  (target {target})" for name, (value, target) in measures.items())
    )
    sizes = {
        "prompts": prompts,
        "two_pass_prompts": two_pass_prompts,
        "sweep_prompts": sweep_prompts,
        "interventions": interventions,
    }
    about = {
        "model": models.EMBEDDED,
        **sizes,
        "new_tokens": new_tokens,
        "batch": BATCH,
        "cache_batch": cache_batch,
        "repetitions": repetitions,
    }
    about |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    about |= {
        "measures": {name: {"value": value, "target": target} for name, (value, target) in measures.items()}
    }
    result = about | {"decomposing": alone, "beside_two_passes": beside, "memory": memory, "sweep": swept}
    show(result, out)


if __name__ == "__main__":
    typer.run(main)
