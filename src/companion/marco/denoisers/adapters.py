"""The three adapters on disk: a folder with one PEFT folder per role. ``data/adapters`` is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file

from companion import paths
from companion.errors import CompanionError
from companion.lm import models
from companion.lm.models import LanguageModel
from companion.marco.denoisers import mixed_lora
from companion.marco.denoisers.causal import PrefixDenoiser
from companion.marco.denoisers.protocol import BASE, ROLES

FOLDER = paths.DATA / "adapters"
WEIGHTS = "adapter_model.safetensors"


def load(lm: LanguageModel, folder: Path) -> PrefixDenoiser:
    """Put the three adapters on a language model, in place, and return it as a denoiser.

    Raises
    ------
    CompanionError
        If an adapter is missing, unreadable or made for another model.
    """
    missing = [role for role in ROLES if not (folder / role / WEIGHTS).is_file()]
    if missing:
        remedy = "restore it with git, or make it with `companion train-experts`"
        raise CompanionError(f"the adapter '{missing[0]}' is not in '{folder}': {remedy}.")
    try:
        with models.quiet():
            config = mixed_lora.mixed(LoraConfig.from_pretrained(str(folder / BASE)))
            model = PeftModel.from_pretrained(lm.model, folder / BASE, adapter_name=BASE, config=config)
            for role in ROLES[1:]:
                model.load_adapter(folder / role, adapter_name=role)
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        misfit = f"do not fit the model '{lm.name}' ({type(error).__name__}): make them anew for it"
        raise CompanionError(f"the adapters in '{folder}' {misfit}.") from error
    return PrefixDenoiser(model, lm.tokenizer)


def save(denoiser: PrefixDenoiser, folder: Path) -> None:
    """Write each adapter in half precision: rounding costs far less than another seed would change."""
    for role in ROLES:
        target = folder / role
        target.mkdir(parents=True, exist_ok=True)
        state = get_peft_model_state_dict(denoiser.model, adapter_name=role)
        save_file(
            {name: value.to(torch.float16).contiguous() for name, value in state.items()}, target / WEIGHTS
        )
        config = denoiser.model.peft_config[role].to_dict()
        config |= {"base_model_name_or_path": models.EMBEDDED, "inference_mode": True}
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        text = json.dumps(plain, indent=1, sort_keys=True, default=str) + "\n"
        (target / "adapter_config.json").write_text(text, encoding="utf-8")
