"""What each kind of work takes in memory beside the weights: the work itself, done on models without bytes.

Under torch's ``FakeTensorMode`` tensors have a shape and no content, so that a model of any size can be
looked at anywhere. Layers are alike: what models of two and of three take says what each further layer does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import kl_div
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from companion.lm.models import quiet
from companion.mechanism.dpo import PairBatch, Triple, collate
from companion.plan import shapes
from companion.plan.work import NEW, PROMPT

TWICE = {torch.ops.aten.logsumexp.default}  # makes a second tensor of the size of the one it is given


class Peak(TorchDispatchMode):
    """Bytes of all tensors made within the block, and no earlier ones of a model: now, and at most."""

    def __init__(self, *models: nn.Module) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known = {p.untyped_storage()._cdata for model in models for p in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        self.most = max(self.most, self.now + (args[0].nbytes if func in TWICE else 0))
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def reading(model: nn.Module, rows: int, width: int) -> None:
    """Losses of windows, as :func:`companion.metrics.perplexity.cross_entropy` finds them."""
    ids = torch.zeros(rows, width, dtype=torch.long)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1].float()
    _ = logits.logsumexp(-1) - logits.gather(-1, ids[:, 1:, None])[..., 0]


def writing(model: PreTrainedModel, rows: int) -> None:
    """A batch of prompts and its last new token, as :mod:`companion.lm.generation` writes it."""
    cache = DynamicCache(config=model.config)
    for width, seen in ((PROMPT, PROMPT), (NEW, PROMPT + NEW)):  # at once, as the cache holds them
        ids = torch.zeros(rows, width, dtype=torch.long)
        mask = torch.ones(rows, seen, dtype=torch.long)
        out = model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        out.logits[:, -1].double().softmax(-1)


def pooling(model: nn.Module, rows: int, width: int) -> None:
    """The residual streams of a batch of comments, as the probe reads them."""
    ids = torch.zeros(rows, width, dtype=torch.long)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, logits_to_keep=1)


def learning(model: nn.Module, pairs: PairBatch, reference: nn.Module | None = None) -> None:
    """Loss and gradients of a batch of pairs; with a reference model, the KL term between the two, too.

    Gradients of weights go as they come: the whole of them is counted by itself.
    """
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    logits = _scored(model, pairs)
    loss = (logits.gather(-1, pairs.target[:, None])[:, 0] - logits.logsumexp(-1)).sum()
    if reference is not None:
        with torch.no_grad():
            theirs = _scored(reference, pairs)
            _ = theirs.logsumexp(-1)
        ours = logits.log_softmax(-1)
        loss = loss + kl_div(ours, theirs.log_softmax(-1), reduction="none", log_target=True).sum()
    loss.backward()


def _scored(model: nn.Module, pairs: PairBatch) -> Tensor:
    """The logits that predict the tokens of completions, as in :mod:`companion.mechanism.dpo`."""
    out = model(
        input_ids=pairs.ids,
        attention_mask=pairs.mask,
        position_ids=pairs.positions,
        use_cache=False,
        logits_to_keep=pairs.source,
    )
    return out.logits[0].float()


def steering(model: PreTrainedModel, rows: int) -> None:
    """A gradient step of :mod:`companion.mechanism.pplm` at the last of the new tokens."""
    width = PROMPT + NEW - 1
    ids = torch.zeros(rows, width, dtype=torch.long)
    past = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
    layers: list[Any] = past.layers  # of attention, all of them
    flat = [t for layer in layers for t in (layer.keys, layer.values)]
    deltas = [torch.zeros_like(t).requires_grad_() for t in flat]
    moved = [t + d for t, d in zip(flat, deltas, strict=True)]
    cache = DynamicCache(list(zip(moved[::2], moved[1::2], strict=True)))
    ahead = {"past_key_values": cache, "use_cache": True, "output_hidden_states": True, "logits_to_keep": 1}
    mask = torch.ones(rows, width + 2, dtype=torch.long)
    out = model(input_ids=ids[:, :1], attention_mask=mask[:, :-1], **ahead)
    soft = out.logits[:, -1].softmax(-1) @ model.get_input_embeddings().get_parameter("weight").detach()
    future = model(inputs_embeds=soft[:, None], attention_mask=mask, **ahead)
    gradients = torch.autograd.grad(future.hidden_states[-1].sum() + out.logits.sum(), deltas)
    _ = [d - g for d, g in zip(deltas, gradients, strict=True)]


@cache
def beside_weights(name: str, work: str, rows: int, width: int = 0) -> int:
    """The most bytes that a piece of work takes beside the weights and their gradients.

    ``work`` is reading, writing, pooling, learning, comparing (learning with the KL term) or steering;
    ``rows`` are windows, prompts, comments or pairs.
    """
    two, three = (_peak(name, layers, work, rows, width) for layers in (2, 3))
    return three + (shapes.of(name).layers - 3) * max(0, three - two)


@cache
def kept_for_gradient(name: str, rows: int) -> int:
    """The same of learning if each layer keeps only what it was given, and makes the rest again."""
    tokens = rows * (PROMPT + 2 * (NEW - 1))
    return _peak(name, 1, "learning", rows, 0) + shapes.of(name).layers * tokens * _width(name) * 4


def _width(name: str) -> int:
    return shapes.of(name).config.hidden_size


def _peak(name: str, layers: int, work: str, rows: int, width: int) -> int:
    config: Any = shapes.shallow(shapes.of(name).config, layers)
    one = Triple(list(range(PROMPT)), list(range(NEW)), list(range(NEW)))
    real = collate([one] * rows) if work in ("learning", "comparing") else None
    with quiet(), FakeTensorMode() as fake:
        made = [AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval() for _ in range(2)]
        model, other = made
        pairs = real and PairBatch(*(fake.from_tensor(t) for t in real))
        do: dict[str, Callable[[], None]] = {
            "reading": torch.no_grad()(partial(reading, model, rows, width)),
            "writing": torch.no_grad()(partial(writing, model, rows)),
            "pooling": torch.no_grad()(partial(pooling, model, rows, width)),
            "steering": partial(steering, model, rows),
        }
        if pairs:
            do["learning"] = partial(learning, model, pairs)
            do["comparing"] = partial(learning, model, pairs, other)
        with Peak(*made) as peak:
            do[work]()
    return peak.most
