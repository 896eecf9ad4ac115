"""Pack many nearly equal sequences into one row, so that a common beginning is computed once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

PACK = 512  # tokens of a packed row: enough to keep the cores busy, few enough for attention to stay cheap


class Trie(NamedTuple):
    """Sequences packed into one row so that a common beginning stands there once."""

    ids: list[int]
    depth: list[int]
    ancestors: Bool[Tensor, "node node"]  # each node and those before it in its sequence
    ends: list[int]  # last node of each sequence


def pack(sequences: Sequence[Sequence[int]]) -> Trie:
    """Pack sequences into a trie: a node attends to its ancestors only."""
    child: dict[tuple[int, int], int] = {}
    ids: list[int] = []
    depth: list[int] = []
    parent: list[int] = []
    ends: list[int] = []
    for sequence in sequences:
        node = -1
        for i, token in enumerate(sequence):
            if (node, token) not in child:
                child[node, token] = len(ids)
                ids.append(token)
                depth.append(i)
                parent.append(node)
            node = child[node, token]
        ends.append(node)
    ancestors = torch.eye(len(ids), dtype=torch.bool)
    for node, above in enumerate(parent):
        if above >= 0:
            ancestors[node] |= ancestors[above]
    return Trie(ids, depth, ancestors, ends)


def reading(packed: Trie, separator: int) -> Bool[Tensor, "node"]:
    """Which nodes stand before the separator of their sequence."""
    separators = torch.tensor(packed.ids) == separator
    return ~(packed.ancestors & separators).any(-1)


def packs(sequences: Sequence[Sequence[int]], limit: int = PACK) -> list[list[int]]:
    """Consecutive sequences in groups of at most about ``limit`` tokens, common beginnings counted once."""
    groups: list[list[int]] = []
    before: Sequence[int] = []
    size = limit
    for i, sequence in enumerate(sequences):
        common = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(sequence, before, strict=False))
        added = len(sequence) - len(list(common))
        before = sequence
        if size + added > limit:
            groups.append([])
            size, added = 0, len(sequence)
        groups[-1].append(i)
        size += added
    return groups
