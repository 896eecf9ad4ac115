"""A fine-tuned scorer: readers, each an encoder with a LoRA adapter and a linear head, and a model of words.

score = sigmoid(sum of the readers' logits and that of the words, each with its weight, + shift). A reader's
logit is that of a head on its encoder's pooled states, standardised as they were before fine-tuning. The
words' is that of a linear model on hashed word and character n-grams of the text in which no group is named
any more (hashed, so that no list of slurs ships with the book). Weights and shift are fitted on *dev* rows.

Two such scorers ship (``data/scorer/``), made by ``companion make scorer``
(:mod:`companion.toxicity.training`). *embedded* reads with half of Gemma 3 270M and with MiniLM; *second*
reads with half of SmolLM2 and was trained on rows that the first has never seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from peft import PeftModel
from safetensors.numpy import load_file
from scipy.special import expit
from sklearn.feature_extraction.text import HashingVectorizer
from torch import Tensor, nn

from companion import paths, store
from companion.errors import CompanionError
from companion.lm import models, tokens
from companion.toxicity import groups
from companion.toxicity.encoders import Encoder, HalfGemma, HalfSmolLM, MiniLM
from companion.toxicity.normalise import normalised

FOLDER = paths.DATA / "scorer"
READERS: dict[str, dict[str, type[Encoder]]] = {
    "embedded": {"gemma": HalfGemma, "minilm": MiniLM},
    "second": {"smollm": HalfSmolLM},
}
READER_FILES = ("head.safetensors", "adapter_model.safetensors", "adapter_config.json")
COMBINATION = "combination.safetensors"
BATCH, MAX_TOKENS = 32, 128
WORDS = HashingVectorizer(n_features=2**17, ngram_range=(1, 2), alternate_sign=False)
CHARACTERS = HashingVectorizer(n_features=2**18, analyzer="char_wb", ngram_range=(2, 5), alternate_sign=False)


def files(name: str) -> list[str]:
    """The files of a scorer, relative to its folder."""
    return [*(f"{reader}/{file}" for reader in READERS[name] for file in READER_FILES), COMBINATION]


def lexical_features(texts: Iterable[str]) -> scipy.sparse.csr_matrix:
    """Hashed word 1–2-grams and character 2–5-grams, each part of unit length; groups are made neutral."""
    texts = [groups.neutral(text) for text in texts]
    return scipy.sparse.hstack([WORDS.transform(texts), CHARACTERS.transform(texts)], format="csr")


class Head(nn.Module):
    """A linear map of standardised features to a logit."""

    def __init__(self, mean: Float[Tensor, "width"], deviation: Float[Tensor, "width"]) -> None:
        super().__init__()
        self.linear = nn.Linear(len(mean), 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.mean, self.deviation = nn.Buffer(mean), nn.Buffer(deviation)

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch"]:
        """One logit per row of features."""
        return self.linear((features - self.mean) / self.deviation)[:, 0]


@dataclass(frozen=True)
class Reader:
    """An encoder and its head."""

    encoder: Encoder
    head: Head

    @classmethod
    def load(cls, kind: type[Encoder], folder: Path) -> Reader:
        """Load adapter and head (safetensors only) and merge the adapter into the encoder."""
        device = models.best_device()
        with models.quiet():
            merged = PeftModel.from_pretrained(kind(), folder).merge_and_unload().to(device)
        weights = {k: torch.from_numpy(v) for k, v in load_file(folder / "head.safetensors").items()}
        head = Head(weights["mean"], weights["deviation"])
        head.load_state_dict(weights)
        return cls(merged.eval(), head.to(device).eval())

    @torch.inference_mode()
    def logits(self, texts: list[str]) -> Float[np.ndarray, "texts"]:
        """One logit per (normalised) text, in batches of similar length."""
        logits, device = np.zeros(len(texts)), self.head.mean.device
        rows = self.encoder.encode(texts, MAX_TOKENS)
        for chosen in tokens.by_length(rows, BATCH):
            padded = tokens.pad([rows[i] for i in chosen], "right")
            batch = tokens.Batch(padded.ids.to(device), padded.mask.to(device))
            states = self.encoder.run(self.encoder.embed(batch), batch.mask, slice(None))
            logits[chosen] = self.head(self.encoder.pool(states, batch.mask)).double().cpu().numpy()
        return logits


class FineTunedScorer:
    """Probability of toxicity; sees subtle toxicity, and is trained not to mistake a group for an insult."""

    def __init__(
        self,
        name: str,
        readers: dict[str, Reader],
        words: Float[np.ndarray, "_features"],
        combine: Float[np.ndarray, "_parts"],
        fingerprint: str = "",
    ) -> None:
        self.name, self.readers, self.fingerprint = name, readers, fingerprint
        self.words, self.combine = words.astype(np.float64), combine.astype(np.float64)

    @classmethod
    def load(cls, name: str, folder: Path = FOLDER) -> FineTunedScorer:
        """Load ``embedded`` or ``second``.

        Raises
        ------
        CompanionError
            If a file is missing, or the package with an encoder's weights is.
        """
        folder = folder / name
        if not all((folder / file).is_file() for file in files(name)):
            remedy = "restore them with git, or train them with `companion make scorer`"
            raise CompanionError(f"the scorer's weights are not in '{folder}': {remedy}.")
        readers = {reader: Reader.load(kind, folder / reader) for reader, kind in READERS[name].items()}
        stored = load_file(folder / COMBINATION)
        fingerprint = store.key_of({file: store.sha256_file(folder / file) for file in files(name)})
        return cls(name, readers, stored["words"], stored["combine"], fingerprint)

    def parts(self, texts: Iterable[str]) -> Float[np.ndarray, "texts _parts"]:
        """The logit of each reader and of the words, and 1 for the shift."""
        texts = [normalised(text) for text in tokens.checked(texts)]
        if not texts:
            return np.zeros((0, len(self.combine)))
        read = [reader.logits(texts) for reader in self.readers.values()]
        return np.stack([*read, lexical_features(texts) @ self.words, np.ones(len(texts))], axis=1)

    def __call__(self, texts: Iterable[str]) -> Float[np.ndarray, "texts"]:
        return expit(self.parts(texts) @ self.combine)
