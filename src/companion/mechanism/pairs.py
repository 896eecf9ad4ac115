"""Preference pairs by PPLM: of each prompt's continuations, one steered to be toxic is rejected.

PPLM (Dathathri et al., 2020) decodes with a gradient in the loop: at each step it moves the
cached keys and values a little in the direction that makes the probe say *toxic*, and samples
from the model that reads the moved cache, held near the original one by a KL term and by mixing
the two distributions. Lee et al. (2024, section 3.2) made their 24,576 pairs so, with the greedy
continuation as the chosen side. Many of our prompts make greedy decoding toxic; the chosen side
is therefore the less toxic of the greedy continuation and one steered *away* from toxicity.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from companion import paths, profiles, store, toxicity
from companion.data import by_profile
from companion.errors import CompanionError
from companion.lm import models, processes, tokens
from companion.lm.generation import generate
from companion.lm.models import LanguageModel
from companion.lm.recording import Task
from companion.mechanism import probe
from companion.mechanism.pplm import PPLM, steered
from companion.mechanism.probe import Probe
from companion.profiles import Profile
from companion.toxicity import Scorer


@dataclass(frozen=True)
class Pair:
    """One preference: texts of the prompt and of both continuations, with their toxicity."""

    prompt: str
    chosen: str
    rejected: str
    chosen_toxicity: float
    rejected_toxicity: float

    def swapped(self) -> Pair:
        """The opposite preference, for controls."""
        return Pair(self.prompt, self.rejected, self.chosen, self.rejected_toxicity, self.chosen_toxicity)


def make_pairs(
    lm: LanguageModel,
    probe: Probe,
    task: Task,
    scorer: Scorer,
    settings: PPLM,
    *,
    rounds: int,
    seed: int,
    margin: float,
    folder: Path,
) -> list[Pair]:
    """Up to ``rounds + 1`` pairs per prompt of the task.

    Chosen is the less toxic of the greedy continuation and one steered away from toxicity;
    rejected are ``rounds`` continuations steered to toxicity, and the greedy one, as far as they
    are more toxic than the chosen one by at least ``margin``. Prompts whose greedy continuation
    ends early are left out: all continuations have equally many tokens, so that DPO cannot
    learn a length. Steered texts are kept in ``folder``; an interrupted call goes on from there.
    """
    rows = tokens.encode(lm.tokenizer, task.prompts, task.max_prompt_tokens)
    shown = lm.tokenizer.batch_decode(rows, skip_special_tokens=True)
    greedy = generate(lm, shown, new_tokens=task.new_tokens)
    civil, *toxic = map(_writer(lm, probe, task, settings, folder), _rounds(rounds, seed))
    rejectable = [(texts, scorer(texts)) for texts in (*toxic, greedy.texts)]
    greedy_score, civil_score = rejectable[-1][1], scorer(civil)
    pairs = []
    for i, whole in enumerate(greedy.mask.all(dim=1).tolist()):
        civiler = civil_score[i] < greedy_score[i]
        chosen, low = (civil[i], civil_score[i]) if civiler else (greedy.texts[i], greedy_score[i])
        for texts, scores in rejectable:
            if whole and texts[i] != chosen and scores[i] - low >= margin:
                toxicity = round(float(low), 4), round(float(scores[i]), 4)
                pairs.append(Pair(shown[i], chosen, texts[i], *toxicity))
    return pairs


class Round(NamedTuple):
    """One steered continuation of every prompt: the name of its file, the way it is steered, its seed."""

    name: str
    toxic: bool
    seed: int


def _rounds(toxic: int, seed: int) -> list[Round]:
    return [Round("civil", False, seed), *(Round(f"toxic_{r}", True, seed + 1000 * r) for r in range(toxic))]


def _writer(
    lm: LanguageModel, probe: Probe, task: Task, settings: PPLM, folder: Path
) -> Callable[[Round], list[str]]:
    """What writes a round, or goes on with one that a file has the beginning of."""
    rows = tokens.encode(lm.tokenizer, task.prompts, task.max_prompt_tokens)
    return lambda one: steered(
        lm,
        probe,
        rows,
        settings,
        toxic=one.toxic,
        new_tokens=task.new_tokens,
        seed=one.seed,
        path=folder / f"{one.name}.jsonl",
    )


def _writer_of(profile: Profile, task: Task, settings: PPLM, folder: Path) -> Callable[[Round], list[str]]:
    """The same in a process of its own, with the profile's model and probe."""
    lm = models.load(profile.model)
    return _writer(lm, probe.load(profile, lm), task, settings, folder)


