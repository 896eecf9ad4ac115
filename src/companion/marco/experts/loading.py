"""Experts by profile: the shipped adapters, small ones trained on the spot, or the published BART models.

``data/adapters`` holds the shipped adapters and the settings chosen for them; ``companion train-experts``
remakes them from the public data in about an hour and a half on 2 cores.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from companion import store
from companion.data import by_profile
from companion.errors import CompanionError
from companion.lm import models
from companion.lm.models import LanguageModel
from companion.marco.denoisers import adapters
from companion.marco.denoisers.encoder_decoder import Seq2SeqDenoiser
from companion.marco.denoisers.protocol import ROLES, Denoiser
from companion.marco.experts import contrast_training, corpus
from companion.marco.experts.adapter_training import CLASSES, AdapterConfig
from companion.marco.rewriting import choosing, masking, settings
from companion.marco.rewriting.settings import PUBLISHED, Settings
from companion.profiles import Profile

BART = (  # by role
    "facebook/bart-base",
    "hallisky/bart-base-nontoxic-expert",
    "hallisky/bart-base-toxic-antiexpert",
)
SMALL = AdapterConfig(  # for tests of the chapters
    rank=2, alpha=4, batch_size=4, base_steps=3, expert_steps=2, contrast_steps=2, warmup=1
)


class Experts(NamedTuple):
    """A denoiser with its three roles, the settings that belong to it, and what identifies its weights.

    ``settings`` are for text that is known to be toxic; ``cautious`` have the higher threshold that leaves
    most harmless text alone; with ``several`` the experts choose among several rewrites. ``folder`` holds
    adapters and ``history.json`` of their training; None for models that were trained elsewhere.
    """

    denoiser: Denoiser
    settings: Settings
    cautious: Settings
    several: Settings
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


def shipped(lm: LanguageModel) -> Experts:
    """The shipped adapters, put on a language model, with the settings chosen for them."""
    folder = adapters.FOLDER
    denoiser = adapters.load(lm, folder)
    weights = [store.sha256_file(folder / role / adapters.WEIGHTS) for role in ROLES]
    fingerprint = store.key_of({"model": lm.fingerprint, "adapters": weights})
    return Experts(denoiser, *settings.chosen(folder), fingerprint, folder)


def small(profile: Profile) -> Experts:
    """Adapters trained for a few steps on the profile's comments: they work, badly, on any model."""
    comments = by_profile.comments(profile, "train")
    classes = {name: comments.text[comments.label == label].tolist() for label, name in enumerate(CLASSES)}
    civil, toxic = classes.values()
    pairs = list(zip(toxic, civil, strict=False))
    rows = contrast_training.Corpus(toxic, civil, pairs, corpus.telling(toxic, civil))
    held_out = {name: some[:4] for name, some in classes.items()}
    lm = models.load(profile.model)

    def build(folder: Path) -> None:
        fresh = models.load(profile.model)
        made = contrast_training.train_all(fresh, civil + toxic, rows, held_out, SMALL, folder)
        adapters.save(made, folder)

    inputs = {"model": lm.fingerprint, "texts": store.key_of(classes), "config": asdict(SMALL)}
    folder = store.artifact("experts", inputs, build)
    usual, cautious = (
        Settings(masking.ours(t), alpha_expert=2.0, alpha_anti=0.5, temperature=1.0) for t in (0.0, 0.1)
    )
    among = choosing.Choice(((2.0, 0.5, 1.0), (3.0, 1.0, 1.0)), least=0.0, loss=0.1)
    several = replace(usual, choice=among)
    return Experts(adapters.load(lm, folder), usual, cautious, several, folder.name, folder)


def bart() -> Experts:
    """BART-base and the published experts, with the published settings for microaggressions."""
    failure = f"the published experts ({', '.join(BART)}) could not be had from the Hub"
    with models.from_hub("the published experts", f"{failure}: take a profile with shipped experts."):
        roles = {
            role: AutoModelForSeq2SeqLM.from_pretrained(name).to(models.best_device())
            for role, name in zip(ROLES, BART, strict=True)
        }
        tokenizer = AutoTokenizer.from_pretrained(BART[0])
    commits = [str(getattr(model.config, "_commit_hash", None)) for model in roles.values()]
    fingerprint = store.key_of({"models": BART, "commits": commits})
    usual = PUBLISHED["microaggressions"]
    cautious = replace(usual, masking=masking.ours(1.0))  # ours; not chosen on data
    among = choosing.Choice(((4.25, 1.5, 2.5), (4.25, 3.0, 2.5)), least=4.0, loss=0.1)  # nor was this
    several = replace(cautious, choice=among)
    return Experts(Seq2SeqDenoiser(roles, tokenizer), usual, cautious, several, fingerprint)


def make(lm: LanguageModel, folder: Path) -> None:
    """Train the adapters on the public data, into ``folder``; stopped and started again, it goes on."""
    config = AdapterConfig()

    def build(work: Path) -> None:
        adapters.save(contrast_training.train_experts(lm, config, work), work)
        for state in work.glob("*.training.safetensors"):
            state.unlink()

    made = store.artifact("experts", {"model": lm.fingerprint, "config": asdict(config)}, build)
    for role in ROLES:
        shutil.copytree(made / role, folder / role, dirs_exist_ok=True)
    shutil.copy(made / "history.json", folder / "history.json")
