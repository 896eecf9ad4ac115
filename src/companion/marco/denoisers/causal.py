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
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedTokenizerBase

from companion.errors import CompanionError
from companion.lm import tokens, trie
from companion.marco.denoisers.protocol import Decoding, Ids, Tokenised, summed

MASK, SEPARATOR = "<empty_output>", "<file_sep>"  # special tokens of SmolLM2 that plain text never gives
ALIKE = 8  # rows of about equal length are read together: in at most so many groups, of at least so many rows


class PrefixDenoiser(Tokenised):
    """A causal language model with adapters for the three roles (PEFT), all in one pass."""

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        vocabulary = tokenizer.get_vocab()
        if MASK not in vocabulary or SEPARATOR not in vocabulary:
            raise CompanionError(
                f"this model's vocabulary lacks the marks {MASK} and {SEPARATOR} of a denoiser: use SmolLM2."
            )
        super().__init__(tokenizer)
        self.model = model.eval()
        self.mask_id, self.separator_id = vocabulary[MASK], vocabulary[SEPARATOR]

    def opened(self, source: Sequence[int]) -> list[int]:
        """A source as the model reads it: after a mark, which takes the place of the attention sink.

        The first position of a causal model collects idle attention and forgets what stands there;
        without the mark that would be the first word.
        """
        return [self.end_id, *source]

    @torch.inference_mode()
    def next_logits(
        self, roles: Sequence[str], sources: Ids, targets: Ids
    ) -> Iterator[Float[Tensor, "role rows vocab"]]:
        rows = [
            [*self.opened(source), self.separator_id, *target]
            for source, target in zip(sources, targets, strict=True)
        ]
        for chosen in trie.packs(rows):
            yield self._packed(roles, trie.pack([rows[i] for i in chosen]))

    def _packed(self, roles: Sequence[str], packed: trie.Trie) -> Float[Tensor, "role rows vocab"]:
        """One packed row: the frozen model reads all sources once, the adapters read on from there."""
        device, read = self.model.device, trie.reading(packed, self.separator_id)  # node
        n = int(read.sum())
        order = torch.cat([read.nonzero()[:, 0], (~read).nonzero()[:, 0]])  # what is read, then the rest
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        ids = torch.tensor(packed.ids)[order][None].to(device)  # 1, node
        positions = torch.tensor(packed.depth)[order][None].to(device)  # 1, node
        attention = torch.zeros(len(order), len(order))
        attention = attention.masked_fill(~packed.ancestors[order][:, order], -torch.inf)[None, None].to(
            device
        )
        cache = self._read(ids[:, :n], attention[..., :n, :n], positions[:, :n])
        cache.batch_repeat_interleave(len(roles))
        return self.model(
            input_ids=ids[:, n:].expand(len(roles), -1),  # role, written
            attention_mask=attention[..., n:, :].expand(len(roles), -1, -1, -1),  # role, 1, written, node
            position_ids=positions[:, n:].expand(len(roles), -1),
            past_key_values=cache,
            logits_to_keep=(place[torch.tensor(packed.ends)] - n).to(device),  # rows
            adapter_names=list(roles),
        ).logits  # role, rows, vocab

    def surprise(self, roles: Sequence[str], sources: Ids, targets: Ids) -> Float[Tensor, "rows role"]:
        """As in :class:`companion.marco.denoisers.protocol.Denoiser`, the loss that adapters are trained by.

        It has gradients to the adapters of ``roles``.
        """
        device, n = self.model.device, len(roles)
        source = tokens.pad([self.opened(s) for s in sources], "right")
        target = tokens.pad([[self.separator_id, *t, self.end_id] for t in targets], "right")
        source_attention = source.mask.long().to(device)  # rows, source
        with torch.no_grad():
            cache = self._read(source.ids.to(device), source_attention, source.positions.to(device))
        cache.batch_repeat_interleave(n)  # rows·role: the roles of a row stand side by side
        self.model.base_model.set_adapter(list(roles))  # type: ignore[operator]  # a LoraModel
        attention = torch.cat([source_attention, target.mask[:, :-1].long().to(device)], dim=1)
        positions = source_attention.sum(-1, keepdim=True) + target.positions[:, :-1].to(device)
        ids = target.ids.to(device).repeat_interleave(n, dim=0)  # rows·role, target
        logits = self.model(
            input_ids=ids[:, :-1],
            attention_mask=attention.repeat_interleave(n, dim=0),  # rows·role, source + target
            position_ids=positions.repeat_interleave(n, dim=0),
            past_key_values=cache,
            adapter_names=list(roles) * len(sources),
        ).logits  # rows·role, target, vocab
        real = target.mask[:, 1:].to(device).repeat_interleave(n, dim=0)
        return summed(logits, ids[:, 1:], real).view(len(sources), n)

    def begin(self, roles: Sequence[str], sources: Ids, targets: Ids) -> Decoding:
        return _PrefixDecoding(self, roles, sources, targets)

    def _read(
        self, ids: Int[Tensor, "rows pos"], attention: Tensor, positions: Int[Tensor, "rows pos"]
    ) -> DynamicCache:
        """What the frozen model, without adapters, keeps of the sources."""
        cache = DynamicCache(config=self.model.config)
        with self.model.disable_adapter():
            decoder = self.model.get_base_model().get_decoder()  # type: ignore[operator]  # not any Module
            decoder(
                input_ids=ids,
                attention_mask=attention,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        return cache


class _PrefixDecoding:
    """Targets of a :class:`PrefixDenoiser` with a key-value cache; equal sources are read once."""

    def __init__(self, denoiser: PrefixDenoiser, roles: Sequence[str], sources: Ids, targets: Ids) -> None:
        self.denoiser, self.roles = denoiser, list(roles)
        self.sources = [tuple(denoiser.opened(source)) for source in sources]
        self.begun = [[denoiser.separator_id, *target] for target in targets]

    @torch.inference_mode()
    def step(self, ids: Int[Tensor, "rows"] | None) -> Float[Tensor, "rows vocab"]:
        if ids is None:
            self.held, logits = self._begin()
        else:
            real = torch.ones_like(ids, dtype=torch.bool)[:, None]
            self.held, logits = self._written(self.held, ids[:, None], real, self.roles)
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        self.held, self.roles = self.held.of(rows), [self.roles[i] for i in rows]

    def _begin(self) -> tuple[_Held, Float[Tensor, "rows vocab"]]:
        """Read the sources and what their targets begin with; those of like length together."""
        unique = list(dict.fromkeys(self.sources))
        place = {source: i for i, source in enumerate(unique)}
        groups = _alike(unique)
        read = _Held.merged([self._read([unique[i] for i in rows]) for rows in groups], groups)
        groups, parts = _alike(self.begun), []
        for rows in groups:
            begun = tokens.pad([self.begun[i] for i in rows], "left")
            held = read.of([place[self.sources[i]] for i in rows])
            parts.append(self._written(held, begun.ids, begun.mask, [self.roles[i] for i in rows]))
        helds, logits = zip(*parts, strict=True)
        return _Held.merged(helds, groups), torch.cat(logits)[_back(groups)]

    def _read(self, sources: Sequence[Sequence[int]]) -> _Held:
        batch, device = tokens.pad(sources, "left"), self.denoiser.model.device
        attention = batch.mask.long().to(device)
        return _Held(
            self.denoiser._read(batch.ids.to(device), attention, batch.positions.to(device)), attention
        )

    def _written(
        self, held: _Held, ids: Int[Tensor, "rows pos"], real: Bool[Tensor, "rows pos"], roles: list[str]
    ) -> tuple[_Held, Float[Tensor, "rows vocab"]]:
        """Append tokens (padded on the left) to each target; the logits of the next."""
        device = held.attention.device
        attention = torch.cat([held.attention, real.long().to(device)], dim=1)  # rows, held + pos
        logits = self.denoiser.model(
            input_ids=ids.to(device),
            attention_mask=attention,
            position_ids=(attention.cumsum(-1) - 1)[:, -ids.shape[1] :],  # rows, pos
            past_key_values=held.cache,
            # as an index: of a slice, torch would multiply row by row
            logits_to_keep=torch.tensor([-1], device=device),
            adapter_names=roles,
        ).logits[:, -1]  # rows, vocab
        return _Held(held.cache, attention), logits


class _Held(NamedTuple):
    """Keys and values of what some rows have read and written, padded on the left, and where they count."""

    cache: DynamicCache
    attention: Int[Tensor, "rows pos"]

    def of(self, rows: Sequence[int]) -> _Held:
        """A copy for some of the rows, or several times the same."""
        at = torch.tensor(rows, device=self.attention.device)
        return _Held(DynamicCache([(k[at], v[at]) for k, v in _layers(self.cache)]), self.attention[at])

    @classmethod
    def merged(cls, parts: Sequence[_Held], groups: Sequence[Sequence[int]]) -> _Held:
        """Rows that were computed in groups, in their own order, as wide as the widest."""
        width, back = max(part.attention.shape[1] for part in parts), _back(groups)
        gaps = [width - part.attention.shape[1] for part in parts]

        def joined(values: Sequence[Tensor]) -> Float[Tensor, "rows head pos d"]:
            return torch.cat([pad(v, (0, 0, gap, 0)) for v, gap in zip(values, gaps, strict=True)])[back]

        layers = zip(*(_layers(part.cache) for part in parts), strict=True)
        cache = DynamicCache(
            [(joined([k for k, _ in some]), joined([v for _, v in some])) for some in layers]
        )
        attention = [pad(part.attention, (gap, 0)) for part, gap in zip(parts, gaps, strict=True)]
        return cls(cache, torch.cat(attention)[back])


def _layers(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer (rows, head, pos, d); ours has no layers of another kind."""
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr, misc]


def _alike(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of rows in groups of about equal length."""
    return tokens.by_length(rows, max(ALIKE, -(-len(rows) // ALIKE)))


def _back(groups: Sequence[Sequence[int]]) -> Int[Tensor, "rows"]:
    """Where each row stands in the groups, one after the other."""
    return torch.tensor([i for rows in groups for i in rows]).argsort()
