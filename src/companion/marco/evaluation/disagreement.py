"""How far expert and anti-expert disagree, word by word, and what shuffled labels would give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from companion.marco.denoisers.protocol import ROLES, Denoiser
from companion.marco.evaluation.restoration import NAMES, kept, readable
from companion.marco.experts.loading import Experts
from companion.marco.rewriting import masking, words
from companion.metrics import estimates
from companion.metrics.estimates import Estimate

SHUFFLES = 2000


def swing(difference: ArrayLike, labels: ArrayLike, seed: int = 0) -> Estimate:
    """Mean of a difference per text on toxic texts (label 1) less its mean on the others."""
    values, toxic = np.asarray(difference, dtype=np.float64), np.asarray(labels) == 1

    def of(rows: np.ndarray) -> float:
        return _swing(values[rows], toxic[rows])

    return estimates.bootstrap(of, len(values), seed)


def shuffled_swing(difference: ArrayLike, labels: ArrayLike, seed: int = 0) -> Estimate:
    """The same when the labels say nothing: mean and middle 95 % over shuffles of the labels."""
    values, toxic = np.asarray(difference, dtype=np.float64), np.asarray(labels) == 1
    generator = np.random.default_rng(seed)
    drawn = [_swing(values, generator.permutation(toxic)) for _ in range(SHUFFLES)]
    low, high = np.quantile(drawn, estimates.INTERVAL)
    return Estimate(float(np.mean(drawn)), float(low), float(high), len(values))


def _swing(values: Float[np.ndarray, "texts"], toxic: Bool[np.ndarray, "texts"]) -> float:
    if toxic.all() or not toxic.any():
        return float("nan")
    return float(values[toxic].mean() - values[~toxic].mean())


def opinions(model: Denoiser, blanks: Sequence[tuple[str, str]], k: int = 5) -> pd.DataFrame:
    """What each role expects in a blank.

    For each (sentence, word to blank): the divergence in nats and each role's top ``k`` next tokens.
    """
    sources, targets = [], []
    for text, word in blanks:
        sentence = words.split(model, text)
        j = next(j for j in range(len(sentence.words)) if sentence.spelling(j) == word)
        sources.append(sentence.masked([j], model.mask_id))
        targets.append(sentence.ids[: sentence.words[j].tokens.start])
    logits = torch.cat([part.float().cpu() for part in model.next_logits(ROLES, sources, targets)], dim=1)
    _, expert, anti = logits
    divergence = masking.jensen_shannon(expert, anti).clamp(min=0)
    best = logits.softmax(-1).topk(k)
    rows = []
    for i, source in enumerate(sources):
        row = {"sentence": readable(model, source), "divergence": f"{divergence[i]:.3f}"}
        for r, role in enumerate(ROLES):
            pairs = zip(best.indices[r, i].tolist(), best.values[r, i].tolist(), strict=True)
            row[NAMES[role]] = ", ".join(f"{model.decode([token]).strip()} {p:.2f}" for token, p in pairs)
        rows.append(row)
    return pd.DataFrame(rows)


def disagreement(experts: Experts, texts: Sequence[str]) -> list[Float[np.ndarray, "_words"]]:
    """Divergence of expert and anti-expert at each word of each text, from the store or measured now.

    Marks and links are left out.
    """
    sentences = [words.split(experts.denoiser, text) for text in texts]

    def make() -> list[list[float]]:
        scores = masking.divergences(experts.denoiser, sentences)
        return [row[~np.isnan(row)].clip(min=0).tolist() for row in scores]  # rounding may give −1e-9

    return [np.array(row, dtype=np.float64) for row in kept(experts, texts, "divergences", make)]


def relative(scores: Sequence[Float[np.ndarray, "_words"]]) -> list[Float[np.ndarray, "_words"]]:
    """Divergences over the mean of their sentence: 1 is an average word (all are where nothing diverges).

    One word alone says nothing and is left out.
    """
    return [row / row.mean() if row.any() else np.ones_like(row) for row in scores if len(row) > 1]


def by_position(
    scores: Sequence[Float[np.ndarray, "_words"]], positions: int, seed: int = 0
) -> list[Estimate]:
    """Mean relative divergence of the first, second, … word, over the sentences that have one.

    Stops where fewer than two have.
    """
    columns = [[row[k] for row in relative(scores) if len(row) > k] for k in range(positions)]
    return [estimates.mean(column, seed) for column in columns if len(column) > 1]


def random_word(scores: Sequence[Float[np.ndarray, "_words"]], seed: int = 0) -> Estimate:
    """The same of one word per sentence drawn at random: how far from 1 chance alone goes (control)."""
    generator = np.random.default_rng(seed)
    return estimates.mean([generator.choice(row) for row in relative(scores)], seed)
