"""One examination for every scorer: other people's tests, and a few of ours.

=============  =====================================================================================
sets           AUC on the evaluation rows of the four public labelled sets
hatecheck      HateCheck (Röttger et al., 2021, doi:10.18653/v1/2021.acl-long.4): share right at .5
madlibs        bias madlibs (Dixon et al., 2018, doi:10.1145/3278721.3278729) by group, with the three AUCs
               of Borkan et al. (2019, doi:10.1145/3308560.3317593)
perspective    rank correlation with Perspective's scores and calibration against them
exchange       change of the score when a group's name is exchanged for another's
disguises      misspelt, spaced, look-alike and otherwise disguised words
own            our own *dev* sentences: negation, praise with profanity, counter-speech and others
length         toxic sentences behind harmless words
cost           seconds and memory
=============  =====================================================================================

HateCheck, madlibs and Perspective's scores are for evaluation only: nothing else in this project reads
them, and what is found here chooses nothing. Metrics are computed in double precision. Each number comes
with n; intervals are 95 % bootstrap intervals, over templates where rows share one, else over rows.
"""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import psutil
from jaxtyping import Bool, Float, Int
from tqdm.auto import tqdm

from companion import store, toxicity
from companion.data import public
from companion.metrics import estimates
from companion.metrics.estimates import TOXIC, Estimate
from companion.toxicity import groups
from companion.toxicity.disguises import DISGUISES, disguised
from companion.toxicity.exam_texts import EVALUATION_ONLY, PRECEDING, Material, material

Score = Callable[[Sequence[str]], Float[np.ndarray, "texts"]]

EXCHANGED = {"madlibs": 700, "hatecheck": 500}  # rows in which groups are exchanged
DECILES = 10
TIMED = 256  # continuations whose scoring is timed
DIGITS = 4


def examine(scorer: toxicity.Scorer, given: Material | None = None) -> dict[str, Any]:
    """Examine a scorer; JSON-able, one entry per part (see the module's table, all but *cost*).

    An estimate is ``{"value", "low", "high", "n"}``.
    """
    given, score = given or material(), remembering(scorer)
    parts: dict[str, Callable[[], dict]] = {
        "sets": lambda: labelled_sets(score, given.labelled),
        "hatecheck": lambda: hatecheck(score, given.hatecheck),
        "madlibs": lambda: madlibs(score, given.madlibs),
        "perspective": lambda: perspective(score, given.continuations),
        "exchange": lambda: exchange(score, {"madlibs": given.madlibs, "hatecheck": given.hatecheck}),
        "disguises": lambda: disguises(score, given.short),
        "own": lambda: own(score, given.own),
        "length": lambda: length(score, given.short, given.prose),
    }
    return {name: part() for name, part in tqdm(parts.items(), desc=f"examining {scorer.name}", leave=False)}


def examined(name: str) -> dict[str, Any]:
    """The examination of a scorer by name with its *cost*, from the store or made now.

    Raises
    ------
    CompanionError
        If the scorer cannot be loaded or a data set is missing.
    """
    scorer = toxicity.load(name)
    rows = public.registry()
    inputs = {
        "scorer": [name, scorer.fingerprint],
        "public": [rows.sha256[file] for file in EVALUATION_ONLY],
        "own": [store.sha256_file(path) for path in sorted(groups.OWN.glob("*"))],
    }

    def make() -> dict[str, Any]:
        texts = material().continuations.text[:TIMED].tolist()
        return rounded({**examine(scorer), "cost": cost_in_a_fresh_process(name, texts)})

    return store.kept("examination", inputs, make)


def remembering(scorer: toxicity.Scorer) -> Score:
    """A scorer that scores each text once and remembers it."""
    known: dict[str, float] = {}

    def score(texts: Sequence[str]) -> Float[np.ndarray, "texts"]:
        if new := [text for text in dict.fromkeys(texts) if text not in known]:
            known.update(zip(new, scorer(new).tolist(), strict=True))
        return np.array([known[text] for text in texts], dtype=np.float64)

    return score


# --- the parts -----------------------------------------------------------------------------------


def labelled_sets(score: Score, rows: pd.DataFrame) -> dict[str, dict]:
    """AUC by source."""
    return {
        str(source): _auc(part.label, score(part.text.tolist())) for source, part in rows.groupby("source")
    }


