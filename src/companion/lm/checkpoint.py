"""The state of a training that can be stopped at any moment and goes on with the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class Checkpoint:
    """State of an interrupted training run: weights, RMSprop averages, history. Safetensors only."""

    def __init__(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.path, self.model, self.optimizer = folder / "training.safetensors", model, optimizer

    def save(self, history: list[dict], reference: Tensor) -> None:
        """Write the state next to its final name, then rename: a kill leaves the old one or the new one."""
        state = {"reference": reference}
        for name, parameter in self.model.named_parameters():
            state[f"weight.{name}"] = parameter.detach().cpu()
            state[f"average.{name}"] = self.optimizer.state[parameter]["square_avg"].cpu()
        fresh = self.path.with_suffix(".new")
        save_file(state, fresh, metadata={"history": json.dumps(history)})
        fresh.replace(self.path)

    def load(self) -> tuple[list[dict], Tensor | None]:
        """Restore the last saved state into model and optimiser; ([], None) if there is none."""
        if not self.path.exists():
            return [], None
        with safe_open(self.path, "pt") as stored:
            history = json.loads(stored.metadata()["history"])
            for name, parameter in self.model.named_parameters():
                parameter.data.copy_(stored.get_tensor(f"weight.{name}"))
                average = stored.get_tensor(f"average.{name}").to(parameter)
                self.optimizer.state[parameter] = {"step": torch.tensor(float(len(history))), "square_avg": average}
            return history, stored.get_tensor("reference")

    def clear(self) -> None:
        for path in (self.path, self.path.with_suffix(".new")):
            path.unlink(missing_ok=True)


class AdapterCheckpoint:
    """Adapter weights, AdamW moments and history of an interrupted training. Safetensors only."""

    def __init__(self, path: Path, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.path, self.parameters, self.optimizer = path, parameters, optimizer

    def save(self, history: list[dict]) -> None:
        state = {}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state[parameter]
            state |= {f"weight.{name}": parameter.detach(), f"first.{name}": moments["exp_avg"], f"second.{name}": moments["exp_avg_sq"]}
        fresh = self.path.with_suffix(".new")
        save_file({key: value.cpu() for key, value in state.items()}, fresh, metadata={"history": json.dumps(history)})
        fresh.replace(self.path)

    def load(self) -> list[dict]:
        if not self.path.exists():
            return []
        with safe_open(self.path, "pt") as stored:
            history = json.loads(stored.metadata()["history"])
            for name, parameter in self.parameters.items():
                parameter.data.copy_(stored.get_tensor(f"weight.{name}"))
                first, second = (stored.get_tensor(f"{moment}.{name}").to(parameter) for moment in ("first", "second"))
                self.optimizer.state[parameter] = {"step": torch.tensor(float(len(history))), "exp_avg": first, "exp_avg_sq": second}
        return history
