"""Preference pairs for tests of training; light to import, because each of several processes does."""

from __future__ import annotations

from companion.mechanism.pairs import Pair


def some_pairs(n: int) -> list[Pair]:
    """Pairs of varied length that have something to learn: chosen continuations count up, rejected ones
    shout."""
    prompts = ["The cat", "I said that", "a", "When it rains in the", "No", "You are"]
    return [
        Pair(f"{prompts[i % 6]} {i}", f" {i} and {'so ' * (i % 3)}", "!" * (2 + i % 7), 0.1, 0.9)
        for i in range(n)
    ]
