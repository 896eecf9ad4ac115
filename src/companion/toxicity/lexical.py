"""alt-profanity-check: a linear classifier over word counts (a pickle, so hash-checked first)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from companion.lm import packaged, tokens

INSTALL = "alt-profanity-check==1.9.1"
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
    fingerprint = SHA256["model.joblib"]

    def __init__(self) -> None:
        folder = packaged.folder_of("profanity_check", INSTALL) / "data"
        for name, expected in SHA256.items():  # unpickled on import, so checked before it
            packaged.check(folder / name, expected, INSTALL)
        from profanity_check import predict_prob

        self._predict = predict_prob

    def __call__(self, texts: Iterable[str]) -> Float[np.ndarray, "texts"]:
        texts = tokens.checked(texts)
        return np.asarray(self._predict(texts), dtype=np.float64) if texts else np.zeros(0)
