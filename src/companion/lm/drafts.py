"""Greedy decoding of many variants of a model on the same prompts; what the model itself wrote is the draft.

An intervention leaves much of a text as it was. A variant reads the draft some tokens at a time; those up to
the first that it would not have chosen are its own, and from there it decodes by itself: the tokens are those
of ordinary greedy decoding (speculative decoding, Leviathan et al., 2023). Variants that act on generated
tokens only share one reading of the prompts.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from companion.lm import tokens
from companion.lm.generation import KEPT, Generated, generate, logits_behind
from companion.lm.models import LanguageModel
from companion.lm.rows import passing

READ = 32  # prompts of about one length that are read together; more are decoded together
CHUNK = 5  # tokens of a draft that are read together; after the first wrong one the rest is in vain
OF_ROWS = ("rows", "last", "position", "written", "seen")  # the fields of a front that have a row each


@dataclass(frozen=True)
class Read:
    """Prompts that are read together, and their continuations by the plain model."""

    lm: LanguageModel
    rows: list[int]
    prompts: tokens.Batch
    draft: Int[Tensor, "batch new"]

    @cached_property
    @torch.inference_mode()
    def cache(self) -> DynamicCache:
        """The plain model's, of all but the last token of each prompt; read when it is first asked for."""
        cache = DynamicCache(config=self.lm.model.config)
        if self.prompts.ids.shape[1] > 1:
            ids, mask, positions = (t[:, :-1] for t in (*self.prompts, self.prompts.positions))
            logits_behind(self.lm, ids, mask, positions, cache, 1)
        return cache


@dataclass
class Front:
    """Rows that a variant goes on writing, with their cache and which of its columns each row sees.

    ``written`` counts the tokens of a row so far; ``last`` is the last of them, which has not been read yet,
    and ``position`` is where it stands.
    """

    rows: Int[Tensor, "row"]
    last: Int[Tensor, "row"]
    position: Int[Tensor, "row"]
    written: Int[Tensor, "row"]
    seen: Bool[Tensor, "row column"]
    cache: DynamicCache

    def keep(self, chosen: Bool[Tensor, "row"]) -> Front:
        """Some of the rows; the cache of this front stays as it is."""
        cache = _fork(self.cache)
        cache.batch_select_indices(chosen.nonzero()[:, 0])
        return Front(**{name: getattr(self, name)[chosen] for name in OF_ROWS}, cache=cache)


