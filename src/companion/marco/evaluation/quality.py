"""What a rewrite should be: less toxic, close in meaning, fluent. One number per sentence for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from sacrebleu import sentence_bleu
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from companion.lm import models, sentence_encoder, tokens
from companion.metrics.estimates import TOXIC

Read = TypeVar("Read")
SHIPPED = "all-minilm-l6-v2"
LAYERS = {"roberta-large": 17}  # whose states agree best with human judgement (Zhang et al., 2020)


def once(read: Callable[[list[str]], Iterable[Read]], texts: Iterable[str]) -> dict[str, Read]:
    """What ``read`` says of each text; one that occurs several times is read once."""
    unique = list(dict.fromkeys(texts))
    return dict(zip(unique, read(unique), strict=True))


class Similarity:
    """Cosine of the shipped sentence encoder (all-MiniLM-L6-v2, as it is: without the scorer's adapter)."""

    def __init__(self) -> None:
        self.encoder, self.tokenizer = sentence_encoder.load_encoder()

    @torch.inference_mode()
    def embedded(self, texts: Sequence[str]) -> Float[np.ndarray, "texts 384"]:
        """Unit vectors of texts."""
        unit = np.zeros((len(texts), 384))
        for rows, batch in tokens.batches(self.tokenizer, texts, sentence_encoder.MAX_TOKENS, 64):
            vectors = sentence_encoder.embed(self.encoder, batch)
            unit[rows] = (vectors / vectors.norm(dim=-1, keepdim=True)).numpy()
        return unit

    def __call__(self, texts: Iterable[str], others: Iterable[str]) -> Float[np.ndarray, "texts"]:
        """Cosine of each pair: 1 for equal texts. A text that occurs several times is read once."""
        pairs = list(zip(tokens.checked(texts), tokens.checked(others), strict=True))
        vectors = once(self.embedded, [text for pair in pairs for text in pair])
        return np.array([(vectors[a] * vectors[b]).sum() for a, b in pairs])


class TokenSimilarity:
    """BERTScore F1 (Zhang et al., 2020): every token is matched with the most similar one of the other text.

    The encoder is the shipped one, or one of the Hub by name with the layer whose states are compared
    (RoBERTa-large, layer 17, in the paper). No weights by frequency, no rescaling.
    """

    def __init__(self, name: str = SHIPPED) -> None:
        self.layer = -1 if name == SHIPPED else LAYERS.get(name, -1)
        self.encoder, self.tokenizer = sentence_encoder.load_encoder() if name == SHIPPED else _from_hub(name)

    @torch.inference_mode()
    def states(self, texts: Sequence[str]) -> list[Float[torch.Tensor, "_tokens d"]]:
        """Unit vectors of the tokens of each text, without the special ones at its ends."""
        unit: list[torch.Tensor] = [torch.zeros(0, 0)] * len(texts)
        for rows, batch in tokens.batches(self.tokenizer, texts, sentence_encoder.MAX_TOKENS, 64):
            hidden = self.encoder(
                input_ids=batch.ids, attention_mask=batch.mask.long(), output_hidden_states=True
            ).hidden_states[self.layer]
            for i, vectors, real in zip(rows, hidden, batch.mask, strict=True):
                unit[i] = torch.nn.functional.normalize(vectors[real][1:-1], dim=-1)
        return unit

    def __call__(self, texts: Iterable[str], others: Iterable[str]) -> Float[np.ndarray, "texts"]:
        """F1 of each pair: 1 for equal texts, 0 if one is empty."""
        pairs = list(zip(tokens.checked(texts), tokens.checked(others), strict=True))
        states = once(self.states, [text for pair in pairs for text in pair])
        return np.array(
            [
                _matched(states[a] @ states[b].T) if len(states[a]) and len(states[b]) else float(a == b)
                for a, b in pairs
            ]
        )


def _matched(cosine: Float[torch.Tensor, "tokens others"]) -> float:
    precision, recall = cosine.max(1).values.mean().item(), cosine.max(0).values.mean().item()
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _from_hub(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with models.from_hub(
        f"the encoder '{name}'",
        f"the encoder '{name}' could not be had from the Hub: set the profile's encoder to {SHIPPED}.",
    ):
        return AutoModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)


def bleu(texts: Iterable[str], originals: Iterable[str]) -> Float[np.ndarray, "texts"]:
    """Sentence BLEU against the original, 0 to 1 (SacreBLEU): how much of the wording is kept."""
    both = zip(tokens.checked(texts), tokens.checked(originals), strict=True)
    return np.array([sentence_bleu(text, [original]).score / 100 for text, original in both])


def gone(before: ArrayLike, after: ArrayLike) -> Float[np.ndarray, "texts"]:
    """Share of an original's toxicity that its rewrite lacks, at least 0: doing nothing is worth nothing."""
    before, after = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    return np.clip(1 - after / np.maximum(before, 1e-9), 0, None)


def joint(toxicity: ArrayLike, similarity: ArrayLike, fluent: ArrayLike) -> Float[np.ndarray, "texts"]:
    """ParaDetox's joint score per sentence: not toxic × similar × fluent.

    Source: Logacheva et al. (2022), section 5.
    Not toxic: the scorer's probability is below ``TOXIC``. Similarity: the cosine, at least 0. ``fluent``:
    0 or 1.
    """
    return (np.asarray(toxicity) < TOXIC) * np.clip(similarity, 0, None) * np.asarray(fluent)


def graded(toxicity: ArrayLike, similarity: ArrayLike, fluency: ArrayLike) -> Float[np.ndarray, "texts"]:
    """Joint score per sentence without thresholds: (1 − toxicity) × similarity × fluency.

    Similarity: the cosine, at least 0. ``fluency``: perplexity of the original over the rewrite's, at most 1.
    It follows people's ratings more closely than :func:`joint` does (``data/ratings``).
    """
    return (1 - np.asarray(toxicity)) * np.clip(similarity, 0, None) * np.asarray(fluency)
