"""The state of a training that can be stopped at any moment and goes on with the same bits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from companion import store


class Checkpoint:
    """Weights, moments of the optimiser, history and what else a training goes on with. Safetensors only.

    Parameters
    ----------
    path
        The file that holds the state.
    parameters
        What is trained, by name.
    """

    def __init__(self, path: Path, parameters: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        self.path, self.parameters, self.optimizer = path, parameters, optimizer

    def save(self, history: list[dict], **besides: Tensor) -> None:
        """Write the state; a kill leaves the old one or the new one."""
        state = {f"besides.{name}": value.cpu() for name, value in besides.items()}
        for name, parameter in self.parameters.items():
            state[f"weight.{name}"] = parameter.detach().cpu()
            for moment, value in self.optimizer.state[parameter].items():
                state[f"{moment}.{name}"] = value.cpu()
        with store.replacing(self.path) as fresh:
            save_file(state, fresh, metadata={"history": json.dumps(history)})

    def load(self) -> tuple[list[dict], dict[str, Tensor]]:
        """Put the last saved state into parameters and optimiser; ``([], {})`` if there is none."""
        if not self.path.exists():
            return [], {}
        besides: dict[str, Tensor] = {}
        with safe_open(self.path, "pt") as stored:
            for key in stored.keys():  # noqa: SIM118 (a file, not a dict)
                kind, name = key.split(".", 1)
                value = stored.get_tensor(key)
                if kind == "besides":
                    besides[name] = value
                elif kind == "weight":
                    self.parameters[name].data.copy_(value)
                elif kind == "step":  # optimisers keep their counter on the CPU
                    self.optimizer.state[self.parameters[name]][kind] = value
                else:
                    parameter = self.parameters[name]
                    self.optimizer.state[parameter][kind] = value.to(parameter.device)
            return json.loads(stored.metadata()["history"]), besides

    def clear(self) -> None:
        """Forget the state: the training has ended."""
        self.path.unlink(missing_ok=True)