class Drafts:
    """Prompts, and what a model writes after them: now, and later as a variant of itself.

    ``plain`` is what the model writes by itself, if that is known: any other text is a slower draft.
    ``first`` is the number of the first prompt in the run (:mod:`companion.lm.rows`).

    Examples
    --------
    >>> from companion.lm import models
    >>> from companion.lm.drafts import Drafts
    >>> drafts = Drafts(models.load("tiny-llama"), ["I think that"], new_tokens=5, max_prompt_tokens=32)
    >>> drafts.variant(whole=True).texts == drafts.plain.texts  # nothing is done to the model
    True
    """

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Sequence[str],
        *,
        new_tokens: int,
        max_prompt_tokens: int,
        batch_size: int = 128,
        first: int = 0,
        plain: Generated | None = None,
    ) -> None:
        self.lm, self.first, self.ends = lm, first, torch.tensor(lm.eos_ids, device=lm.device)
        self.plain = plain or generate(
            lm, prompts, new_tokens=new_tokens, max_prompt_tokens=max_prompt_tokens, batch_size=batch_size
        )
        rows = tokens.encode(lm.tokenizer, prompts, max_prompt_tokens)
        reads = [
            self._read(chosen, tokens.pad([rows[i] for i in chosen], "left"))
            for chosen in tokens.by_length(rows, min(READ, batch_size))
        ]
        together = max(1, batch_size // READ)
        self.batches = [reads[i : i + together] for i in range(0, len(reads), together)]

    def variant(self, change: AbstractContextManager | None = None, *, whole: bool) -> Generated:
        """What the model writes while it is changed, at most as much as the drafts.

        ``change`` puts hooks on the model, and takes them off again; they act at all positions of a pass.
        ``whole``: prompts are read with them. If not, what is read are the positions that predict tokens.
        """
        ids, mask = torch.zeros_like(self.plain.ids), torch.zeros_like(self.plain.mask)
        for read in (read for reads in self.batches for read in reads if not whole):
            _ = read.cache  # the plain model's: not to be read once the model is changed
        with change or nullcontext():
            for reads in self.batches:
                written, rows = _Writing(self, reads, whole), [row for read in reads for row in read.rows]
                ids[rows], mask[rows] = written.ids.cpu(), written.mask.cpu()
        texts = [
            tokens.decode(self.lm.tokenizer, row[kept].tolist()) for row, kept in zip(ids, mask, strict=True)
        ]
        return Generated(ids, mask, texts)

    def _read(self, rows: list[int], prompts: tokens.Batch) -> Read:
        device = self.lm.device
        on_device = tokens.Batch(prompts.ids.to(device), prompts.mask.to(device))
        return Read(self.lm, rows, on_device, self.plain.ids[rows].to(device))


class _Writing:
    """One batch as a variant writes it: along the draft, and from where it leaves the draft on its own."""

    @torch.inference_mode()
    def __init__(self, drafts: Drafts, reads: list[Read], whole: bool) -> None:
        self.drafts = drafts
        self.ids = torch.cat([torch.zeros_like(read.draft) for read in reads])
        self.mask = torch.zeros_like(self.ids, dtype=torch.bool)
        self.length = torch.cat([read.prompts.mask.sum(1) for read in reads])  # of each prompt
        numbers = [row for read in reads for row in read.rows]
        self.items = drafts.first + torch.tensor(numbers, device=self.ids.device)
        left, first = [], 0
        for read in reads:
            left += self._along_the_draft(read, first, whole)
            first += len(read.rows)
        if left:
            self._on_its_own(_merged(left))

    def _along_the_draft(self, read: Read, first: int, whole: bool) -> list[Front]:
        """Take over what the variant would have written, too; return the rows that leave the draft.

        ``first`` is the row of the read's first prompt in this batch.
        """
        size, new = read.draft.shape
        device, left = read.draft.device, []
        rows, seen, draft = first + torch.arange(size, device=device), read.prompts.mask, read.draft
        cache = DynamicCache(config=self.drafts.lm.model.config) if whole else _fork(read.cache)
        unread = read.prompts.ids if whole else read.prompts.ids[:, -1:]
        positions = read.prompts.positions[:, -unread.shape[1] :]
        for start in range(0, new, CHUNK):
            proposed = draft[:, start : start + CHUNK]
            width = proposed.shape[1]
            ahead = torch.arange(width - 1, device=device)
            seen = torch.cat([seen, seen.new_ones(len(rows), width - 1)], 1)
            positions = torch.cat([positions, positions[:, -1:] + 1 + ahead], 1)
            ids = torch.cat([unread, proposed[:, :-1]], 1)
            with passing(self.items[rows]):
                chosen = logits_behind(self.drafts.lm, ids, seen, positions, cache, width).argmax(-1)
            agreed = (chosen == proposed).long().cumprod(1).sum(1)  # row: tokens of the draft taken over
            goes_on = self._write(rows, chosen, start, (agreed + 1).clamp(max=width))
            leaves = goes_on & (agreed < width)
            if leaves.any():
                true = seen.clone()
                true[:, true.shape[1] - width + 1 :] = ahead < agreed[:, None]
                written = start + agreed + 1
                last = chosen.gather(1, agreed.clamp(max=width - 1)[:, None])[:, 0]
                front = Front(rows, last, self.length[rows] + written - 1, written, true, cache)
                left.append(front.keep(leaves))
            stays = goes_on & (agreed == width)
            if not stays.any() or start + width == new:
                break
            cache.batch_select_indices(stays.nonzero()[:, 0])
            rows, draft, unread = rows[stays], draft[stays], proposed[stays][:, -1:]
            seen = torch.cat([seen[stays], seen.new_ones(len(rows), 1)], 1)
            positions = (self.length[rows] + start + width - 1)[:, None]
        return left

    def _on_its_own(self, front: Front) -> None:
        """Decode token by token until every row has ended or is as long as the draft."""
        alive = torch.ones_like(front.rows, dtype=torch.bool)
        while alive.any():
            if alive.sum() <= KEPT * len(alive):
                front, alive = front.keep(alive), alive[alive]
            front.seen = torch.cat([front.seen, front.seen.new_ones(len(alive), 1)], 1)
            ids, positions = front.last[:, None], front.position[:, None]
            with passing(self.items[front.rows]):
                chosen = logits_behind(self.drafts.lm, ids, front.seen, positions, front.cache, 1).argmax(-1)
            alive = alive & self._write(front.rows, chosen, front.written, alive.long())
            front.last, front.position = chosen[:, 0], front.position + 1
            front.written = front.written + 1

    def _write(
        self,
        rows: Int[Tensor, "row"],
        chosen: Int[Tensor, "row width"],
        start: int | Int[Tensor, "row"],
        count: Int[Tensor, "row"],
    ) -> Bool[Tensor, "row"]:
        """Write the first ``count`` tokens of each row, up to its end; return which rows go on."""
        ended = torch.isin(chosen, self.drafts.ends).long().cumsum(1)
        before = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], 1)  # ends before each token
        at = torch.arange(chosen.shape[1], device=chosen.device)
        column = (start if isinstance(start, int) else start[:, None]) + at.expand_as(chosen)
        new = self.ids.shape[1]
        valid = (at < count[:, None]) & (before == 0) & (column < new)
        where = rows[:, None].expand_as(chosen)[valid], column[valid]
        self.ids[where], self.mask[where] = chosen[valid], True
        reached = (ended * valid).any(1)
        return ~reached & ((column * valid).amax(1) < new - 1)


def _fork(cache: DynamicCache) -> DynamicCache:
    """A cache that grows and loses rows without the first one noticing: what changes is made anew."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    return fork


def _merged(fronts: list[Front]) -> Front:
    """Fronts with caches of different width as one; a row does not see the columns that it lacks."""
    widest = max(fronts, key=lambda front: front.seen.shape[1])

    def wider(tensor: Tensor, behind: int) -> Tensor:
        """Columns added on the left; so many dimensions are behind theirs."""
        missing = widest.seen.shape[1] - tensor.shape[-1 - behind]
        return pad(tensor, (0, 0) * behind + (missing, 0))

    padded = [replace(front, seen=wider(front.seen, 0)) for front in fronts]
    cache = _fork(widest.cache)
    for layer, *each in zip(cache.layers, *(front.cache.layers for front in fronts), strict=True):
        layer.keys = torch.cat([wider(one.keys, 1) for one in each])
        layer.values = torch.cat([wider(one.values, 1) for one in each])
    parts = {name: torch.cat([getattr(front, name) for front in padded]) for name in OF_ROWS}
    return Front(**parts, cache=cache)
