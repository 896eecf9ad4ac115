"""Denoising language models: score the next token of a text, given a corrupted copy of it.

Two kinds behind one interface. :class:`PrefixDenoiser` is a causal language model with three
LoRA adapters on one set of frozen weights: it reads ``corrupted text <sep>`` and writes the text.
The adapters work from ``<sep>`` on, so that all three share what the frozen model read.
:class:`Seq2SeqDenoiser` is three encoder-decoders, as in the paper (BART).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel, PreTrainedTokenizerBase

from companion import tokens
from companion.errors import CompanionError

BASE, EXPERT, ANTI_EXPERT = ROLES = ("base", "expert", "anti_expert")
MASK, SEPARATOR = "<empty_output>", "<file_sep>"  # special tokens of SmolLM2 that plain text never gives
ROWS = 64  # rows of a padded batch
PACK = 512  # tokens of a packed row: enough to keep the cores busy, few enough for attention to stay cheap


class Encoded(NamedTuple):
    """Token ids of a text and the characters each stands for."""

    ids: list[int]
    spans: list[tuple[int, int]]


class Decoding(Protocol):
    """A batch of targets being written, one token each at a time."""

    def step(self, ids: Int[Tensor, "rows"] | None) -> Float[Tensor, "rows vocab"]:
        """Append a token to each target (None: nothing yet) and return the logits of the next."""
        ...


class Denoiser(Protocol):
    """What masking and rewriting need of a denoising model."""

    mask_id: int
    end_id: int
    marks: list[int]  # special tokens, never part of a text

    def encode(self, text: str) -> Encoded:
        """Token ids of plain text, without marks."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without marks."""
        ...

    def next_logits(self, roles: Sequence[str], sources: Sequence[list[int]], targets: Sequence[list[int]]) -> Iterator[Float[Tensor, "role rows vocab"]]:
        """Logits of the token after each target, given its source, for each role; some rows at a time, in order."""
        ...

    def begin(self, roles: Sequence[str], sources: Sequence[list[int]]) -> Decoding:
        """Start writing one target per source, each with the model of its role."""
        ...


class Trie(NamedTuple):
    """Sequences packed into one row so that a common beginning stands there once."""

    ids: list[int]
    depth: list[int]
    ancestors: Bool[Tensor, "node node"]  # each node and those before it in its sequence
    ends: list[int]  # last node of each sequence


def trie(sequences: Sequence[Sequence[int]]) -> Trie:
    """Pack sequences into a trie: a node attends to its ancestors only."""
    child: dict[tuple[int, int], int] = {}
    ids, depth, parent, ends = [], [], [], []
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


class PrefixDenoiser:
    """A causal language model with adapters ``base``, ``expert`` and ``anti_expert`` (PEFT), in one pass for all rows."""

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        marks = tokenizer.convert_tokens_to_ids([MASK, SEPARATOR])
        if len({*marks, tokenizer.unk_token_id}) < 2 or None in marks:
            raise CompanionError(f"this model's vocabulary lacks the marks {MASK} and {SEPARATOR} of a denoiser: use SmolLM2.")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.mask_id, self.separator_id = marks
        self.end_id = tokenizer.eos_token_id
        self.marks = list(tokenizer.all_special_ids)

    def encode(self, text: str) -> Encoded:
        found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        return Encoded(found["input_ids"], found["offset_mapping"])

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def opened(self, source: Sequence[int]) -> list[int]:
        """A source as the model reads it: after a mark, which takes the place of the attention sink.

        The first position of a causal model collects idle attention and forgets what stands there;
        without the mark that would be the first word.
        """
        return [self.end_id, *source]

    @torch.inference_mode()
    def next_logits(self, roles: Sequence[str], sources: Sequence[list[int]], targets: Sequence[list[int]]) -> Iterator[Float[Tensor, "role rows vocab"]]:
        for chosen in packs(sources, targets):
            yield self._packed(roles, [sources[i] for i in chosen], [targets[i] for i in chosen])

    def _packed(self, roles: Sequence[str], sources: list[list[int]], targets: list[list[int]]) -> Float[Tensor, "role rows vocab"]:
        """One packed row: the frozen model reads all sources once, the adapters read on from there."""
        rows = [[*self.opened(source), self.separator_id, *target] for source, target in zip(sources, targets, strict=True)]
        packed = trie(rows)
        read = _reading(packed, self.separator_id)
        order = torch.cat([read.nonzero()[:, 0], (~read).nonzero()[:, 0]])  # what is read stands before what is written
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        n = int(read.sum())
        device = self.model.device
        ids, positions = (torch.tensor(values)[order][None].to(device) for values in (packed.ids, packed.depth))
        mask = torch.zeros(len(order), len(order)).masked_fill(~packed.ancestors[order][:, order], -torch.inf)[None, None].to(device)
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

    def begin(self, roles: Sequence[str], sources: Sequence[list[int]]) -> Decoding:
        return _PrefixDecoding(self, roles, sources)

    def _read(self, ids: Int[Tensor, "rows pos"], mask: Tensor, positions: Int[Tensor, "rows pos"]) -> DynamicCache:
        """What the frozen model, without adapters, keeps of the sources."""
        cache = DynamicCache(config=self.model.config)
        with self.model.disable_adapter():
            self.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache


def _reading(packed: Trie, separator: int) -> Bool[Tensor, "node"]:
    """Which nodes stand before the separator of their sequence."""
    separators = torch.tensor(packed.ids) == separator
    return ~(packed.ancestors & separators).any(-1)


