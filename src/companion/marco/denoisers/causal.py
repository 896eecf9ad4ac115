"""A causal language model as a denoiser: it reads ``corrupted text <sep>`` and writes the text.

Three LoRA adapters sit on one set of frozen weights. They work from ``<sep>`` on, so that all three
share what the frozen model read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from companion.errors import CompanionError
from companion.lm import tokens, trie
from companion.marco.denoisers.protocol import Decoding, Tokenised, summed

MASK, SEPARATOR = "<empty_output>", "<file_sep>"  # special tokens of SmolLM2 that plain text never gives
ALIKE = 8  # rows of about equal length are read together: in at most so many groups, of at least so many rows


class PrefixDenoiser(Tokenised):
    """A causal language model with adapters ``base``, ``expert`` and ``anti_expert`` (PEFT), in one pass for all rows."""

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        marks = tokenizer.convert_tokens_to_ids([MASK, SEPARATOR])
        if len({*marks, tokenizer.unk_token_id}) < 2 or None in marks:
            raise CompanionError(
                f"this model's vocabulary lacks the marks {MASK} and {SEPARATOR} of a denoiser: use SmolLM2."
            )
        super().__init__(tokenizer)
        self.model = model.eval()
        self.mask_id, self.separator_id = marks

    def opened(self, source: Sequence[int]) -> list[int]:
        """A source as the model reads it: after a mark, which takes the place of the attention sink.

        The first position of a causal model collects idle attention and forgets what stands there;
        without the mark that would be the first word.
        """
        return [self.end_id, *source]

    @torch.inference_mode()
    def next_logits(
        self, roles: Sequence[str], sources: Sequence[list[int]], targets: Sequence[list[int]]
    ) -> Iterator[Float[Tensor, "role rows vocab"]]:
        rows = [
            [*self.opened(source), self.separator_id, *target]
            for source, target in zip(sources, targets, strict=True)
        ]
        for chosen in trie.packs(rows):
            yield self._packed(roles, trie.pack([rows[i] for i in chosen]))

    def _packed(self, roles: Sequence[str], packed: trie.Trie) -> Float[Tensor, "role rows vocab"]:
        """One packed row: the frozen model reads all sources once, the adapters read on from there."""
        read = trie.reading(packed, self.separator_id)
        order = torch.cat(
            [read.nonzero()[:, 0], (~read).nonzero()[:, 0]]
        )  # what is read stands before what is written
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        n = int(read.sum())
        device = self.model.device
        ids, positions = (
            torch.tensor(values)[order][None].to(device) for values in (packed.ids, packed.depth)
        )
        mask = (
            torch.zeros(len(order), len(order))
            .masked_fill(~packed.ancestors[order][:, order], -torch.inf)[None, None]
            .to(device)
        )
        cache = self._read(ids[:, :n], mask[..., :n, :n], positions[:, :n])
        cache.batch_repeat_interleave(len(roles))
        keep = (place[torch.tensor(packed.ends)] - n).to(device)
        return self.model(
            input_ids=ids[:, n:].expand(len(roles), -1),
            attention_mask=mask[..., n:, :].expand(len(roles), -1, -1, -1),
            position_ids=positions[:, n:].expand(len(roles), -1),
            past_key_values=cache,
            logits_to_keep=keep,
            adapter_names=list(roles),
        ).logits

    def surprise(
        self, roles: Sequence[str], sources: Sequence[list[int]], targets: Sequence[list[int]]
    ) -> Float[Tensor, "rows role"]:
        """As in :class:`companion.marco.denoisers.protocol.Denoiser`, with gradients to the adapters of ``roles``: the loss of their training."""
        device, n = self.model.device, len(roles)
        source = tokens.pad([self.opened(s) for s in sources], "right")
        target = tokens.pad([[self.separator_id, *t, self.end_id] for t in targets], "right")
        source_mask, target_mask = source.mask.long().to(device), target.mask[:, :-1].long().to(device)
        with torch.no_grad():
            cache = self._read(source.ids.to(device), source_mask, source.positions.to(device))
        cache.batch_repeat_interleave(n)
        self.model.base_model.set_adapter(list(roles))  # reading has switched their gradients off
        ids, mask, positions = (
            values.repeat_interleave(n, dim=0)
            for values in (
                target.ids.to(device),
                torch.cat([source_mask, target_mask], dim=1),
                source_mask.sum(-1, keepdim=True) + target.positions[:, :-1].to(device),
            )
        )
        written = {
            "input_ids": ids[:, :-1],
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": cache,
        }
        logits = self.model(**written, adapter_names=list(roles) * len(sources)).logits
        return summed(logits, ids[:, 1:], target.mask[:, 1:].to(device).repeat_interleave(n, dim=0)).view(
            len(sources), n
        )

    def begin(
        self, roles: Sequence[str], sources: Sequence[list[int]], targets: Sequence[list[int]]
    ) -> Decoding:
        return _PrefixDecoding(self, roles, sources, targets)

    def _read(
        self, ids: Int[Tensor, "rows pos"], mask: Tensor, positions: Int[Tensor, "rows pos"]
    ) -> DynamicCache:
        """What the frozen model, without adapters, keeps of the sources."""
        cache = DynamicCache(config=self.model.config)
        with self.model.disable_adapter():
            self.model.get_base_model().get_decoder()(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        return cache


class _PrefixDecoding:
    """Targets of a :class:`PrefixDenoiser` with a key-value cache; equal sources are read once."""

    def __init__(
        self,
        denoiser: PrefixDenoiser,
        roles: Sequence[str],
        sources: Sequence[list[int]],
        targets: Sequence[list[int]],
    ) -> None:
        self.denoiser, self.roles = denoiser, list(roles)
        self.sources = [tuple(denoiser.opened(source)) for source in sources]
        self.begun = [[denoiser.separator_id, *target] for target in targets]

    @torch.inference_mode()
    def step(self, ids: Int[Tensor, "rows"] | None) -> Float[Tensor, "rows vocab"]:
        if ids is None:
            self.held, logits = self._begin()
        else:
            self.held, logits = self._written(
                self.held, ids[:, None], torch.ones_like(ids, dtype=torch.bool)[:, None], self.roles
            )
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        self.held, self.roles = self.held.of(rows), [self.roles[i] for i in rows]

    def _begin(self) -> tuple[_Held, Float[Tensor, "rows vocab"]]:
        """Read the sources and what their targets begin with; rows of about equal length together, for little padding."""
        unique = list(dict.fromkeys(self.sources))
        place = {source: i for i, source in enumerate(unique)}
        groups = _alike(unique)
        read = _Held.merged([self._read([unique[i] for i in rows]) for rows in groups], groups)
        groups, parts = _alike(self.begun), []
        for rows in groups:
            begun = tokens.pad([self.begun[i] for i in rows], "left")
            parts.append(
                self._written(
                    read.of([place[self.sources[i]] for i in rows]),
                    begun.ids,
                    begun.mask,
                    [self.roles[i] for i in rows],
                )
            )
        held, logits = zip(*parts, strict=True)
        return _Held.merged(held, groups), torch.cat(logits)[_back(groups)]

    def _read(self, sources: Sequence[Sequence[int]]) -> _Held:
        batch, device = tokens.pad(sources, "left"), self.denoiser.model.device
        cache = self.denoiser._read(
            batch.ids.to(device), batch.mask.long().to(device), batch.positions.to(device)
        )
        return _Held(cache, batch.mask.long().to(device))

    def _written(
        self, held: _Held, ids: Int[Tensor, "rows pos"], mask: Bool[Tensor, "rows pos"], roles: list[str]
    ) -> tuple[_Held, Float[Tensor, "rows vocab"]]:
        """Append tokens (padded on the left) to each target; the logits of the next."""
        device = held.mask.device
        seen = torch.cat([held.mask, mask.long().to(device)], dim=1)
        positions = (seen.cumsum(-1) - 1)[:, -ids.shape[1] :]
        given = {
            "input_ids": ids.to(device),
            "attention_mask": seen,
            "position_ids": positions,
            "past_key_values": held.cache,
        }
        last = torch.tensor([-1], device=device)  # as an index: of a slice, torch would multiply row by row
        logits = self.denoiser.model(**given, logits_to_keep=last, adapter_names=roles).logits[:, -1]
        return _Held(held.cache, seen), logits


class _Held(NamedTuple):
    """Keys and values of what some rows have read and written, padded on the left."""

    cache: DynamicCache
    mask: Int[Tensor, "rows pos"]

    def of(self, rows: Sequence[int]) -> _Held:
        """A copy for some of the rows, or several times the same."""
        at = torch.tensor(rows, device=self.mask.device)
        return _Held(
            DynamicCache([(layer.keys[at], layer.values[at]) for layer in self.cache.layers]), self.mask[at]
        )

    @classmethod
    def merged(cls, parts: Sequence[_Held], groups: Sequence[Sequence[int]]) -> _Held:
        """Rows that were computed in groups, in their own order, as wide as the widest."""
        width, back = max(part.mask.shape[1] for part in parts), _back(groups)

        def joined(values: Sequence[Tensor], dim: int) -> Tensor:
            return torch.cat(
                [
                    torch.cat(
                        [v.new_zeros(*v.shape[:dim], width - v.shape[dim], *v.shape[dim + 1 :]), v], dim
                    )
                    for v in values
                ]
            )[back]

        layers = zip(*(part.cache.layers for part in parts), strict=True)
        cache = DynamicCache(
            [
                (joined([layer.keys for layer in some], 2), joined([layer.values for layer in some], 2))
                for some in layers
            ]
        )
        return cls(cache, joined([part.mask for part in parts], 1))


def _alike(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of rows in groups of about equal length."""
    return tokens.by_length(rows, max(ALIKE, -(-len(rows) // ALIKE)))


def _back(groups: Sequence[Sequence[int]]) -> Int[Tensor, "rows"]:
    """Where each row stands in the groups, one after the other."""
    return torch.tensor([i for rows in groups for i in rows]).argsort()
