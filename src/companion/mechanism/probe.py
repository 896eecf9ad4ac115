"""A linear probe for toxicity in the residual stream, and what its direction writes.

Lee et al. (2024), section 3.1: a logistic regression on the mean over tokens of a late residual
stream; its weight vector W is the toxic direction. Value vectors with a high cosine with W
are the toxic value vectors; the SVD of the top ones gives further directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import cosine_similarity

from companion import store
from companion.data import by_profile
from companion.lm import tokens
from companion.lm.anatomy import final_norm_gain
from companion.lm.models import LanguageModel
from companion.profiles import Profile

MAX_TOKENS = 128
STRENGTH = 0.01  # inverse strength of the L2 penalty; fixed on training folds


@dataclass(frozen=True)
class Probe:
    """``logit = pooled @ weight + bias`` on the residual stream that enters block ``layer``."""

    weight: Float[Tensor, "d_model"]
    bias: Float[Tensor, ""]
    layer: int

    def logits(self, pooled: Float[Tensor, "texts d_model"]) -> Float[Tensor, "texts"]:
        return pooled @ self.weight.to(pooled) + self.bias.to(pooled)

    @property
    def direction(self) -> Float[Tensor, "d_model"]:
        """The toxic direction at unit length."""
        return self.weight / self.weight.norm()

    def save(self, path: Path) -> None:
        save_file({"weight": self.weight, "bias": self.bias, "layer": torch.tensor(self.layer)}, path)

    @classmethod
    def load(cls, path: Path) -> Probe:
        stored = load_file(path)
        return cls(stored["weight"], stored["bias"], int(stored["layer"]))


def pool(hidden: Float[Tensor, "batch pos d_model"], batch: tokens.Batch) -> Float[Tensor, "batch d_model"]:
    """Mean over real tokens except the first (over the only one if there is just one).

    The first token is an attention sink: its residual is many times longer than all others and
    does not depend on the text, so that averaging it in would write 1/length into the features.
    """
    mask = batch.mask & ((batch.positions > 0) | (batch.mask.sum(-1, keepdim=True) == 1))
    weight = mask.unsqueeze(-1).to(hidden)
    return (hidden * weight).sum(1) / weight.sum(1)


@torch.inference_mode()
def features(
    lm: LanguageModel,
    texts: Sequence[str],
    layers: Sequence[int],
    batch_size: int = 32,
) -> Float[Tensor, "layer texts d_model"]:
    """Pooled residual stream entering each of ``layers`` (0 is the embedding), in fp32.

    Layer ``n_layers`` is refused: transformers reports it after the final norm, and value vectors
    write into the stream before it.
    """
    if not all(0 <= layer < lm.n_layers for layer in layers):
        raise ValueError(f"layers must lie in 0 … {lm.n_layers - 1}, got {list(layers)}")
    rows = tokens.encode(lm.tokenizer, texts, MAX_TOKENS)
    out = torch.zeros(len(layers), len(rows), lm.model.config.hidden_size)
    for chosen in tokens.by_length(rows, batch_size):
        batch = tokens.pad([rows[i] for i in chosen], "right")
        batch = tokens.Batch(batch.ids.to(lm.device), batch.mask.to(lm.device))
        hidden = lm.model(
            input_ids=batch.ids, attention_mask=batch.mask.long(), output_hidden_states=True, logits_to_keep=1
        ).hidden_states
        for i, layer in enumerate(layers):
            out[i, chosen] = pool(hidden[layer].float(), batch).cpu()
    return out


def classifier(strength: float = STRENGTH) -> LogisticRegression:
    """The logistic regression of the probe; ``strength`` is scikit-learn's C."""
    return LogisticRegression(C=strength, max_iter=3000)


def scale(pooled: Float[Tensor, "texts d_model"]) -> float:
    """Mean standard deviation of the features: one number, so that scaling turns no direction."""
    return float(pooled.std(0).mean())


def fit(
    pooled: Float[Tensor, "texts d_model"],
    labels: Int[np.ndarray, "texts"],
    layer: int,
    strength: float = STRENGTH,
) -> Probe:
    """Fit a probe on centred features divided by one common scale; both are folded into the weights.

    ::

        pooled = features(lm, texts, [lm.n_layers - 1])[0]  # texts, d_model
        fitted = fit(pooled, labels, lm.n_layers - 1)
        toxic = fitted.logits(pooled) > 0
    """
    centre, width = pooled.mean(0), scale(pooled)
    with threadpool_limits(1):  # on so small a matrix threads wait for each other
        regression = classifier(strength).fit(((pooled - centre) / width).numpy(), labels)
    weight = torch.tensor(regression.coef_[0], dtype=torch.float32) / width
    return Probe(weight, torch.tensor(regression.intercept_[0], dtype=torch.float32) - weight @ centre, layer)


def trained(
    lm: LanguageModel,
    texts: Sequence[str],
    labels: Int[np.ndarray, "texts"],
    layer: int,
    pooled: Float[Tensor, "texts d_model"] | None = None,
) -> Probe:
    """Return the probe fitted on these comments, from the store or fitted now.

    ``pooled`` saves the forward passes where :func:`features` of the texts at this layer are at hand.
    """

    def build(folder: Path) -> None:
        x = features(lm, texts, [layer])[0] if pooled is None else pooled
        fit(x, labels, layer).save(folder / "probe.safetensors")

    inputs = {
        "model": lm.fingerprint,
        "layer": layer,
        "comments": store.key_of({"texts": list(texts), "labels": np.asarray(labels).tolist()}),
    }
    return Probe.load(store.artifact("probe", inputs, build) / "probe.safetensors")


def load(profile: Profile, lm: LanguageModel) -> Probe:
    """The probe of the chapters: on the training comments, of the stream that enters the last block."""
    comments = by_profile.comments(profile, "train")
    return trained(lm, comments.text.tolist(), comments.label.to_numpy(), lm.n_layers - 1)


def toxic_neurons(
    probe_direction: Float[Tensor, "d_model"], value_vectors: Float[Tensor, "layer d_mlp d_model"]
) -> tuple[Int[Tensor, "neurons 2"], Float[Tensor, "neurons"]]:
    """All neurons as (layer, index), sorted by falling cosine of their value vector with the direction."""
    cosine = cosine_similarity(value_vectors, probe_direction, dim=-1)
    order = cosine.flatten().argsort(descending=True, stable=True)
    width = value_vectors.shape[1]
    return torch.stack([order // width, order % width], dim=1), cosine.flatten()[order]


def svd_directions(vectors: Float[Tensor, "n d_model"], k: int) -> Float[Tensor, "k d_model"]:
    """First k left singular vectors of the d_model × n matrix of value vectors (Lee et al., 2024, 3.1).

    Signs are fixed so that each direction agrees with the mean of the vectors.
    """
    u = torch.linalg.svd(vectors.T.double(), full_matrices=False).U[:, :k].T
    return torch.where((u @ vectors.double().mean(0) < 0)[:, None], -u, u).float()


@torch.inference_mode()
def top_tokens(lm: LanguageModel, directions: Float[Tensor, "n d_model"], k: int = 10) -> list[list[str]]:
    """The k tokens that each direction promotes, read through the final norm's gain and the unembedding."""
    gain = final_norm_gain(lm)
    unembedding = lm.model.get_output_embeddings().get_parameter("weight")
    promoted: list[list[int]] = []
    for some in directions.to(gain).split(256):  # the logits of many more would fill memory
        promoted += ((some * gain) @ unembedding.T).topk(k).indices.tolist()
    return [lm.tokenizer.batch_decode([[i] for i in ids]) for ids in promoted]
