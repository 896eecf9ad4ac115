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
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from companion import tokens
from companion.errors import CompanionError
from companion.marco import packing

BASE, EXPERT, ANTI_EXPERT = ROLES = ("base", "expert", "anti_expert")
MASK, SEPARATOR = "<empty_output>", "<file_sep>"  # special tokens of SmolLM2 that plain text never gives
ROWS = 64  # rows of a padded batch


class Encoded(NamedTuple):
    """Token ids of a text and the characters each stands for."""

    ids: list[int]
    spans: list[tuple[int, int]]


class Decoding(Protocol):
    """A batch of targets being written, one token each at a time."""

    def step(self, ids: Int[Tensor, "rows"] | None) -> Float[Tensor, "rows vocab"]:
        """Append a token to each target (None: nothing, the first time) and return the logits of the next."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these targets only."""
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

    def surprise(self, roles: Sequence[str], sources: Sequence[list[int]], targets: Sequence[list[int]]) -> Float[Tensor, "rows role"]:
        """Cross-entropy of each target (its end included) given its source, summed over tokens, in nats; all rows in one batch."""
        ...

    def begin(self, roles: Sequence[str], sources: Sequence[list[int]], targets: Sequence[list[int]]) -> Decoding:
        """Start writing one target per source, each with the model of its role and after what ``targets`` says already."""
        ...


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
        for chosen in packing.packs(sources, targets):
            yield self._packed(roles, [sources[i] for i in chosen], [targets[i] for i in chosen])

    def _packed(self, roles: Sequence[str], sources: list[list[int]], targets: list[list[int]]) -> Float[Tensor, "role rows vocab"]:
        """One packed row: the frozen model reads all sources once, the adapters read on from there."""
        rows = [[*self.opened(source), self.separator_id, *target] for source, target in zip(sources, targets, strict=True)]
        packed = packing.trie(rows)
        read = packing.reading(packed, self.separator_id)
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

    def surprise(self, roles: Sequence[str], sources: Sequence[list[int]], targets: Sequence[list[int]]) -> Float[Tensor, "rows role"]:
        """As in :class:`Denoiser`, with gradients to the adapters of ``roles``: the loss of their training."""
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
        written = {"input_ids": ids[:, :-1], "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        logits = self.model(**written, adapter_names=list(roles) * len(sources)).logits
        return _summed(logits, ids[:, 1:], target.mask[:, 1:].to(device).repeat_interleave(n, dim=0)).view(len(sources), n)

    def begin(self, roles: Sequence[str], sources: Sequence[list[int]], targets: Sequence[list[int]]) -> Decoding:
        return _PrefixDecoding(self, roles, sources, targets)

    def _read(self, ids: Int[Tensor, "rows pos"], mask: Tensor, positions: Int[Tensor, "rows pos"]) -> DynamicCache:
        """What the frozen model, without adapters, keeps of the sources."""
        cache = DynamicCache(config=self.model.config)
        with self.model.disable_adapter():
            self.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache


def _summed(logits: Float[Tensor, "rows pos vocab"], ids: Int[Tensor, "rows pos"], real: Bool[Tensor, "rows pos"]) -> Float[Tensor, "rows"]:
    """Cross-entropy of the real tokens of each row, summed in fp32."""
    each = torch.zeros(real.shape, device=logits.device)
    each[real] = cross_entropy(logits[real].float(), ids[real], reduction="none")
    return each.sum(-1)


class _PrefixDecoding:
    """Targets of a :class:`PrefixDenoiser` with a key-value cache; equal sources are read once."""

    @torch.inference_mode()
    def __init__(self, denoiser: PrefixDenoiser, roles: Sequence[str], sources: Sequence[list[int]], targets: Sequence[list[int]]) -> None:
        self.denoiser, self.roles = denoiser, list(roles)
        unique = {tuple(source): i for i, source in enumerate(dict.fromkeys(map(tuple, sources)))}
        batch = tokens.pad([denoiser.opened(source) for source in unique], "left")
        device = denoiser.model.device
        self.cache = denoiser._read(batch.ids.to(device), batch.mask.long().to(device), batch.positions.to(device))
        row = torch.tensor([unique[tuple(source)] for source in sources])
        self.cache.batch_select_indices(row.to(device))
        self.begun = tokens.pad([[denoiser.separator_id, *target] for target in targets], "left")
        self.attention = batch.mask[row].long().to(device)
        self.position = batch.mask[row].sum(-1, keepdim=True).to(device)

    @torch.inference_mode()
    def step(self, ids: Int[Tensor, "rows"] | None) -> Float[Tensor, "rows vocab"]:
        device = self.position.device
        if ids is None:
            given, mask, positions = (values.to(device) for values in (self.begun.ids, self.begun.mask.long(), self.begun.positions))
        else:
            given, mask, positions = ids[:, None].to(device), torch.ones_like(self.position), torch.zeros_like(self.position)
        self.attention = torch.cat([self.attention, mask], dim=1)
        logits = self.denoiser.model(
            input_ids=given,
            attention_mask=self.attention,
            position_ids=self.position + positions,
            past_key_values=self.cache,
            logits_to_keep=1,
            adapter_names=self.roles,
        ).logits[:, -1]
        self.position = self.position + mask.sum(-1, keepdim=True)
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        at = torch.tensor(rows, device=self.position.device)
        self.cache.batch_select_indices(at)
        self.attention, self.position, self.roles = self.attention[at], self.position[at], [self.roles[i] for i in rows]


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

    @torch.inference_mode()
    def surprise(self, roles: Sequence[str], sources: Sequence[list[int]], targets: Sequence[list[int]]) -> Float[Tensor, "rows role"]:
        source = tokens.pad([self._closed(s) for s in sources], "right")
        target = tokens.pad([[*self._begun, *t, self.end_id] for t in targets], "right")
        real = target.mask[:, 1:].clone()
        real[:, : len(self._begun) - 1] = False  # what every target starts with is given
        shorter = tokens.Batch(target.ids[:, :-1], target.mask[:, :-1])
        found = []
        for role in roles:
            logits = self._teacher_forced(self.models[role], source, shorter)
            found.append(_summed(logits, target.ids[:, 1:].to(logits.device), real.to(logits.device)))
        return torch.stack(found, dim=1)

    def begin(self, roles: Sequence[str], sources: Sequence[list[int]], targets: Sequence[list[int]]) -> Decoding:
        return _Seq2SeqDecoding(self, roles, [self._closed(source) for source in sources], targets)

    @property
    def _begun(self) -> list[int]:
        """What each target starts with: ``</s><s>``, as in the published code."""
        return [next(iter(self.models.values())).config.decoder_start_token_id, self.tokenizer.bos_token_id]

    def _closed(self, ids: list[int]) -> list[int]:
        return [self.tokenizer.bos_token_id, *ids, self.end_id]


class _Seq2SeqDecoding:
    """Targets of a :class:`Seq2SeqDenoiser` with key-value caches.

    The rows of a role that begin equally long are written together: positions of the decoder count from its cache, which knows no padding.
    """

    @torch.inference_mode()
    def __init__(self, denoiser: Seq2SeqDenoiser, roles: Sequence[str], sources: Sequence[list[int]], targets: Sequence[list[int]]) -> None:
        self.begun = [[*denoiser._begun, *target] for target in targets]
        self.parts = []
        kinds = [(role, len(target)) for role, target in zip(roles, targets, strict=True)]
        for kind in dict.fromkeys(kinds):
            rows = torch.tensor([i for i, other in enumerate(kinds) if other == kind])
            model = denoiser.models[kind[0]]
            batch = tokens.pad([sources[i] for i in rows], "right")
            mask = batch.mask.long().to(model.device)
            states = model.get_encoder()(input_ids=batch.ids.to(model.device), attention_mask=mask)
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            self.parts.append((rows, model, {"encoder_outputs": states, "attention_mask": mask, "past_key_values": cache}))

    @torch.inference_mode()
    def step(self, ids: Int[Tensor, "rows"] | None) -> Float[Tensor, "rows vocab"]:
        found: dict[int, Tensor] = {}
        for rows, model, state in self.parts:
            given = torch.tensor([self.begun[i] for i in rows.tolist()]) if ids is None else ids.cpu()[rows, None]
            logits = model(decoder_input_ids=given.to(model.device), use_cache=True, **state).logits[:, -1]
            found |= dict(zip(rows.tolist(), logits, strict=True))
        return torch.stack([found[i] for i in range(len(found))])

    def keep(self, rows: Sequence[int]) -> None:
        place, parts = {old: new for new, old in enumerate(rows)}, []
        for old, model, state in self.parts:
            at = torch.tensor([k for k, row in enumerate(old.tolist()) if row in place])
            if len(at):
                on = at.to(model.device)
                state["past_key_values"].batch_select_indices(on)
                states = BaseModelOutput(state["encoder_outputs"].last_hidden_state[on])
                kept = {"encoder_outputs": states, "attention_mask": state["attention_mask"][on], "past_key_values": state["past_key_values"]}
                parts.append((torch.tensor([place[row] for row in old[at].tolist()]), model, kept))
        self.parts = parts
