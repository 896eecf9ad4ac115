"""A training that is stopped goes on with the same bits, whichever of the book's optimisers it uses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from companion.lm.checkpoint import Checkpoint

OPTIMIZERS = {
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-2),  # preference tuning
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),  # adapters
}


class Training:
    """A small model on random data that depends on the step only."""

    def __init__(self, optimizer: str, path: Path) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.checkpoint = Checkpoint(path, dict(self.model.named_parameters()), self.optimizer)

    def steps(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
            loss = (self.model(x)[:, 0] - x.sum(-1)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_stopped_training_goes_on_with_the_same_bits(optimizer, tmp_path):
    whole = Training(optimizer, tmp_path / "whole")
    losses = whole.steps(0, 20)
    stopped = Training(optimizer, tmp_path / "state.safetensors")
    history = [{"loss": loss} for loss in stopped.steps(0, 7)]
    stopped.checkpoint.save(history, noise=torch.arange(3))
    resumed = Training(optimizer, tmp_path / "state.safetensors")
    loaded, besides = resumed.checkpoint.load()
    assert loaded == history and besides["noise"].tolist() == [0, 1, 2]
    assert [row["loss"] for row in loaded] + resumed.steps(7, 20) == losses
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]  # and no half of one
    resumed.checkpoint.clear()
    assert resumed.checkpoint.load() == ([], {})


def test_without_the_moments_it_would_not(tmp_path):
    whole = Training("AdamW", tmp_path / "whole")
    losses = whole.steps(0, 20)
    stopped = Training("AdamW", tmp_path / "state")
    before = stopped.steps(0, 7)
    stopped.optimizer.state.clear()
    assert before + stopped.steps(7, 20) != losses
