"""Unitary's Detoxify classifiers: official checkpoints by name, or a local checkpoint.

Checkpoints are pickles. An official one is checked against the hash in its file name (the
convention of ``torch.hub``), a local one against a ``.sha256`` file beside it, both before
anything is unpickled; and unpickling is restricted to tensors and plain containers.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from companion import paths, store
from companion.errors import CompanionError
from companion.lm import models, tokens

BATCH, MAX_TOKENS = 64, 512
TOXIC_CLASSES = {"toxic", "toxicity"}  # in the original and in the unbiased models


class DetoxifyScorer:
    """Probability of the ``toxicity`` class of a Detoxify model."""

    name = "detoxify"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, column: int, fingerprint: str
    ) -> None:
        self.model, self.tokenizer, self.column = model.eval(), tokenizer, column
        self.fingerprint = fingerprint

    @classmethod
    def load(cls, name: str) -> DetoxifyScorer:
        """Load an official model (``original``, ``unbiased``, …; downloaded) or a checkpoint file."""
        path = Path(name) if Path(name).is_file() else _official(name)
        _check(path)
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            architecture = stored["config"]["arch"]["args"]
            base, n_classes = architecture["model_type"], architecture["num_classes"]
            classes = stored["config"]["dataset"]["args"]["classes"]
            column = next(i for i, c in enumerate(classes) if c in TOXIC_CLASSES)
            # Old checkpoints carry position ids, which are no weights.
            weights = {k: v for k, v in stored["state_dict"].items() if not k.endswith("position_ids")}
        except (
            pickle.UnpicklingError,
            RuntimeError,
            LookupError,
            TypeError,
            EOFError,
            StopIteration,
        ) as error:
            wrong = f"'{path}' is no Detoxify checkpoint ({type(error).__name__})"
            raise CompanionError(f"{wrong}: choose one that the detoxify package has saved.") from error
        remedy = "go online once, or use a checkpoint whose model_type is a local folder"
        failure = f"Detoxify needs the configuration of '{base}': {remedy}."
        with models.from_hub("Detoxify's configuration", failure):
            config = AutoConfig.from_pretrained(base, num_labels=n_classes)
            tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForSequenceClassification.from_config(config)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            wrong = f"the weights in '{path}' do not fit '{base}'"
            raise CompanionError(f"{wrong}: use the model type it was trained from.") from error
        return cls(model, tokenizer, column, store.sha256_file(path))

    @torch.inference_mode()
    def __call__(self, texts: Iterable[str]) -> Float[np.ndarray, "texts"]:
        texts = tokens.checked(texts)
        scores = np.zeros(len(texts))
        for chosen, batch in tokens.batches(self.tokenizer, texts, MAX_TOKENS, BATCH):
            logits = self.model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
            scores[chosen] = logits[:, self.column].double().sigmoid().numpy()
        return scores


def _official(name: str) -> Path:
    from detoxify.detoxify import MODEL_URLS  # imports slowly, so only when a name has to be resolved

    if name not in MODEL_URLS:
        remedy = f"choose one of {', '.join(MODEL_URLS)} or give a file"
        raise CompanionError(f"there is no Detoxify model or checkpoint file '{name}': {remedy}.")
    url = MODEL_URLS[name]
    path = paths.cache() / "detoxify" / url.rsplit("/", 1)[1]
    if not path.exists():
        store.writable(path.parent)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=_hash_in_name(path), progress=True)
        except (OSError, RuntimeError) as error:
            remedy = "check the network, or give a local checkpoint as detoxify:FILE"
            raise CompanionError(f"the Detoxify model '{name}' could not be downloaded: {remedy}.") from error
    return path


def _hash_in_name(path: Path) -> str | None:
    matched = re.search(r"-([0-9a-f]{8})\.ckpt$", path.name)
    return matched.group(1) if matched else None


def _check(path: Path) -> None:
    """Compare a checkpoint with the sha256 in the note beside it or, failing that, in its name."""
    note = path.with_name(path.name + ".sha256")
    words = note.read_text(encoding="utf-8").lower().split() if note.is_file() else [_hash_in_name(path)]
    expected = words[0] if words else None
    if expected is None or len(expected) not in (8, 64):  # 8 in the official names
        remedy = f"if you trust it, write its sha256 to '{note.name}' beside it"
        raise CompanionError(f"'{path}' is a pickle without a known hash: {remedy}.")
    if not store.sha256_file(path).startswith(expected):
        wrong = f"'{path}' does not have its known sha256 ({expected[:8]}…)"
        raise CompanionError(f"{wrong}: delete it and download it again.")
