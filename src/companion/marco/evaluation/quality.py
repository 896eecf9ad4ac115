"""What a rewrite should be: less toxic, close in meaning, fluent. One number per sentence for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from sacrebleu import sentence_bleu
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from companion.lm import models, sentence_encoder, tokens

SHIPPED = "all-minilm-l6-v2"
LAYERS = {"roberta-large": 17}  # whose states agree best with human judgement (Zhang et al., 2020)


class Similarity:
    """Cosine of the shipped sentence encoder (all-MiniLM-L6-v2, as it is: without the scorer's adapter)."""

    def __init__(self) -> None:
        self.encoder, self.tokenizer = sentence_encoder.load_encoder()

    @torch.inference_mode()
    def embedded(self, texts: Sequence[str]) -> Float[np.ndarray, "texts 384"]:
        """Unit vectors of texts."""
        found = np.zeros((len(texts), 384))
        for rows, batch in tokens.batches(self.tokenizer, texts, sentence_encoder.MAX_TOKENS, 64):
            vectors = sentence_encoder.embed(self.encoder, batch)
            found[rows] = (vectors / vectors.norm(dim=-1, keepdim=True)).numpy()
        return found

    def __call__(self, texts: Sequence[str], others: Sequence[str]) -> Float[np.ndarray, "texts"]:
        """Cosine of each pair: 1 for equal texts. A text that occurs several times is read once."""
        texts, others = tokens.checked(texts), tokens.checked(others)
        place = {text: i for i, text in enumerate(dict.fromkeys([*texts, *others]))}
        vectors = self.embedded(list(place))
        return (vectors[[place[text] for text in texts]] * vectors[[place[text] for text in others]]).sum(-1)


class TokenSimilarity:
    """BERTScore F1 (Zhang et al., 2020): every token is matched with the most similar one of the other text.

    The encoder is the shipped one, or one of the Hub by name with the layer whose states are compared
    (RoBERTa-large, layer 17, in the paper). No weights by frequency, no rescaling.
    """

    def __init__(self, name: str = SHIPPED) -> None:
        self.layer = -1 if name == SHIPPED else LAYERS.get(name, -1)
        self.encoder, self.tokenizer = sentence_encoder.load_encoder() if name == SHIPPED else _from_hub(name)

    @torch.inference_mode()
    def states(self, texts: Sequence[str]) -> list[Float[torch.Tensor, "tokens d"]]:
        """Unit vectors of the tokens of each text, without the special ones at its ends."""
        found: list[torch.Tensor] = [torch.zeros(0, 0)] * len(texts)
        for rows, batch in tokens.batches(self.tokenizer, texts, sentence_encoder.MAX_TOKENS, 64):
            hidden = self.encoder(
                input_ids=batch.ids, attention_mask=batch.mask.long(), output_hidden_states=True
            ).hidden_states[self.layer]
            for i, vectors, real in zip(rows, hidden, batch.mask, strict=True):
                found[i] = torch.nn.functional.normalize(vectors[real][1:-1], dim=-1)
        return found

    def __call__(self, texts: Sequence[str], others: Sequence[str]) -> Float[np.ndarray, "texts"]:
        """F1 of each pair: 1 for equal texts, 0 if one is empty."""
        texts, others = tokens.checked(texts), tokens.checked(others)
        known = dict(zip(unique := list(dict.fromkeys([*texts, *others])), self.states(unique), strict=True))
        return np.array(
            [
                _matched(known[a] @ known[b].T) if len(known[a]) and len(known[b]) else float(a == b)
                for a, b in zip(texts, others, strict=True)
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


def bleu(texts: Sequence[str], originals: Sequence[str]) -> Float[np.ndarray, "texts"]:
    """Sentence BLEU against the original, 0 to 1 (SacreBLEU): how much of the wording is kept."""
    both = zip(tokens.checked(texts), tokens.checked(originals), strict=True)
    return np.array([sentence_bleu(text, [original]).score / 100 for text, original in both])


def joint(
    toxicity: Float[np.ndarray, "texts"],
    similarity: Float[np.ndarray, "texts"],
    fluent: Float[np.ndarray, "texts"],
) -> Float[np.ndarray, "texts"]:
    """ParaDetox's joint score per sentence: not toxic × similar × fluent (Logacheva et al., 2022, section 5).

    Not toxic: the scorer's probability is below .5. Similarity: the cosine, at least 0. ``fluent``: 0 or 1.
    """
    return (np.asarray(toxicity) < 0.5) * np.clip(similarity, 0, None) * np.asarray(fluent)
