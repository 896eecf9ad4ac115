"""A fine-tuned scorer: an encoder with a LoRA adapter and a linear head, and a linear model of words.

score = sigmoid(a · semantic + b · lexical + c). *Semantic* is the logit of a head on the encoder's pooled
states, standardised as they were before fine-tuning; *lexical* that of a linear model on hashed word and
character n-grams of the text in which no group is named any more (hashed, so that no list of slurs ships
with the book). The three weights are fitted on *dev* rows. Two such scorers ship (``data/scorer/``), made by
``companion make scorer`` (:mod:`companion.toxicity.training`): *embedded* reads half of Gemma 3 270M,
*second* reads MiniLM and was trained on rows that the first has never seen.
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
from torch import Tensor, nn

from companion import paths, store
from companion.errors import CompanionError
from companion.lm import models, tokens
from companion.toxicity import groups
from companion.toxicity.encoders import Encoder, HalfGemma, MiniLM
from companion.toxicity.normalise import normalised

FOLDER = paths.DATA / "scorer"
FILES = ("head.safetensors", "adapter_model.safetensors", "adapter_config.json")
ENCODERS: dict[str, type[Encoder]] = {"embedded": HalfGemma, "second": MiniLM}
BATCH, MAX_TOKENS = 64, 128
WORDS = HashingVectorizer(n_features=2**17, ngram_range=(1, 2), alternate_sign=False)
CHARACTERS = HashingVectorizer(n_features=2**18, analyzer="char_wb", ngram_range=(2, 5), alternate_sign=False)


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
        return self.linear((features - self.mean) / self.deviation)[:, 0]


class FineTunedScorer:
    """Probability of toxicity; sees subtle toxicity, and is trained not to mistake a group for an insult."""

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        head: Head,
        words: Float[np.ndarray, "_features"],
        combine: tuple[float, float, float] = (1.0, 0.0, 0.0),
        fingerprint: str = "",
    ) -> None:
        self.name, self.encoder, self.head = name, encoder.eval(), head.eval()
        self.words, self.combine, self.fingerprint = words.astype(np.float64), combine, fingerprint

    @classmethod
    def load(cls, name: str, folder: Path = FOLDER) -> FineTunedScorer:
        """Load adapter and head of ``embedded`` or ``second`` (safetensors only).

        Raises
        ------
        CompanionError
            If a file is missing, or the package with the encoder's weights is.
        """
        folder = folder / name
        if not all((folder / file).is_file() for file in FILES):
            remedy = "restore them with git, or train them with `companion make scorer`"
            raise CompanionError(f"the scorer's weights are not in '{folder}': {remedy}.")
        device = models.best_device()
        with models.quiet():
            merged = PeftModel.from_pretrained(ENCODERS[name](), folder).merge_and_unload().to(device)
        stored = {
            key: torch.from_numpy(value) for key, value in load_file(folder / "head.safetensors").items()
        }
        combine = tuple(stored.pop("combine").tolist())
        words = stored.pop("words").numpy()
        head = Head(stored["mean"], stored["deviation"])
        head.load_state_dict(stored)
        fingerprint = store.key_of({file: store.sha256_file(folder / file) for file in FILES})
        return cls(name, merged, head.to(device), words, combine, fingerprint)

    @torch.inference_mode()
    def semantic(self, texts: Iterable[str]) -> Float[np.ndarray, "texts"]:
        """Logit of the head on the encoder's states."""
        texts = [normalised(text) for text in tokens.checked(texts)]
        logits = np.zeros(len(texts))
        device = self.head.mean.device
        for chosen, cpu_batch in tokens.batches(self.encoder.tokenizer, texts, MAX_TOKENS, BATCH):
            batch = tokens.Batch(cpu_batch.ids.to(device), cpu_batch.mask.to(device))
            states = self.encoder.run(self.encoder.embed(batch), batch.mask, slice(None))
            logits[chosen] = self.head(self.encoder.pool(states, batch.mask)).double().cpu().numpy()
        return logits

    def lexical(self, texts: Iterable[str]) -> Float[np.ndarray, "texts"]:
        """Logit of the linear model of words, without its intercept."""
        texts = [normalised(text) for text in tokens.checked(texts)]
        return lexical_features(texts) @ self.words if texts else np.zeros(0)

    def __call__(self, texts: Iterable[str]) -> Float[np.ndarray, "texts"]:
        texts = tokens.checked(texts)
        semantic, lexical, shift = self.combine
        return expit(semantic * self.semantic(texts) + lexical * self.lexical(texts) + shift)