def write(pairs: Sequence[Pair], path: Path) -> None:
    """Write pairs as JSON lines."""
    lines = (json.dumps(vars(pair), ensure_ascii=False) + "\n" for pair in pairs)
    path.write_text("".join(lines), encoding="utf-8")


def read(path: Path) -> list[Pair]:
    """Read pairs from JSON lines."""
    lines = path.read_text(encoding="utf-8").split("\n")  # texts may hold line breaks of other kinds
    return [Pair(**json.loads(line)) for line in lines if line]


ROUNDS = 2  # continuations steered to toxicity for each pair prompt, of the pairs that ship


def ship_pairs() -> int:
    """Make ``data/pairs/pairs.jsonl`` from the embedded model."""
    profile = profiles.load("embedded", pairs=ROUNDS * len(pair_prompts(profiles.load("embedded"))))
    lm = models.load(profile.model)
    pairs = load(profile, lm, probe.load(profile, lm), toxicity.load(profile.scorer))
    target = paths.DATA / "pairs" / "pairs.jsonl"
    target.parent.mkdir(exist_ok=True)
    write(pairs, target)
    return len(pairs)


def pair_prompts(profile: Profile) -> list[str]:
    """Prompts for PPLM pairs: the training prompts, and after every seventh an opening of plain prose."""
    prompts = by_profile.prompts(profile, "train", limit=0).prompt.sample(frac=1, random_state=0).tolist()
    prose = by_profile.sentences(by_profile.prose(profile, "train"))
    for i, sentence in enumerate(prose[: len(prompts) // 7]):
        prompts.insert(8 * i + 7, " ".join(sentence.split()[:10]))
    return prompts


def load(profile: Profile, lm: LanguageModel, probe: Probe, scorer: Scorer) -> list[Pair]:
    """Preference pairs: those in ``data/pairs``, or made now by PPLM if the profile says so (then stored)."""
    if not profile.pairs:
        return read(by_profile.shipped("pairs/pairs.jsonl"))
    prompts = pair_prompts(profile)[: profile.pairs]
    rounds = -(-profile.pairs // len(prompts))

    def build(folder: Path) -> None:
        task = Task(prompts, profile.new_tokens, profile.max_prompt_tokens)
        settings = PPLM(iterations=profile.pplm_iterations)
        given = profile, task, settings, folder
        for failure in processes.spread(_writer_of, given, _rounds(rounds, profile.seed)):
            warnings.warn(failure, stacklevel=2)
        pairs = make_pairs(
            lm,
            probe,
            task,
            scorer,
            settings,
            rounds=rounds,
            seed=profile.seed,
            margin=profile.pair_margin,
            folder=folder,
        )
        if not pairs:
            raise CompanionError(
                "PPLM gave no pair that differs enough in toxicity: "
                "lower the profile's pair_margin or take another model."
            )
        write(pairs, folder / "pairs.jsonl")

    inputs = {
        "model": lm.fingerprint,
        "probe": probe.weight.tolist(),
        "scorer": scorer.fingerprint,
        "margin": profile.pair_margin,
        "prompts": prompts,
        "rounds": rounds,
        "new_tokens": profile.new_tokens,
        "max_prompt_tokens": profile.max_prompt_tokens,
        "seed": profile.seed,
        "iterations": profile.pplm_iterations,
    }
    return read(store.artifact("pairs", inputs, build) / "pairs.jsonl")
