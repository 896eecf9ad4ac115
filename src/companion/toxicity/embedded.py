"""The offline scorer: what a sentence means (MiniLM) and which words it uses (hashed n-grams).

score = sigmoid(w_m · semantic + w_l · lexical + b), where *semantic* is the logit of a head on
the mean embedding of MiniLM with a LoRA adapter and *lexical* the logit of a linear model on
hashed word and character n-grams (hashed, so that no list of slurs ships with the book).
Trained by ``companion make scorer`` (:mod:`companion.toxicity.training`); its card is
``data/scorer/README.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from peft import PeftModel
from safetensors.numpy import load_file
from scipy.special import expit
from sklearn.feature_extraction.text import HashingVectorizer
from torch import nn
from transformers import PreTrainedTokenizerBase

from companion import paths
from companion.errors import CompanionError
from companion.lm import models, tokens
from companion.lm.sentence_encoder import MAX_TOKENS, embed, load_encoder

FOLDER = paths.DATA / "scorer"
FILES = ("heads.safetensors", "adapter_model.safetensors", "adapter_config.json")
WORDS = HashingVectorizer(
    n_features=2**17, ngram_range=(1, 2), alternate_sign=False, norm="l2", lowercase=True
)
CHARACTERS = HashingVectorizer(
    n_features=2**18, analyzer="char_wb", ngram_range=(2, 5), alternate_sign=False, norm="l2", lowercase=True
)
BATCH = 64


def lexical_features(texts: Iterable[str]) -> scipy.sparse.csr_matrix:
    """Hashed word 1–2-grams and character 2–5-grams, each part of unit length."""
    texts = tokens.checked(texts)
    return scipy.sparse.hstack([WORDS.transform(texts), CHARACTERS.transform(texts)], format="csr")


class EmbeddedScorer:
    """Probability of toxicity, semantic and lexical; sees subtle toxicity."""

    name = "embedded"

    def __init__(
        self, encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, weights: dict[str, np.ndarray]
    ) -> None:
        self.encoder, self.tokenizer, self.weights = encoder.eval(), tokenizer, weights

    @classmethod
    def load(cls, folder: Path = FOLDER) -> EmbeddedScorer:
        """Load adapter and heads from a folder (safetensors only)."""
        if not all((folder / name).is_file() for name in FILES):
            remedy = "restore them with git, or train them with `companion make scorer`"
            raise CompanionError(f"the scorer's weights are not in '{folder}': {remedy}.")
        encoder, tokenizer = load_encoder()
        with models.quiet():
            merged = PeftModel.from_pretrained(encoder, folder).merge_and_unload()
        return cls(merged, tokenizer, load_file(folder / "heads.safetensors"))

    def semantic(self, texts: Iterable[str]) -> Float[np.ndarray, "texts"]:
        """Logit of the head on the embedding."""
        texts, weight = tokens.checked(texts), torch.from_numpy(self.weights["semantic.weight"]).float()
        logits = np.zeros(len(texts))
        with torch.inference_mode():
            for chosen, batch in tokens.batches(self.tokenizer, texts, MAX_TOKENS, BATCH):
                logits[chosen] = (embed(self.encoder, batch) @ weight).double().numpy()
        return logits + float(self.weights["semantic.bias"][0])

    def lexical(self, texts: Iterable[str]) -> Float[np.ndarray, "texts"]:
        """Logit of the linear model on hashed n-grams."""
        weight = self.weights["lexical.weight"].astype(np.float64)
        return lexical_features(texts) @ weight + float(self.weights["lexical.bias"][0])

    def __call__(self, texts: Iterable[str]) -> Float[np.ndarray, "texts"]:
        if not (texts := tokens.checked(texts)):
            return np.zeros(0)
        w_semantic, w_lexical, bias = self.weights["combine"].astype(np.float64)
        return expit(w_semantic * self.semantic(texts) + w_lexical * self.lexical(texts) + bias)


class SemanticScorer:
    """The semantic half of the embedded scorer alone: it sees no word lists at all."""

    name = "semantic"

    def __init__(self, scorer: EmbeddedScorer) -> None:
        self.scorer = scorer

    def __call__(self, texts: Iterable[str]) -> Float[np.ndarray, "texts"]:
        return expit(self.scorer.semantic(texts))
