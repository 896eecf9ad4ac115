"""What a rewrite must say and where it is free: the words that stay, and the blanks between them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from companion.marco.denoisers.protocol import Denoiser
from companion.marco.rewriting.words import Sentence

RUN = 3  # tokens in a row that a blank does not say again
ROOM = 4  # tokens that each blank may take beyond those of the masked words that are still to be replaced


class Script:
    """What one target must say: its fixed tokens and its blanks; or nothing (free writing).

    What stands before the first blank is written from the start. ``answers`` holds what each blank says.
    """

    def __init__(self, source: list[int], sentence: Sentence, denoiser: Denoiser, anchored: bool) -> None:
        self.blank, self.end, self.decode = denoiser.mask_id, denoiser.end_id, denoiser.decode
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
        self.answers: list[list[int]] = [[] for _ in range(self.blanks_left if anchored else 0)]

    @property
    def blanks_left(self) -> int:
        """Blanks that are not yet filled, the present one included."""
        return self.rest.count(self.blank)

    def restrict(self, scores: Float[Tensor, "vocab"]) -> None:
        """Leave only what may come next (in place): never a mark, an end only where the text ends.

        A blank does not say again what the text says elsewhere, unless that is how the text goes on.
        """
        scores[self.banned] = -torch.inf
        if self.done or not self.anchored:  # free writing may end anywhere
            return
        if self.rest[0] != self.blank or self.room == 0:
            only = self.rest[0] if self.rest[0] != self.blank else self.rest[1]
            keep = scores[only].clone()
            scores.fill_(-torch.inf)
            scores[only] = keep
        else:
            unless = self.rest[1]
            scores[[t for t in (self.end, *self._said_before()) if t != unless]] = -torch.inf

    def take(self, token: int) -> int:
        """Append the next token and move on in the script; a finished target repeats its end."""
        if self.done:
            return self.end
        if self.anchored:
            if self.rest[0] != self.blank:
                self.rest = self.rest[1:]
            elif self._goes_on(token):  # the blank is full
                self.rest, self.room = self.rest[2:], self.left + ROOM
            else:
                self.answers[-self.blanks_left].append(token)
                self.room, self.left = self.room - 1, max(0, self.left - 1)
        if token != self.end:
            self.written.append(token)
        self.done = token == self.end or len(self.written) == self.limit
        if self.anchored and not self.done and not self.blanks_left:  # what follows is fixed
            self.written += self.rest[:-1]
            self.done = True
        return token

    def _goes_on(self, token: int) -> bool:
        """Whether a token is what follows the blank, perhaps with another capital.

        At the beginning of the text its space may be missing, too. Otherwise a blank before "this city" would
        be filled with "This city".
        """
        one, other = (self.decode([t]).casefold() for t in (token, self.rest[1]))
        return token == self.rest[1] or (bool(one) and one == (other if self.written else other.lstrip()))

    def _said_before(self) -> list[int]:
        """Tokens that, after the last ones, would make a run of ``RUN`` that the text has elsewhere."""
        text, last = [*self.written, *self.rest], self.written[1 - RUN :]
        starts = range(len(text) - RUN + 1)
        return [text[i + RUN - 1] for i in starts if text[i : i + RUN - 1] == last]
