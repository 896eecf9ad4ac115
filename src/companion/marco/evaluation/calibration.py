"""Which automatic scores follow people? Each part of a joint score against rewrites that people rated.

Dale et al. (2021) had 200 toxic sentences rewritten by CondBERT, mask-and-infill and ParaGeDi; three people
rated style, meaning and fluency of each. A joint score is chosen on half of the sentences and reported on the
other half. Sentences that a scorer or an adapter may have learned from are left out
(:func:`companion.data.public.rated_rewrites`).

The rule: of the joint scores that follow people as well as the best one does (their rank correlation is
within its interval), take the one that follows them best among those by which doing nothing is worth nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import rankdata

from companion import paths
from companion.marco.evaluation import quality
from companion.marco.evaluation.scores import Verdict
from companion.metrics import estimates
from companion.metrics.estimates import Estimate

FOLDER = paths.DATA / "ratings"
Values = Float[np.ndarray, "rewrites"]


def proxies(own: Verdict, original: Verdict) -> dict[str, dict[str, Values]]:
    """For each part that people rated, what may stand for it; more is better."""
    loss = own.nll / own.count.clip(1)
    return {
        "style": {
            "embedded": 1 - own.toxicity,
            "second": 1 - own.second,
            "lexical": 1 - own.lexical,
            "embedded: below .5": (own.toxicity < estimates.TOXIC).astype(float),
            "embedded: what is gone": quality.gone(original.toxicity, own.toxicity),
            "second: what is gone": quality.gone(original.second, own.second),
        },
        "meaning": {"similarity": own.similarity, "BERTScore": own.bertscore, "BLEU": own.bleu},
        "fluency": {
            "perplexity": -loss,
            "perplexity / original": own.relative_fluency,
            "perplexity at most 1.25 × original": own.fluent,
        },
    }


# Products of one proxy for each part; the first is ParaDetox's, as far as it can be had here.
WORTHLESS = ("what is gone", "what is gone, second")  # of the following: 0 for a text that is left as it is
JOINTS: dict[str, tuple[str, str, str]] = {
    "ParaDetox's": ("embedded: below .5", "similarity", "perplexity at most 1.25 × original"),
    "graded": ("embedded", "similarity", "perplexity / original"),
    "what is gone": ("embedded: what is gone", "similarity", "perplexity / original"),
    "what is gone, second": ("second: what is gone", "similarity", "perplexity / original"),
}


def rank_correlation(
    people: Values, proxy: Values, sentence: Int[np.ndarray, "rewrites"], seed: int = 0
) -> Estimate:
    """Spearman's, over rewrites; the interval resamples sentences, each with all its rewrites."""
    return _over_sentences(lambda some: _spearman(people[some], proxy[some]), sentence, seed)


def difference(
    people: Values, proxy: Values, other: Values, sentence: Int[np.ndarray, "rewrites"], seed: int = 0
) -> Estimate:
    """By how much one proxy follows people more closely than another on the same rewrites."""

    def gap(some: Int[np.ndarray, "rewrites"]) -> float:
        return _spearman(people[some], proxy[some]) - _spearman(people[some], other[some])

    return _over_sentences(gap, sentence, seed)


def _spearman(a: Values, b: Values) -> float:
    """Of ranks; 0 where one side has no order, as a score that gives all rewrites the same."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _over_sentences(
    statistic: Callable[[Int[np.ndarray, "rewrites"]], float],
    sentence: Int[np.ndarray, "rewrites"],
    seed: int,
) -> Estimate:
    _, of = np.unique(sentence, return_inverse=True)
    rows = [np.flatnonzero(of == k) for k in range(of.max() + 1)]
    return estimates.bootstrap(
        lambda chosen: statistic(np.concatenate([rows[k] for k in chosen])), len(rows), seed
    )


def calibrate(rated: pd.DataFrame, own: Verdict, original: Verdict, seed: int = 0) -> dict:
    """Rank correlations with people: of every proxy, and of every joint score on each half of the sentences.

    ``rated`` is :func:`companion.data.public.rated_rewrites`, whose rewrites and originals were judged.
    """
    found = proxies(own, original)
    sentence = pd.factorize(rated.original)[0]
    systems = {name: (rated.system == name).to_numpy() for name in sorted(rated.system.unique())}
    parts = {
        part: {
            name: {
                "all": _plain(rank_correlation(people := rated[part].to_numpy(), values, sentence, seed)),
                **{
                    system: _plain(rank_correlation(people[rows], values[rows], sentence[rows], seed))
                    for system, rows in systems.items()
                },
            }
            for name, values in by.items()
        }
        for part, by in found.items()
    }
    whole = rated[list(found)].prod(axis=1).to_numpy()  # what people think of a rewrite as a whole
    halves = {"chosen on": sentence % 2 == 0, "tested on": sentence % 2 == 1}
    joints = {
        name: {
            half: _plain(rank_correlation(whole[rows], _product(found, names)[rows], sentence[rows], seed))
            for half, rows in halves.items()
        }
        for name, names in JOINTS.items()
    }
    (first, _), *others, rows = *JOINTS.items(), halves["tested on"]
    for name, names in others:
        one, other = (_product(found, of)[rows] for of in (names, JOINTS[first]))
        beyond = difference(whole[rows], one, other, sentence[rows], seed)
        joints[name][f"beyond {first}"] = _plain(beyond)
    return {
        "n": {"rewrites": len(rated), "sentences": int(sentence.max() + 1)},
        "parts": parts,
        "joints": joints,
        "chosen": chosen({name: by_half["chosen on"] for name, by_half in joints.items()}),
    }


def chosen(followed: dict[str, dict[str, float]]) -> str:
    """The joint score that the rule of this module takes, by each one's correlation with people."""
    best = max(followed.values(), key=lambda one: one["value"])
    as_good = [name for name, one in followed.items() if one["value"] >= best["low"]]
    eligible = [name for name in as_good if name in WORTHLESS] or as_good
    return max(eligible, key=lambda name: followed[name]["value"])


def _product(found: dict[str, dict[str, Values]], names: tuple[str, str, str]) -> Values:
    return np.prod([by[name] for by, name in zip(found.values(), names, strict=True)], axis=0)


def _plain(estimate: Estimate) -> dict[str, float]:
    rounded = {name: round(getattr(estimate, name), 4) for name in ("value", "low", "high")}
    return rounded | {"n": estimate.n}


def make(
    judges: Callable[[dict[str, list[str]]], dict[str, Verdict]], rated: pd.DataFrame, target: Path = FOLDER
) -> dict:
    """Judge the rated rewrites and write ``calibration.json``: results, no rows."""
    verdicts = judges({"original": rated.original.tolist(), "rewritten": rated.rewritten.tolist()})
    found = calibrate(rated, verdicts["rewritten"], verdicts["original"])
    target.mkdir(exist_ok=True)
    (target / "calibration.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def load() -> dict:
    """The shipped calibration."""
    return json.loads((FOLDER / "calibration.json").read_text(encoding="utf-8"))
