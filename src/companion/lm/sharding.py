"""Who trains a model: one process, or several that share weights, optimiser and each batch (PyTorch's FSDP2).

A training loop is written once, against :class:`Single`; :class:`Sharded` has the same methods. Every process
of a shared training calls them in the same order. Losses and gradients of a batch are sums over the
processes, so that a training does not depend on how many there are but for rounding.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.optim import Optimizer
from transformers import PreTrainedModel

from companion import store
from companion.lm.checkpoint import Checkpoint
from companion.lm.models import usable_cuda

KEPT = "kept"  # weights of an earlier step, that a training may go back to
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


class Single:
    """One process, on one device; ``precision`` as in :class:`companion.mechanism.dpo.DPOConfig`."""

    index, count = 0, 1

    def __init__(self, precision: str) -> None:
        AcceleratorState._reset_state()  # or a second training here could not have another precision
        self.accelerator = Accelerator(mixed_precision=precision, cpu=not usable_cuda())
        self.device = self.accelerator.device

    def prepare(self, model: PreTrainedModel, optimizer: MakeOptimizer) -> tuple[nn.Module, Optimizer]:
        """The model ready to be trained, and an optimiser of its parameters."""
        return self.accelerator.prepare(model, optimizer(model.parameters()))

    def hold(self, model: PreTrainedModel) -> nn.Module:
        """A model that is only read, where it will be read."""
        return model.to(self.device).eval()

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def clip(self, model: nn.Module, most: float) -> None:
        self.accelerator.clip_grad_norm_(model.parameters(), most)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return values

    def checkpoint(self, folder: Path, model: nn.Module, optimizer: Optimizer) -> Checkpoint:
        """Where the state is kept."""
        return Checkpoint(folder / "training.safetensors", self._parameters(model), optimizer)

    def keep(self, folder: Path, model: nn.Module) -> None:
        """Write the weights as they are now, in place of those kept before."""
        weights = {name: p.detach().cpu() for name, p in self._parameters(model).items()}
        with store.replacing(folder / f"{KEPT}.safetensors") as fresh:
            save_file(weights, fresh)

    @torch.no_grad()
    def take_back(self, folder: Path, model: nn.Module) -> None:
        """Put the kept weights into the model, and forget them."""
        parameters, kept = self._parameters(model), folder / f"{KEPT}.safetensors"
        for name, value in load_file(kept).items():
            parameters[name].copy_(value)
        kept.unlink()

    def _parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return dict(self.accelerator.unwrap_model(model).named_parameters())


class Sharded:
    """One of several processes that ``torch.distributed.run`` has started: each holds a part of everything.

    Weights, gradients and optimiser are fp32; with ``"bf16"`` layers compute in it and gradients are still
    summed in fp32. Activations of a layer are made again for the gradient instead of kept.
    """

    def __init__(self, precision: str) -> None:
        state = PartialState(cpu=not usable_cuda())
        self.index, self.count, self.device = state.process_index, state.num_processes, state.device
        self.mesh = init_device_mesh(self.device.type, (self.count,))
        self.policy = (
            MixedPrecisionPolicy(torch.bfloat16, torch.float32)
            if precision == "bf16"
            else MixedPrecisionPolicy()
        )

    def prepare(self, model: PreTrainedModel, optimizer: MakeOptimizer) -> tuple[nn.Module, Optimizer]:
        """The model in parts, its own and no other process's on this device, and an optimiser of them."""
        layers = self._cut_layers(model)
        apply_activation_checkpointing(
            model,
            lambda layer: checkpoint_wrapper(layer, CheckpointImpl.NO_REENTRANT),
            check_fn=layers.__contains__,
        )
        self._cut(model)
        return model, optimizer(model.parameters())

    def hold(self, model: PreTrainedModel) -> nn.Module:
        """A model that is only read, in parts, too."""
        self._cut_layers(model)
        self._cut(model)
        return model.eval()

    def _cut_layers(self, model: PreTrainedModel) -> list[nn.Module]:
        """Innermost first: from what is in parts already, the model takes nothing."""
        layers = [part for part in model.modules() if type(part).__name__ in (model._no_split_modules or ())]
        for layer in layers:
            self._cut(layer)
        return layers

    def _cut(self, part: nn.Module) -> None:
        fully_shard(part, mesh=self.mesh, mp_policy=self.policy)

    def backward(self, loss: Tensor) -> None:
        (loss * self.count).backward()  # FSDP takes the mean of the gradients; ours are a sum

    def clip(self, model: nn.Module, most: float) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), most)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        everyone = values.detach().to(self.device, copy=True)
        dist.all_reduce(everyone)
        return everyone.to(values.device)

    def checkpoint(self, folder: Path, model: nn.Module, optimizer: Optimizer) -> ShardedCheckpoint:
        """Where the state is kept, each process's part by itself."""
        return ShardedCheckpoint(folder / "training", model, optimizer)

    def keep(self, folder: Path, model: nn.Module) -> None:
        """Write the weights as they are now, each process its part, in place of those kept before."""
        with _replacing(folder / KEPT) as fresh:
            dcp.save(get_model_state_dict(model), checkpoint_id=fresh)

    def take_back(self, folder: Path, model: nn.Module) -> None:
        """Put the kept weights into the model, and forget them."""
        weights = get_model_state_dict(model)
        dcp.load(weights, checkpoint_id=_found(folder / KEPT))
        set_model_state_dict(model, weights)
        _forget(folder / KEPT)