def hatecheck(score: Score, rows: pd.DataFrame) -> dict[str, Any]:
    """Share right at .5: overall, of hateful and harmless cases, and by functionality; and the AUC."""
    scores = score(rows.text.tolist())
    right = (scores >= TOXIC) == rows.label.to_numpy(bool)
    template = rows.template.to_numpy()

    def share(chosen: Bool[np.ndarray, "rows"]) -> dict:
        return _share(right[chosen], template[chosen])

    kinds = rows.functionality.to_numpy()
    return {
        "overall": share(np.ones(len(rows), bool)),
        "hateful": share(rows.label.to_numpy() == 1),
        "harmless": share(rows.label.to_numpy() == 0),
        "auc": _auc(rows.label, scores),
        "functionality": {str(kind): share(kinds == kind) for kind in sorted(set(kinds))},
    }


def madlibs(score: Score, rows: pd.DataFrame) -> dict[str, Any]:
    """AUC overall; by group the AUCs of Borkan et al. (2019) and the mean score of harmless sentences.

    *subgroup*: sentences that name the group. *bpsn*: toxic sentences about others (background positive)
    against harmless ones that name it (subgroup negative); low if the name raises scores. *bnsp*: the other
    way round; low if the name lowers them. ``worst`` has each one's worst group.
    """
    scores, toxic = score(rows.text.tolist()), rows.label.to_numpy(bool)
    by_group: dict[str, dict[str, dict]] = {}
    for group in sorted(set(rows.group)):
        named = rows.group.to_numpy() == group
        chosen = {"subgroup": named, "bpsn": named != toxic, "bnsp": named == toxic}
        by_group[group] = {name: _auc(toxic[some], scores[some]) for name, some in chosen.items()}
        by_group[group]["harmless"] = _plain(estimates.mean(scores[named & ~toxic]))
    worst = {}
    for name, pick in {"subgroup": min, "bpsn": min, "bnsp": min, "harmless": max}.items():
        group = pick(by_group, key=lambda group: by_group[group][name]["value"])
        worst[name] = {"group": group, **by_group[group][name]}
    return {"auc": _auc(toxic, scores), "groups": by_group, "worst": worst}


def perspective(score: Score, rows: pd.DataFrame) -> dict[str, Any]:
    """Against Perspective's toxicity: rank correlation, AUC for its ≥ .5, and means by its deciles.

    *gap* is the mean distance of the two means of a decile, weighted by rows.
    """
    scores, theirs = score(rows.text.tolist()), rows.toxicity.to_numpy(float)
    decile = pd.qcut(rows.toxicity.rank(method="first"), DECILES, labels=False).to_numpy()

    def gap(chosen: Int[np.ndarray, "rows"]) -> float:
        distances = np.bincount(decile[chosen], scores[chosen] - theirs[chosen], DECILES)
        return float(np.abs(distances).sum() / len(chosen))

    by_decile = [
        {
            "perspective": float(theirs[decile == i].mean()),
            "score": float(scores[decile == i].mean()),
            "n": int((decile == i).sum()),
        }
        for i in range(DECILES)
    ]
    return {
        "spearman": _plain(estimates.spearman(scores, theirs)),
        "auc": _auc(theirs >= TOXIC, scores),
        "gap": _plain(estimates.bootstrap(gap, len(rows))),
        "deciles": by_decile,
    }


