"""Three encoder-decoders of one vocabulary as a denoiser, as in the paper (BART)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from companion.lm import tokens
from companion.marco.denoisers.protocol import Decoding, Ids, Tokenised, summed

ROWS = 64  # rows of a padded batch


class Seq2SeqDenoiser(Tokenised):
    """Three encoder-decoders of one vocabulary (BART-base, the published expert and anti-expert)."""

    def __init__(self, models: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self.models = {role: model.eval() for role, model in models.items()}
        self.mask_id = tokenizer.mask_token_id

    @torch.inference_mode()
    def next_logits(
        self, roles: Sequence[str], sources: Ids, targets: Ids
    ) -> Iterator[Float[Tensor, "role rows vocab"]]:
        for start in range(0, len(sources), ROWS):
            source = tokens.pad([self._closed(s) for s in sources[start : start + ROWS]], "right")
            target = tokens.pad([[*self._begun, *t] for t in targets[start : start + ROWS]], "right")
            last = target.mask.sum(-1) - 1
            yield torch.stack(
                [
                    self._teacher_forced(self.models[role], source, target)[torch.arange(len(last)), last]
                    for role in roles
                ]
            )

    def _teacher_forced(
        self, model: PreTrainedModel, source: tokens.Batch, target: tokens.Batch
    ) -> Float[Tensor, "rows pos vocab"]:
        return model(
            input_ids=source.ids.to(model.device),
            attention_mask=source.mask.long().to(model.device),
            decoder_input_ids=target.ids.to(model.device),
            use_cache=False,
        ).logits

    @torch.inference_mode()
    def surprise(self, roles: Sequence[str], sources: Ids, targets: Ids) -> Float[Tensor, "rows role"]:
        source = tokens.pad([self._closed(s) for s in sources], "right")
        target = tokens.pad([[*self._begun, *t, self.end_id] for t in targets], "right")
        real = target.mask[:, 1:].clone()
        real[:, : len(self._begun) - 1] = False  # what every target starts with is given
        shorter = tokens.Batch(target.ids[:, :-1], target.mask[:, :-1])
        sums = []
        for role in roles:
            logits = self._teacher_forced(self.models[role], source, shorter)
            sums.append(summed(logits, target.ids[:, 1:].to(logits.device), real.to(logits.device)))
        return torch.stack(sums, dim=1)

    def begin(self, roles: Sequence[str], sources: Ids, targets: Ids) -> Decoding:
        return _Seq2SeqDecoding(self, roles, [self._closed(source) for source in sources], targets)

    @property
    def _begun(self) -> list[int]:
        """What each target starts with: ``</s><s>``, as in the published code."""
        return [next(iter(self.models.values())).config.decoder_start_token_id, self.tokenizer.bos_token_id]

    def _closed(self, ids: list[int]) -> list[int]:
        return [self.tokenizer.bos_token_id, *ids, self.end_id]


class _Seq2SeqDecoding:
    """Targets of a :class:`Seq2SeqDenoiser` with key-value caches.

    The rows of a role that begin equally long are written together: positions of the decoder count from its
    cache, which knows no padding.
    """

    @torch.inference_mode()
    def __init__(self, denoiser: Seq2SeqDenoiser, roles: Sequence[str], sources: Ids, targets: Ids) -> None:
        self.begun = [[*denoiser._begun, *target] for target in targets]
        self.parts = []
        kinds = [(role, len(target)) for role, target in zip(roles, targets, strict=True)]
        for kind in dict.fromkeys(kinds):
            rows = torch.tensor([i for i, other in enumerate(kinds) if other == kind])
            model = denoiser.models[kind[0]]
            batch = tokens.pad([sources[i] for i in rows], "right")
            attention = batch.mask.long().to(model.device)
            states = model.get_encoder()(input_ids=batch.ids.to(model.device), attention_mask=attention)
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            state = {"encoder_outputs": states, "attention_mask": attention, "past_key_values": cache}
            self.parts.append((rows, model, state))

    @torch.inference_mode()
    def step(self, ids: Int[Tensor, "rows"] | None) -> Float[Tensor, "rows vocab"]:
        next_logits: dict[int, Tensor] = {}
        for rows, model, state in self.parts:
            begun = [self.begun[i] for i in rows.tolist()]
            given = torch.tensor(begun) if ids is None else ids.cpu()[rows, None]
            logits = model(decoder_input_ids=given.to(model.device), use_cache=True, **state).logits[:, -1]
            next_logits |= dict(zip(rows.tolist(), logits, strict=True))
        return torch.stack([next_logits[i] for i in range(len(next_logits))])

    def keep(self, rows: Sequence[int]) -> None:
        place, parts = {old: new for new, old in enumerate(rows)}, []
        for old, model, state in self.parts:
            at = torch.tensor([k for k, row in enumerate(old.tolist()) if row in place])
            if len(at):
                on = at.to(model.device)
                state["past_key_values"].batch_select_indices(on)
                states = BaseModelOutput(state["encoder_outputs"].last_hidden_state[on])
                kept = {
                    "encoder_outputs": states,
                    "attention_mask": state["attention_mask"][on],
                    "past_key_values": state["past_key_values"],
                }
                parts.append((torch.tensor([place[row] for row in old[at].tolist()]), model, kept))
        self.parts = parts