def share(rows: Sequence[int], index: int, count: int) -> tuple[list[int], int]:
    """The rows of a batch that a process takes, and how many of them count.

    A process for which none are left takes the first, which does not count: all must go through the model
    equally often.
    """
    mine = list(rows[index::count])
    return (mine, len(mine)) if mine else ([rows[0]], 0)


class ShardedCheckpoint:
    """A training's state in as many parts as there are processes, for any number of them to go on from."""

    def __init__(self, folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
        self.folder, self.model, self.optimizer = folder, model, optimizer

    def save(self, history: list[dict], **besides: Tensor) -> None:
        """Write the state; a kill leaves the old one or the new one."""
        with _replacing(self.folder) as fresh:
            dcp.save(self._state(), checkpoint_id=fresh)
            if dist.get_rank() == 0:
                found = {name: value.cpu() for name, value in besides.items()}
                save_file(found, fresh / "besides.safetensors")
                (fresh / "history.json").write_text(json.dumps(history), encoding="utf-8")

    def load(self) -> tuple[list[dict], dict[str, Tensor]]:
        """Put the last saved state into model and optimiser; ``([], {})`` if there is none."""
        found = _found(self.folder)
        if found is None:
            return [], {}
        state = self._state()
        dcp.load(state, checkpoint_id=found)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        history = json.loads((found / "history.json").read_text(encoding="utf-8"))
        return history, load_file(found / "besides.safetensors")

    def clear(self) -> None:
        """Forget the state: the training has ended."""
        _forget(self.folder)

    def _state(self) -> dict[str, dict]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder that all processes write to; the first puts it in the other's place when all are done."""
    fresh = folder.with_name(folder.name + ".new")
    if dist.get_rank() == 0:
        shutil.rmtree(fresh, ignore_errors=True)
    dist.barrier()
    yield fresh
    dist.barrier()
    if dist.get_rank() == 0:
        if folder.exists():
            shutil.rmtree(_older(folder), ignore_errors=True)
            folder.rename(_older(folder))
        fresh.rename(folder)
        shutil.rmtree(_older(folder), ignore_errors=True)
    dist.barrier()


def _older(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def _found(folder: Path) -> Path | None:
    """The folder, or what a kill has left in its place."""
    return next((place for place in (folder, _older(folder)) if place.exists()), None)


def _forget(folder: Path) -> None:
    dist.barrier()
    if dist.get_rank() == 0:
        for place in (folder, _older(folder)):
            shutil.rmtree(place, ignore_errors=True)


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model in parts, put together on the CPU of the first process; elsewhere nothing."""
    found = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
