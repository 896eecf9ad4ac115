"""What a rewrite should be: less toxic, close in meaning, fluent. One number per sentence for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from companion import metrics, tokens
from companion.models import LanguageModel
from companion.toxicity import encoder


class Similarity:
    """Cosine of the shipped sentence encoder (all-MiniLM-L6-v2, as it is: without the scorer's adapter)."""

    def __init__(self) -> None:
        self.encoder, self.tokenizer = encoder.load_encoder()

    @torch.inference_mode()
    def embedded(self, texts: Sequence[str]) -> Float[np.ndarray, "texts 384"]:
        """Unit vectors of texts."""
        found = np.zeros((len(texts), 384))
        for rows, batch in encoder.by_length(self.tokenizer, texts, 64):
            vectors = encoder.embed(self.encoder, batch)
            found[rows] = (vectors / vectors.norm(dim=-1, keepdim=True)).numpy()
        return found

    def __call__(self, texts: Sequence[str], others: Sequence[str]) -> Float[np.ndarray, "texts"]:
        """Cosine of each pair: 1 for equal texts."""
        return (self.embedded(texts) * self.embedded(others)).sum(-1)


def nll(lm: LanguageModel, texts: Sequence[str]) -> tuple[Float[np.ndarray, "texts"], Float[np.ndarray, "texts"]]:
    """Summed negative log-likelihood (nats) and number of tokens of each text, its first token included."""
    rows = [[lm.eos_ids[0], *row] for row in tokens.encode(lm.tokenizer, texts)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    sums, counts = metrics.cross_entropy(lm, [rows[i] for i in order], batch_size=16)
    back = np.argsort(order)
    return sums[back], counts[back]


def joint(toxicity: Float[np.ndarray, "texts"], similarity: Float[np.ndarray, "texts"], fluent: Float[np.ndarray, "texts"]) -> Float[np.ndarray, "texts"]:
    """ParaDetox's joint score per sentence: not toxic × similar × fluent (Logacheva et al., 2022, section 5).

    Not toxic: the scorer's probability is below .5. Similarity: the cosine, at least 0. ``fluent``: 0 or 1.
    """
    return (np.asarray(toxicity) < 0.5) * np.clip(similarity, 0, None) * np.asarray(fluent)
