"""What a rewrite should be: less toxic, close in meaning, fluent. One number per sentence for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from sacrebleu import sentence_bleu

from companion import metrics, tokens
from companion.models import LanguageModel
from companion.toxicity import encoder

BATCH = 8  # texts read together: the logits of a large vocabulary fill memory


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
    """Summed negative log-likelihood (nats) and number of tokens of each text, its first token included; 0 and 0 for an empty one.

    A text that occurs several times is read once.
    """
    begin = lm.tokenizer.eos_token_id if lm.tokenizer.bos_token_id is None else lm.tokenizer.bos_token_id
    unique = [text for text in dict.fromkeys(texts) if text]
    rows = [row if row[0] == begin else [begin, *row] for row in tokens.encode(lm.tokenizer, unique)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = {"": (0.0, 0.0)}
    for start in range(0, len(order), BATCH):
        some = order[start : start + BATCH]
        sums, counts = metrics.cross_entropy(lm, [rows[i] for i in some], batch_size=BATCH)
        found |= {unique[i]: pair for i, pair in zip(some, zip(sums, counts, strict=True), strict=True)}
    both = np.array([found[text] for text in texts]).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def bleu(texts: Sequence[str], originals: Sequence[str]) -> Float[np.ndarray, "texts"]:
    """Sentence BLEU against the original, 0 to 1 (SacreBLEU): how much of the wording is kept."""
    return np.array([sentence_bleu(text, [original]).score / 100 for text, original in zip(texts, originals, strict=True)])


def joint(toxicity: Float[np.ndarray, "texts"], similarity: Float[np.ndarray, "texts"], fluent: Float[np.ndarray, "texts"]) -> Float[np.ndarray, "texts"]:
    """ParaDetox's joint score per sentence: not toxic × similar × fluent (Logacheva et al., 2022, section 5).

    Not toxic: the scorer's probability is below .5. Similarity: the cosine, at least 0. ``fluent``: 0 or 1.
    """
    return (np.asarray(toxicity) < 0.5) * np.clip(similarity, 0, None) * np.asarray(fluent)
