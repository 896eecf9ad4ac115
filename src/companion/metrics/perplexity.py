"""Negative log-likelihoods and what is made of them, in fp32 or better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float

from companion.lm import tokens, trie
from companion.lm.models import LanguageModel
from companion.lm.rows import passing
from companion.metrics.estimates import Estimate, ratio

LOSS_TOKENS = 256  # tokens read together: the logits of a large vocabulary fill memory


@torch.inference_mode()
def cross_entropy(
    lm: LanguageModel, windows: Sequence[Sequence[int]], batch_size: int = 2, context: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return, per window of ids, the summed negative log-likelihood (nats, fp64) and the tokens scored.

    The first ``context`` tokens of a window are read and not scored.
    """
    sums, counts = [], []
    for start in range(0, len(windows), batch_size):
        batch = tokens.pad(windows[start : start + batch_size], "right")
        ids, mask = batch.ids.to(lm.device), batch.mask.to(lm.device)
        with passing(range(start, start + len(ids))):
            logits = lm.model(input_ids=ids, attention_mask=mask.long()).logits[:, context - 1 : -1].float()
        target, scored = ids[:, context:], mask[:, context:]
        nll = logits.logsumexp(-1) - logits.gather(-1, target[..., None])[..., 0]
        sums += (nll.double() * scored).sum(-1).tolist()
        counts += scored.sum(-1).tolist()
    return np.array(sums), np.array(counts)


def windows(lm: LanguageModel, texts: Iterable[str], width: int, limit: int | None = None) -> list[list[int]]:
    """Cut texts, joined by blank lines, into windows of ``width`` tokens side by side (Lee et al., 2024).

    A token that the tokenizer puts before every text (Gemma's, Llama's) begins each window: without it such
    models are lost. GPT-2's and SmolLM2's have none.
    """
    ids = tokens.encode(lm.tokenizer, ["\n\n".join(tokens.checked(texts))])[0]
    begin = ids[:1] if ids[0] == lm.tokenizer.bos_token_id else []
    rest, step = ids[len(begin) :], width - len(begin)
    cut = [begin + rest[i : i + step] for i in range(0, len(rest), step)]
    return [w for w in cut if len(w) > 1][:limit]


def perplexity(lm: LanguageModel, cut: Sequence[Sequence[int]], seed: int = 0) -> Estimate:
    """exp(sum of NLL / number of scored tokens); the interval resamples windows."""
    return ratio(*cross_entropy(lm, cut), seed, np.exp)


@torch.inference_mode()
def nll(
    lm: LanguageModel, texts: Iterable[str]
) -> tuple[Float[np.ndarray, "texts"], Float[np.ndarray, "texts"]]:
    """Summed negative log-likelihood (nats) and number of tokens of each text, its first token included.

    Both are 0 for an empty text. Texts are packed in order of their tokens: what several begin with, as
    rewrites of one sentence do, is read once.
    """
    texts = tokens.checked(texts)
    begin = lm.tokenizer.eos_token_id if lm.tokenizer.bos_token_id is None else lm.tokenizer.bos_token_id
    unique = [text for text in dict.fromkeys(texts) if text]
    rows = [row if row[0] == begin else [begin, *row] for row in tokens.encode(lm.tokenizer, unique)]
    order = sorted((i for i, row in enumerate(rows) if len(row) > 1), key=rows.__getitem__)
    measured = dict.fromkeys(["", *unique], (0.0, 0))
    for group in trie.packs([rows[i] for i in order], LOSS_TOKENS):
        some = [order[k] for k in group]
        for i, loss in zip(some, _losses(lm, [rows[i] for i in some]), strict=True):
            measured[unique[i]] = loss, len(rows[i]) - 1
    both = np.array([measured[text] for text in texts], dtype=float).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _losses(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> list[float]:
    """Summed cross-entropy of each row after its first token, in fp64; common beginnings are read once."""
    packed = trie.pack([row[:-1] for row in rows])  # the last token predicts nothing
    ids, positions = (torch.tensor(values, device=lm.device)[None] for values in (packed.ids, packed.depth))
    mask = torch.zeros(packed.ancestors.shape).masked_fill(~packed.ancestors, -torch.inf)  # node node
    logits = lm.model(
        input_ids=ids, position_ids=positions, attention_mask=mask[None, None].to(lm.device), use_cache=False
    ).logits[0]  # node vocab
    logits = logits.float()
    total = logits.logsumexp(-1)
    losses = []
    for row, end in zip(rows, packed.ends, strict=True):
        path = packed.ancestors[end].nonzero()[:, 0].to(lm.device)  # nodes stand in the order of their depth
        predicted = torch.tensor(row[1:], device=lm.device)
        losses.append((total[path] - logits[path, predicted]).double().sum().item())
    return losses
