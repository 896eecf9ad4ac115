"""Experts by profile: the shipped adapters, small ones trained on the spot, or the published BART models.

``data/adapters`` holds one PEFT folder per role and the settings chosen for them;
``companion train-experts`` remakes them from the public data in about an hour and a half on 2 cores.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from companion import paths, store
from companion.data import by_profile
from companion.errors import CompanionError
from companion.lm import models
from companion.lm.models import LanguageModel
from companion.marco.denoisers import mixed_lora
from companion.marco.denoisers.causal import PrefixDenoiser
from companion.marco.denoisers.encoder_decoder import Seq2SeqDenoiser
from companion.marco.denoisers.protocol import BASE, ROLES, Denoiser
from companion.marco.experts import adapter_training, contrast_training, corpus
from companion.marco.rewriting import masking
from companion.marco.rewriting.settings import PUBLISHED, Settings
from companion.profiles import Profile

FOLDER = paths.DATA / "adapters"
BART = (
    "facebook/bart-base",
    "hallisky/bart-base-nontoxic-expert",
    "hallisky/bart-base-toxic-antiexpert",
)  # by role
SMALL = adapter_training.AdapterConfig(
    rank=2, alpha=4, batch_size=4, base_steps=3, expert_steps=2, contrast_steps=2, warmup=1
)  # for tests of the chapters


class Experts(NamedTuple):
    """A denoiser with base, expert and anti-expert, the settings that belong to it, and what identifies its weights.

    ``settings`` are for text that is known to be toxic; ``cautious`` have the higher threshold that leaves
    most harmless text alone. ``folder`` holds adapters and ``history.json`` of their training; None for models that were trained elsewhere.
    """

    denoiser: Denoiser
    settings: Settings
    cautious: Settings
    fingerprint: str
    folder: Path | None = None


def of(profile: Profile) -> Experts:
    """The profile's experts, on a fresh copy of its model.

    Raises
    ------
    CompanionError
        If the profile's kind of experts does not exist or its weights cannot be had.
    """
    match profile.experts:
        case "shipped":
            return shipped(models.load(profile.model))
        case "small":
            return small(profile)
        case "bart":
            return bart()
    raise CompanionError(f"there are no experts '{profile.experts}': choose shipped, small or bart.")


def shipped(lm: LanguageModel, folder: Path = FOLDER) -> Experts:
    """The adapters in a folder, put on a language model, with the settings chosen for them."""
    found = load(lm, folder)
    weights = [store.sha256_file(folder / role / "adapter_model.safetensors") for role in ROLES]
    return Experts(
        found, *chosen(folder), store.key_of({"model": lm.fingerprint, "adapters": weights}), folder
    )


def chosen(folder: Path = FOLDER) -> tuple[Settings, Settings]:
    """The settings in ``settings.json`` and the same with the cautious threshold, chosen on dev rows (:mod:`companion.marco.evaluation.settings_search`).

    Raises
    ------
    CompanionError
        If none have been chosen.
    """
    if not (folder / "settings.json").is_file():
        raise CompanionError(
            f"there is no settings.json in '{folder}': choose threshold and strengths with `companion make settings`."
        )
    found = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    thresholds = found["chosen"].pop("threshold"), found["cautious"]
    usual, cautious = (Settings(masking.ours(t), **found["chosen"]) for t in thresholds)
    return usual, cautious


def small(profile: Profile) -> Experts:
    """Adapters trained for a few steps on the profile's comments: they work, badly, on any model."""
    comments = by_profile.comments(profile, "train")
    classes = {
        name: comments.text[comments.label == label].tolist()
        for label, name in enumerate(adapter_training.CLASSES)
    }
    civil, toxic = classes.values()
    rows = contrast_training.Corpus(
        toxic, civil, list(zip(toxic, civil, strict=False)), corpus.telling(toxic, civil)
    )
    lm = models.load(profile.model)

    def build(folder: Path) -> None:
        made = contrast_training.train_all(
            models.load(profile.model),
            civil + toxic,
            rows,
            {name: some[:4] for name, some in classes.items()},
            SMALL,
            folder,
        )
        save(made, folder)

    inputs = {"model": lm.fingerprint, "texts": store.key_of(classes), "config": asdict(SMALL)}
    folder = store.artifact("experts", inputs, build)
    usual, cautious = (
        Settings(masking.ours(t), alpha_expert=2.0, alpha_anti=0.5, temperature=1.0) for t in (0.0, 0.1)
    )
    return Experts(load(lm, folder), usual, cautious, folder.name, folder)


