"""The shipped adapters: load, save, make anew.

``data/adapters`` holds one PEFT folder per role; ``companion train-experts`` remakes them from the
public data in some 70 minutes on 2 cores.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file

from companion import artifacts, models, paths
from companion.errors import CompanionError
from companion.marco import corpus, denoiser, training, words
from companion.marco.denoiser import BASE, ROLES, PrefixDenoiser
from companion.models import LanguageModel

FOLDER = paths.DATA / "adapters"


def load(lm: LanguageModel, folder: Path = FOLDER) -> PrefixDenoiser:
    """Put the three adapters on a language model, in place, and return it as a denoiser.

    Raises
    ------
    CompanionError
        If an adapter is missing, unreadable or made for another model.
    """
    missing = [role for role in ROLES if not (folder / role / "adapter_model.safetensors").is_file()]
    if missing:
        raise CompanionError(f"the adapter '{missing[0]}' is not in '{folder}': restore it with git, or make it with `companion train-experts`.")
    try:
        with models.quiet():
            model = PeftModel.from_pretrained(lm.model, folder / BASE, adapter_name=BASE)
            for role in ROLES[1:]:
                model.load_adapter(folder / role, adapter_name=role)
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        raise CompanionError(f"the adapters in '{folder}' do not fit the model '{lm.name}' ({type(error).__name__}): make them anew for it.") from error
    return PrefixDenoiser(model, lm.tokenizer)


def save(experts: PrefixDenoiser, folder: Path) -> None:
    """Write each adapter in half precision: what rounding costs is far below what another seed would change."""
    for role in ROLES:
        target = folder / role
        target.mkdir(parents=True, exist_ok=True)
        state = get_peft_model_state_dict(experts.model, adapter_name=role)
        save_file({name: value.to(torch.float16).contiguous() for name, value in state.items()}, target / "adapter_model.safetensors")
        config = experts.model.peft_config[role].to_dict() | {"base_model_name_or_path": models.EMBEDDED, "inference_mode": True}
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        (target / "adapter_config.json").write_text(json.dumps(plain, indent=1, sort_keys=True, default=str) + "\n")


def make(lm: LanguageModel, folder: Path = FOLDER, config: training.AdapterConfig | None = None) -> None:
    """Train the adapters on the public data and write them to ``folder``; stopped and started again, it goes on."""
    config = config or training.AdapterConfig()

    def build(work: Path) -> None:
        save(training.train_experts(lm, config, work), work)
        for state in work.glob("*.training.safetensors"):
            state.unlink()

    inputs = {"model": lm.fingerprint, "config": asdict(config)}
    made = artifacts.artifact("experts", inputs, build, code=(corpus, denoiser, training, words))
    for role in ROLES:
        shutil.copytree(made / role, folder / role, dirs_exist_ok=True)
    shutil.copy(made / "history.json", folder / "history.json")
