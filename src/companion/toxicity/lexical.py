"""alt-profanity-check: a linear classifier over word counts (a pickle, so hash-checked first)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from companion.errors import CompanionError
from companion.lm import tokens
from companion.store import sha256_file

VERSION = "1.9.1"

SHA256 = {
    "model.joblib": "aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b",
    "vectorizer.joblib": "19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831",
}


class LexicalScorer:
    """Probability of profanity by alt-profanity-check.

    Raises
    ------
    CompanionError
        If the package is missing or its pickles are not the ones that were reviewed.
    """

    name = "lexical"

    def __init__(self) -> None:
        spec = importlib.util.find_spec("profanity_check")
        if spec is None:
            raise CompanionError(
                f"the package alt-profanity-check is missing: run `pip install alt-profanity-check=={VERSION}`."
            )
        folder = Path(spec.origin).parent / "data"
        for name, expected in SHA256.items():  # unpickled on import, so checked before it
            if sha256_file(folder / name) != expected:
                found = importlib.metadata.version("alt-profanity-check")
                raise CompanionError(
                    f"'{name}' of alt-profanity-check {found} is not the reviewed one: run `pip install --force-reinstall alt-profanity-check=={VERSION}`."
                )
        from profanity_check import predict_prob

        self._predict = predict_prob

    def __call__(self, texts: Iterable[str]) -> Float[np.ndarray, "texts"]:
        texts = tokens.checked(texts)
        return np.asarray(self._predict(texts), dtype=np.float64) if texts else np.zeros(0)