def packs(sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[list[int]]:
    """Consecutive rows in groups of at most about ``PACK`` tokens, common beginnings not counted twice."""
    found, size = [], PACK
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        shared = _common(source, sources[i - 1]) if i else 0
        added = len(source) - shared + len(target) + 1
        if size + added > PACK:
            found.append([])
            size, added = 0, added + shared
        found[-1].append(i)
        size += added
    return found


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return n


class _PrefixDecoding:
    """Targets of a :class:`PrefixDenoiser` with a key-value cache; equal sources are read once."""

    @torch.inference_mode()
    def __init__(self, denoiser: PrefixDenoiser, roles: Sequence[str], sources: Sequence[list[int]]) -> None:
        self.denoiser, self.roles = denoiser, list(roles)
        unique = {tuple(source): i for i, source in enumerate(dict.fromkeys(map(tuple, sources)))}
        batch = tokens.pad([denoiser.opened(source) for source in unique], "left")
        device = denoiser.model.device
        self.cache = denoiser._read(batch.ids.to(device), batch.mask.long().to(device), batch.positions.to(device))
        row = torch.tensor([unique[tuple(source)] for source in sources])
        self.cache.batch_select_indices(row.to(device))
        self.attention = batch.mask[row].long().to(device)
        self.position = batch.mask[row].sum(-1, keepdim=True).to(device)

    @torch.inference_mode()
    def step(self, ids: Int[Tensor, "rows"] | None) -> Float[Tensor, "rows vocab"]:
        if ids is None:
            ids = torch.full((len(self.roles),), self.denoiser.separator_id, device=self.position.device)
        self.attention = torch.cat([self.attention, torch.ones_like(self.position)], dim=1)
        logits = self.denoiser.model(
            input_ids=ids[:, None].to(self.position.device),
            attention_mask=self.attention,
            position_ids=self.position,
            past_key_values=self.cache,
            adapter_names=self.roles,
        ).logits[:, -1]
        self.position = self.position + 1
        return logits


class Seq2SeqDenoiser:
    """Three encoder-decoders of one vocabulary (BART-base, the published expert and anti-expert)."""

    def __init__(self, models: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> None:
        self.models, self.tokenizer = {role: model.eval() for role, model in models.items()}, tokenizer
        self.mask_id, self.end_id = tokenizer.mask_token_id, tokenizer.eos_token_id
        self.marks = list(tokenizer.all_special_ids)

    def encode(self, text: str) -> Encoded:
        found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        return Encoded(found["input_ids"], found["offset_mapping"])

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @torch.inference_mode()
    def next_logits(self, roles: Sequence[str], sources: Sequence[list[int]], targets: Sequence[list[int]]) -> Iterator[Float[Tensor, "role rows vocab"]]:
        for start in range(0, len(sources), ROWS):
            source = tokens.pad([self._closed(s) for s in sources[start : start + ROWS]], "right")
            target = tokens.pad([[*self._begun, *t] for t in targets[start : start + ROWS]], "right")
            last = target.mask.sum(-1) - 1
            yield torch.stack([self._teacher_forced(self.models[role], source, target)[torch.arange(len(last)), last] for role in roles])

    def _teacher_forced(self, model: PreTrainedModel, source: tokens.Batch, target: tokens.Batch) -> Float[Tensor, "rows pos vocab"]:
        given = {"input_ids": source.ids, "attention_mask": source.mask.long(), "decoder_input_ids": target.ids}
        return model(**{name: value.to(model.device) for name, value in given.items()}, use_cache=False).logits

    def begin(self, roles: Sequence[str], sources: Sequence[list[int]]) -> Decoding:
        return _Seq2SeqDecoding(self, roles, [self._closed(source) for source in sources])

    @property
    def _begun(self) -> list[int]:
        """What each target starts with: ``</s><s>``, as in the published code."""
        return [next(iter(self.models.values())).config.decoder_start_token_id, self.tokenizer.bos_token_id]

    def _closed(self, ids: list[int]) -> list[int]:
        return [self.tokenizer.bos_token_id, *ids, self.end_id]


class _Seq2SeqDecoding:
    """Targets of a :class:`Seq2SeqDenoiser`; the rows of a role are written by its model, with a key-value cache."""

    @torch.inference_mode()
    def __init__(self, denoiser: Seq2SeqDenoiser, roles: Sequence[str], sources: Sequence[list[int]]) -> None:
        self.n, self.begun = len(roles), denoiser._begun
        self.parts = []
        for role in dict.fromkeys(roles):
            rows = torch.tensor([i for i, r in enumerate(roles) if r == role])
            model = denoiser.models[role]
            batch = tokens.pad([sources[i] for i in rows], "right")
            mask = batch.mask.long().to(model.device)
            states = model.get_encoder()(input_ids=batch.ids.to(model.device), attention_mask=mask)
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            self.parts.append((rows, model, {"encoder_outputs": states, "attention_mask": mask, "past_key_values": cache}))

    @torch.inference_mode()
    def step(self, ids: Int[Tensor, "rows"] | None) -> Float[Tensor, "rows vocab"]:
        given = torch.tensor(self.begun).expand(self.n, -1) if ids is None else ids.cpu()[:, None]
        found = None
        for rows, model, state in self.parts:
            logits = model(decoder_input_ids=given[rows].to(model.device), use_cache=True, **state).logits[:, -1]
            found = logits.new_empty(self.n, logits.shape[-1]) if found is None else found
            found[rows] = logits
        return found
