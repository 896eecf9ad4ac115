"""The shape of a model, from its name: no weights are read, and nothing is downloaded."""

from __future__ import annotations

import copy
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from companion.errors import CompanionError
from companion.lm import tiny

TABLE = Path(__file__).with_name("shapes.toml")


@dataclass(frozen=True)
class Shape:
    """A model's configuration, the bytes of its download, and how to get at it if that takes a licence."""

    name: str
    config: PretrainedConfig
    download: float
    access: str = ""

    @property
    def layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def outside(self) -> int:
        """Weights that belong to no layer, as embeddings and what stands behind the last layer."""
        return _counted(self.name)[0]

    @property
    def layer(self) -> int:
        """Weights of one layer."""
        return _counted(self.name)[1]

    @property
    def parameters(self) -> int:
        """All weights; those that are tied count once."""
        return self.outside + self.layers * self.layer


@cache
def of(name: str) -> Shape:
    """The shape of a model of the table ``shapes.toml``, a tiny one, a local folder or the Hub's cache.

    Raises
    ------
    CompanionError
        If its configuration is nowhere to be found.
    """
    known = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    if name in known:
        values = dict(known[name])
        about = {key: values.pop(key, default) for key, default in (("download", 0.0), ("access", ""))}
        del values["source"]
        return Shape(name, AutoConfig.for_model(values.pop("model_type"), **values), **about)
    if name in tiny.NAMES:
        return Shape(name, tiny.random_model(name).config, 0.0)
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CompanionError(
            f"the shape of '{name}' is not known: name a local folder with its config.json, "
            f"or one of {', '.join(known)}."
        ) from error
    return Shape(name, config, 0.0)


def shallow(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The same model with a few layers."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return config


@cache
def _counted(name: str) -> tuple[int, int]:
    """Weights outside of layers, and in each: layers are alike, so models of one and of two say it."""
    config: Any = of(name).config
    with torch.device("meta"):
        one, two = (
            sum(p.numel() for p in AutoModelForCausalLM.from_config(shallow(config, n)).parameters())
            for n in (1, 2)
        )
    return 2 * one - two, two - one
