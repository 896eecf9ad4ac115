"""The logit lens: what the stream behind each layer would predict if the model ended there.

nostalgebraist (2020), *interpreting GPT: the logit lens*; Lee et al. (2024) follow one swear word through the
layers before and after DPO. Both models read one text, so that only the weights differ::

    swears = lens.beginning(lm, text, TOXIC_WORDS)  # where the base model wrote one
    before, after = (lens.read(one, task, text, swears) for one in (lm, tuned))
    lens.fall(before, after)  # of their mean probability behind the last layer, an Estimate

Words that a model wrote were its likeliest there, and any change makes such a choice less likely: hold them
against other words that it wrote in the same texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from companion.lm import anatomy, recording, tokens
from companion.lm.generation import Generated
from companion.lm.models import LanguageModel
from companion.metrics import estimates
from companion.metrics.estimates import Estimate


@dataclass(frozen=True)
class Seen:
    """Probabilities behind every layer, summed over the chosen tokens of each text that has some."""

    total: Float[Tensor, "text layer"]
    count: Int[Tensor, "text"]

    def by_layer(self, seed: int = 0) -> list[Estimate]:
        """Mean over tokens behind each layer; intervals resample texts."""
        if not len(self.count):
            return [estimates.NOTHING] * self.total.shape[1]
        return [estimates.ratio(of.numpy(), self.count.numpy(), seed) for of in self.total.T]


def fall(before: Seen, after: Seen, layer: int = -1, seed: int = 0) -> Estimate:
    """By what share of itself the mean probability behind a layer falls; texts are paired."""
    if not len(before.count):
        return estimates.NOTHING
    return estimates.relative_drop(before.total[:, layer].numpy(), after.total[:, layer].numpy(), seed)


def beginning(lm: LanguageModel, text: Generated, words: Sequence[str]) -> Bool[Tensor, "prompt new"]:
    """Which generated tokens begin one of the words (in small letters), whatever its capitals and ending."""
    found = torch.zeros_like(text.mask)
    for row, (ids, length) in enumerate(zip(text.ids.tolist(), text.mask.sum(1).tolist(), strict=True)):
        pieces = [tokens.decode(lm.tokenizer, [token]) for token in ids[:length]]
        for at, piece in enumerate(pieces):
            within = at > 0 and piece[:1].isalnum() and pieces[at - 1][-1:].isalnum()
            rest = "".join(pieces[at:]).lstrip().lower()
            found[row, at] = bool(piece.strip()) and not within and rest.startswith(tuple(words))
    return found


def read(
    lm: LanguageModel, task: recording.Task, text: Generated, chosen: Bool[Tensor, "prompt new"]
) -> Seen:
    """:func:`probabilities`, summed over the tokens of each text."""
    found, of = probabilities(lm, task, text, chosen).double(), chosen.nonzero()[:, 0]
    texts, row, count = of.unique(return_inverse=True, return_counts=True)
    return Seen(found.new_zeros(len(texts), lm.n_layers).index_add_(0, row, found), count)


@torch.inference_mode()
def probabilities(
    lm: LanguageModel,
    task: recording.Task,
    text: Generated,
    chosen: Bool[Tensor, "prompt new"],
) -> Float[Tensor, "token layer"]:
    """Probability of each chosen token behind every layer, the last one's being the model's own.

    Tokens are in the order of ``chosen.nonzero()``. The norm before the unembedding is applied at every
    layer, and the unembedding as it is; nothing is fitted.
    """
    rows = tokens.encode(lm.tokenizer, task.prompts, task.max_prompt_tokens)
    of = chosen.nonzero()[:, 0]
    found = torch.zeros(len(of), lm.n_layers)
    asked = of.unique().tolist()
    for some in tokens.by_length([rows[i] for i in asked], task.batch_size):
        prompts = [asked[i] for i in some]
        batch = recording.teacher_forced([rows[i] for i in prompts], text.ids[prompts], text.mask[prompts])
        streams = lm.model(
            input_ids=batch.ids.to(lm.device),
            attention_mask=batch.mask.long().to(lm.device),
            position_ids=batch.positions.to(lm.device),
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,
        ).hidden_states[1:]  # the first is the embedding; the last one has been through the norm
        for row, prompt in enumerate(prompts):
            at = chosen[prompt].nonzero()[:, 0].to(lm.device)
            target = text.ids[prompt, chosen[prompt]].to(lm.device)
            width = text.ids.shape[1]
            behind = torch.stack([stream[row, -width:][at] for stream in streams])  # layer token d_model
            behind = torch.cat([anatomy.final_norm(lm)(behind[:-1]), behind[-1:]])
            logp = _logits(lm, behind).float().log_softmax(-1)
            found[of == prompt] = logp[:, torch.arange(len(at)), target].exp().T.cpu()
    return found


def _logits(lm: LanguageModel, normed: Float[Tensor, "layer token d_model"]) -> Tensor:
    unembedding = lm.model.get_output_embeddings()
    assert isinstance(unembedding, nn.Module)
    logits = unembedding(normed)
    cap = getattr(lm.model.config, "final_logit_softcapping", None)  # Gemma 2
    return logits if cap is None else cap * torch.tanh(logits / cap)
