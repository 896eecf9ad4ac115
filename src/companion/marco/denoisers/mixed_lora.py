"""LoRA for batches in which rows belong to different adapters: two matrix products for all of them.

PEFT gathers the rows of each adapter, takes two products and scatters the result, for every linear layer.
With three small adapters that is slower than to stack them: every row passes through the factors of all
adapters, and what belongs to other adapters is set to 0 in between.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from peft import LoraConfig
from peft.tuners import lora
from torch import Tensor, nn


class MixedLinear(lora.Linear):
    """PEFT's LoRA on a linear layer; mixed batches (``adapter_names``) go another way, to equal results."""

    def _mixed_batch_forward(
        self, x: Float[Tensor, "rows pos d_in"], *args: object, adapter_names: list[str], **kwargs: object
    ) -> Float[Tensor, "rows pos d_out"]:
        names = tuple(sorted(set(adapter_names)))
        down = torch.cat([self.lora_A[name].get_parameter("weight") for name in names])
        up = torch.cat(
            [self.lora_B[name].get_parameter("weight") * self.scaling[name] for name in names], dim=1
        )
        own = _own(names, tuple(adapter_names), tuple(self.r[name] for name in names)).to(x)
        between = (nn.functional.linear(x, down) * own).flatten(0, 1)
        return torch.addmm(self.base_layer(x).flatten(0, 1), between, up.T).unflatten(0, x.shape[:2])


@lru_cache(maxsize=8)
def _own(
    names: tuple[str, ...], rows: tuple[str, ...], ranks: tuple[int, ...]
) -> Float[Tensor, "rows 1 ranks"]:
    """1 where a direction belongs to the adapter of a row."""
    with torch.inference_mode(False):  # what is kept must do for training, too
        owner = torch.tensor([i for i, rank in enumerate(ranks) for _ in range(rank)])
        return (owner == torch.tensor([names.index(name) for name in rows])[:, None]).float()[:, None]


def mixed(config: LoraConfig) -> LoraConfig:
    """The same configuration, changed in place, with :class:`MixedLinear` on linear layers.

    PEFT calls this way to add layers experimental. Should it name the method above otherwise, mixed
    batches go its own, slower way.
    """
    config._register_custom_module({nn.Linear: MixedLinear})
    return config
