"""What a rewrite must say and where it is free: the words that stay, and the blanks between them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from companion.marco.denoisers.protocol import Denoiser
from companion.marco.rewriting.words import Sentence

ROOM = 4  # tokens that each blank may take beyond those of the masked words that are still to be replaced


class Script:
    """What one target must say: its fixed tokens and its blanks; or nothing (free writing).

    What stands before the first blank is written from the start.
    """

    def __init__(self, source: list[int], sentence: Sentence, denoiser: Denoiser, anchored: bool) -> None:
        self.blank, self.end = denoiser.mask_id, denoiser.end_id
        # masks side by side are one blank
        fixed = [t for k, t in enumerate(source) if t != self.blank or source[k - 1 : k] != [self.blank]]
        self.rest = [*fixed, self.end]
        self.anchored, self.done = anchored, False
        self.banned = [i for i in denoiser.marks if i != self.end]
        # tokens that were taken out and not written again
        self.left = len(sentence.ids) - len(source) + source.count(self.blank)
        self.room = self.left + ROOM  # of this blank
        self.limit = 2 * len(sentence.ids) + ROOM
        first = 0
        if anchored:
            self.limit = len(source) + self.left + ROOM * self.blanks_left + 1
            first = self.rest.index(self.blank) if self.blanks_left else 0
        self.written, self.rest = self.rest[:first], self.rest[first:]

    @property
    def blanks_left(self) -> int:
        """Blanks that are not yet filled, the present one included."""
        return self.rest.count(self.blank)

    def restrict(self, scores: Float[Tensor, "vocab"]) -> None:
        """Leave only what may come next (in place): never a mark, an end only where the text ends."""
        scores[self.banned] = -torch.inf
        if self.done or not self.anchored:  # free writing may end anywhere
            return
        if self.rest[0] != self.blank or self.room == 0:
            only = self.rest[0] if self.rest[0] != self.blank else self.rest[1]
            keep = scores[only].clone()
            scores.fill_(-torch.inf)
            scores[only] = keep
        elif self.rest[1] != self.end:
            scores[self.end] = -torch.inf

    def take(self, token: int) -> int:
        """Append the next token and move on in the script; a finished target repeats its end."""
        if self.done:
            return self.end
        if self.anchored:
            if self.rest[0] != self.blank:
                self.rest = self.rest[1:]
            elif token == self.rest[1]:  # the blank is full, and the text goes on
                self.rest, self.room = self.rest[2:], self.left + ROOM
            else:
                self.room, self.left = self.room - 1, max(0, self.left - 1)
        if token != self.end:
            self.written.append(token)
        self.done = token == self.end or len(self.written) == self.limit
        if self.anchored and not self.done and not self.blanks_left:  # what follows is fixed
            self.written += self.rest[:-1]
            self.done = True
        return token