def bart() -> Experts:
    """BART-base and the published experts, with the published settings for microaggressions."""
    with models.from_hub(
        "the published experts",
        f"the published experts ({', '.join(BART)}) could not be had from the Hub: take a profile with shipped experts.",
    ):
        found = {
            role: AutoModelForSeq2SeqLM.from_pretrained(name).to(models.best_device())
            for role, name in zip(ROLES, BART, strict=True)
        }
        tokenizer = AutoTokenizer.from_pretrained(BART[0])
    commits = [str(getattr(model.config, "_commit_hash", None)) for model in found.values()]
    cautious = replace(PUBLISHED["microaggressions"], masking=masking.ours(1.0))  # ours; not chosen on data
    return Experts(
        Seq2SeqDenoiser(found, tokenizer),
        PUBLISHED["microaggressions"],
        cautious,
        store.key_of({"models": BART, "commits": commits}),
    )


def load(lm: LanguageModel, folder: Path = FOLDER) -> PrefixDenoiser:
    """Put the three adapters on a language model, in place, and return it as a denoiser.

    Raises
    ------
    CompanionError
        If an adapter is missing, unreadable or made for another model.
    """
    missing = [role for role in ROLES if not (folder / role / "adapter_model.safetensors").is_file()]
    if missing:
        raise CompanionError(
            f"the adapter '{missing[0]}' is not in '{folder}': restore it with git, or make it with `companion train-experts`."
        )
    try:
        with models.quiet():
            config = mixed_lora.mixed(LoraConfig.from_pretrained(folder / BASE))
            model = PeftModel.from_pretrained(lm.model, folder / BASE, adapter_name=BASE, config=config)
            for role in ROLES[1:]:
                model.load_adapter(folder / role, adapter_name=role)
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        raise CompanionError(
            f"the adapters in '{folder}' do not fit the model '{lm.name}' ({type(error).__name__}): make them anew for it."
        ) from error
    return PrefixDenoiser(model, lm.tokenizer)


def save(experts: PrefixDenoiser, folder: Path) -> None:
    """Write each adapter in half precision: what rounding costs is far below what another seed would change."""
    for role in ROLES:
        target = folder / role
        target.mkdir(parents=True, exist_ok=True)
        state = get_peft_model_state_dict(experts.model, adapter_name=role)
        save_file(
            {name: value.to(torch.float16).contiguous() for name, value in state.items()},
            target / "adapter_model.safetensors",
        )
        config = experts.model.peft_config[role].to_dict() | {
            "base_model_name_or_path": models.EMBEDDED,
            "inference_mode": True,
        }
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        (target / "adapter_config.json").write_text(
            json.dumps(plain, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8"
        )


def make(
    lm: LanguageModel, folder: Path = FOLDER, config: adapter_training.AdapterConfig | None = None
) -> None:
    """Train the adapters on the public data and write them to ``folder``; stopped and started again, it goes on."""
    config = config or adapter_training.AdapterConfig()

    def build(work: Path) -> None:
        save(contrast_training.train_experts(lm, config, work), work)
        for state in work.glob("*.training.safetensors"):
            state.unlink()

    inputs = {"model": lm.fingerprint, "config": asdict(config)}
    made = store.artifact("experts", inputs, build)
    for role in ROLES:
        shutil.copytree(made / role, folder / role, dirs_exist_ok=True)
    shutil.copy(made / "history.json", folder / "history.json")
