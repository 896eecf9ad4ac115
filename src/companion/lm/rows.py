"""Which items of a run the rows of a pass are, for hooks that do something else to each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Int
from torch import Tensor

_current: ContextVar[Tensor | None] = ContextVar("rows", default=None)


@contextmanager
def passing(items: Sequence[int] | Int[Tensor, "batch"]) -> Iterator[None]:
    """Say that the rows of the passes within the block are these prompts, windows or texts of the run."""
    before = _current.set(torch.as_tensor(items))
    try:
        yield
    finally:
        _current.reset(before)


def current() -> Int[Tensor, "batch"] | None:
    """The items in the rows of this pass; None if nobody said."""
    return _current.get()