def exchange(score: Score, sets: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Absolute change of the score when the groups of a text are exchanged for others, on a fixed sample."""
    before, after = [], []
    generator = random.Random(0)
    for name, rows in sets.items():
        for text in rows.text.sample(min(len(rows), EXCHANGED[name]), random_state=0):
            if new := groups.exchanged(text, generator, ambiguous=True):
                before.append(text)
                after.append(new)
    change = np.abs(score(after) - score(before))
    ordered = {"p95": float(np.quantile(change, 0.95)), "worst": float(change.max()), "n": len(change)}
    return {"mean": _plain(estimates.mean(change)), **ordered}


def disguises(score: Score, rows: pd.DataFrame) -> dict[str, Any]:
    """Short texts with their strong words disguised: AUC, and the absolute change against the plain text.

    Harmless texts are disguised just so. ``toxic`` and ``harmless`` are the mean signed changes of either.
    """
    plain, toxic = score(rows.text.tolist()), rows.label.to_numpy(bool)
    found: dict[str, Any] = {"none": {"auc": _auc(toxic, plain)}}
    for name in DISGUISES:
        texts = [disguised(t, words, name) for t, words in zip(rows.text, rows.strong, strict=True)]
        change = (scores := score(texts)) - plain
        found[name] = {
            "auc": _auc(toxic, scores),
            "change": _plain(estimates.mean(np.abs(change))),
            "toxic": _plain(estimates.mean(change[toxic])),
            "harmless": _plain(estimates.mean(change[~toxic])),
        }
    return found


def own(score: Score, rows: pd.DataFrame) -> dict[str, dict[str, dict]]:
    """Our own *dev* sentences: share of harmless and of toxic ones right at .5, by category.

    Scorers of ours were calibrated on them, so this is no test on unseen data.
    """
    right = (score(rows.text.tolist()) >= TOXIC) == rows.label.to_numpy(bool)
    frame, label, category = rows.frame.to_numpy(), rows.label.to_numpy(), rows.category.to_numpy()
    return {
        str(kind): {
            side: _share(right[chosen], frame[chosen])
            for i, side in enumerate(("harmless", "toxic"))
            if (chosen := (category == kind) & (label == i)).any()
        }
        for kind in sorted(set(category))
    }


def length(score: Score, rows: pd.DataFrame, prose: list[str]) -> dict[str, dict]:
    """Toxic sentences behind harmless words: the share still scoring ≥ .5, by the number of words.

    ``unread`` is the share whose score is that of the preceding words alone: the sentence was cut off.
    """
    toxic = rows.text[rows.label == 1].tolist()
    found = {}
    for n in PRECEDING:
        before = " ".join(prose[:n])
        scores = score([f"{before} {text}".strip() for text in toxic])
        unread = np.abs(scores - score([before])[0]) < 1e-6
        found[str(n)] = {
            "caught": _plain(estimates.mean(scores >= TOXIC)),
            "unread": _plain(estimates.mean(unread)),
        }
    return found


def cost(name: str, texts: list[str]) -> dict[str, float | int]:
    """Seconds to load a scorer, seconds to score texts, and by how many MB this process has grown."""
    process = psutil.Process()
    before, start = process.memory_info().rss, time.perf_counter()
    scorer = toxicity.load(name)
    loaded = time.perf_counter()
    scorer(texts)
    return {
        "load_seconds": loaded - start,
        "score_seconds": time.perf_counter() - loaded,
        "memory_mb": (process.memory_info().rss - before) / 2**20,
        "n": len(texts),
    }


def cost_in_a_fresh_process(name: str, texts: list[str]) -> dict[str, float | int]:
    """:func:`cost` where nothing of another scorer is in memory."""
    program = (
        "import json, sys; from companion.toxicity import examination; "
        "print(json.dumps(examination.cost(sys.argv[1], json.load(sys.stdin))))"
    )
    call = [sys.executable, "-c", program, name]
    done = subprocess.run(call, input=json.dumps(texts), stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return json.loads(done.stdout.splitlines()[-1])


# --- numbers -------------------------------------------------------------------------------------


def _auc(labels: Any, scores: Float[np.ndarray, "rows"]) -> dict:
    return _plain(estimates.auc(labels, scores))


def _share(right: Bool[np.ndarray, "rows"], unit: np.ndarray) -> dict:
    """Share right; the interval is drawn over units, as rows of one template resemble each other."""
    by_unit = pd.Series(right.astype(float)).groupby(unit).agg(["sum", "size"])
    return _plain(dataclasses.replace(estimates.ratio(by_unit["sum"], by_unit["size"]), n=len(right)))


def _plain(estimate: Estimate) -> dict[str, float | int | None]:
    """An estimate that JSON can hold; what is undefined becomes None."""
    values = dataclasses.asdict(estimate).items()
    return {key: value if np.isfinite(value) else None for key, value in values}


def rounded(found: Any, digits: int = DIGITS) -> Any:
    """All numbers with four digits after the point; seconds and megabytes with two."""
    if isinstance(found, dict):
        return {key: rounded(value, 2 if key == "cost" else digits) for key, value in found.items()}
    if isinstance(found, list):
        return [rounded(value, digits) for value in found]
    return round(found, digits) if isinstance(found, float) else found
