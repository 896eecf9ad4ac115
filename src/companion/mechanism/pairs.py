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
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from companion import paths, profiles, store, toxicity
from companion.data import by_profile
from companion.data.by_profile import prompts, prose, sentences, shipped
from companion.errors import CompanionError
from companion.lm import models, tokens
from companion.lm.generation import generate
from companion.lm.models import LanguageModel
from companion.mechanism import pplm, probe
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


def make_pairs(
    lm: LanguageModel,
    probe: Probe,
    prompts: Sequence[str],
    scorer: Scorer,
    settings: PPLM,
    *,
    rounds: int,
    new_tokens: int,
    max_prompt_tokens: int,
    seed: int,
    margin: float,
    folder: Path,
) -> list[Pair]:
    """Up to ``rounds + 1`` pairs per prompt.

    Chosen is the less toxic of the greedy continuation and one steered away from toxicity;
    rejected are ``rounds`` continuations steered to toxicity, and the greedy one, as far as they
    are more toxic than the chosen one by at least ``margin``. Prompts whose greedy continuation
    ends early are left out: all continuations have ``new_tokens`` tokens, so that DPO cannot
    learn a length. Steered texts are kept in ``folder``; an interrupted call goes on from there.
    """
    rows = tokens.encode(lm.tokenizer, prompts, max_prompt_tokens)
    shown = [lm.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    greedy = generate(lm, shown, new_tokens=new_tokens)
    common = {"new_tokens": new_tokens, "settings": settings}
    civil = steered(lm, probe, rows, toxic=False, seed=seed, path=folder / "civil.jsonl", **common)
    toxic = [
        steered(lm, probe, rows, toxic=True, seed=seed + 1000 * r, path=folder / f"toxic_{r}.jsonl", **common)
        for r in range(rounds)
    ]
    rejectable = [(texts, scorer(texts)) for texts in (*toxic, greedy.texts)]
    greedy_score, civil_score = rejectable[-1][1], scorer(civil)
    pairs = []
    for i, whole in enumerate(greedy.mask.all(dim=1).tolist()):
        chosen, low = min(
            (greedy.texts[i], greedy_score[i]), (civil[i], civil_score[i]), key=lambda side: side[1]
        )
        for texts, scores in rejectable:
            if whole and texts[i] != chosen and scores[i] - low >= margin:
                pairs.append(
                    Pair(shown[i], chosen, texts[i], round(float(low), 4), round(float(scores[i]), 4))
                )
    return pairs


def write(pairs: Sequence[Pair], path: Path) -> None:
    """Write pairs as JSON lines."""
    path.write_text(
        "".join(json.dumps(vars(pair), ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8"
    )


def read(path: Path) -> list[Pair]:
    """Read pairs from JSON lines; unknown fields are ignored."""
    names = {field.name for field in fields(Pair)}
    return [
        Pair(**{k: v for k, v in json.loads(line).items() if k in names})
        for line in path.read_text(encoding="utf-8").split("\n")
        if line
    ]


ROUNDS = 2  # continuations steered to toxicity per prompt


def ship_pairs() -> int:
    """Make ``data/pairs/pairs.jsonl`` from the embedded model; steered texts stay in the cache."""
    profile = profiles.load("embedded")
    lm, comments = models.load(profile.model), by_profile.comments(profile, "train")
    fitted = probe.trained(lm, comments.text.tolist(), comments.label.to_numpy(), lm.n_layers - 1)
    folder = store.writable(paths.cache() / "steered")
    pairs = make_pairs(
        lm, fitted, pair_prompts(profile), toxicity.load(profile.scorer), pplm.PPLM(iterations=profile.pplm_iterations),
        rounds=ROUNDS, new_tokens=profile.new_tokens, max_prompt_tokens=profile.max_prompt_tokens, seed=profile.seed,
        margin=profile.pair_margin, folder=folder,
    )  # fmt: skip
    target = paths.DATA / "pairs" / "pairs.jsonl"
    target.parent.mkdir(exist_ok=True)
    write(pairs, target)
    return len(pairs)


def pair_prompts(profile: Profile) -> list[str]:
    """Prompts for PPLM pairs: the training prompts, and after every seventh an opening of plain prose."""
    mixed = prompts(profile, "train", limit=0).prompt.sample(frac=1, random_state=0).tolist()
    plain = [" ".join(s.split()[:10]) for s in sentences(prose(profile, "train"))]
    for i, opening in enumerate(plain[: len(mixed) // 7]):
        mixed.insert(8 * i + 7, opening)
    return mixed


def load(profile: Profile, lm: LanguageModel, probe: Probe, scorer: Scorer) -> list[Pair]:
    """Preference pairs: those in ``data/pairs``, or made now by PPLM if the profile says so (kept in the store)."""
    if not profile.pairs:
        return read(shipped("pairs/pairs.jsonl"))
    texts, settings = pair_prompts(profile)[: profile.pairs], pplm.PPLM(iterations=profile.pplm_iterations)
    rounds = -(-profile.pairs // len(texts))
    options = {
        "rounds": rounds,
        "new_tokens": profile.new_tokens,
        "max_prompt_tokens": profile.max_prompt_tokens,
        "seed": profile.seed,
    }

    def build(folder: Path) -> None:
        made = make_pairs(
            lm, probe, texts, scorer, settings, margin=profile.pair_margin, folder=folder, **options
        )
        if not made:
            raise CompanionError(
                "PPLM gave no pair that differs enough in toxicity: lower the profile's pair_margin or take another model."
            )
        write(made, folder / "pairs.jsonl")

    inputs = {
        "model": lm.fingerprint,
        "probe": probe.weight.tolist(),
        "scorer": scorer.name,
        "margin": profile.pair_margin,
        "prompts": texts,
        **options,
        **vars(settings),
    }
    return read(store.artifact("pairs", inputs, build) / "pairs.jsonl")
