"""Toxicity scorers behind one interface: texts in, a probability of toxicity each out.

==========  ============================================================================
lexical     alt-profanity-check: sees words, blind to subtle toxicity
embedded    the offline default: half of Gemma 3 270M, and MiniLM, with LoRA adapters
second      the offline control: half of SmolLM2, trained on other rows; it selects nothing
detoxify    the classifiers of Unitary (online by name, or a local checkpoint)
==========  ============================================================================

All scorers are deterministic, score in batches, and give each text a score that does not
depend on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from companion.errors import CompanionError


@runtime_checkable
class Scorer(Protocol):
    """Scores texts; higher is more toxic."""

    name: str
    fingerprint: str  # of the weights: what is chosen by a scorer is stored under it

    def __call__(self, texts: Iterable[str]) -> Float[np.ndarray, "texts"]:
        """Return a probability in [0, 1] for each text; an empty text scores as any other."""
        ...


def load(name: str) -> Scorer:
    """Load a scorer: ``lexical``, ``embedded``, ``second``, or ``detoxify[:MODEL_OR_CHECKPOINT]``.

    Examples
    --------
    >>> from companion import toxicity
    >>> scorer = toxicity.load("embedded")
    >>> civil, rude = scorer(["Thank you, that was kind.", "You are a worthless idiot."])
    >>> bool(civil < 0.5 < rude)
    True

    Raises
    ------
    CompanionError
        If there is no scorer of that name, or what it needs is missing or has been changed.
    """
    kind, _, detail = name.partition(":")
    match kind:
        case "lexical":
            from companion.toxicity.lexical import LexicalScorer

            return LexicalScorer()
        case "embedded" | "second":
            from companion.toxicity.fine_tuned import FineTunedScorer

            return FineTunedScorer.load(kind)
        case "detoxify":
            from companion.toxicity.detoxify import DetoxifyScorer

            return DetoxifyScorer.load(detail or "original")
    raise CompanionError(f"there is no scorer '{name}': choose lexical, embedded, second or detoxify.")
