"""Strengths of the product and how words are masked: ours, and those that the paper published."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from companion.errors import CompanionError
from companion.marco.rewriting import masking
from companion.marco.rewriting.choosing import Choice
from companion.marco.rewriting.masking import Masking


@dataclass(frozen=True)
class Settings:
    """Strengths of the product, and how words are masked.

    ``anchored`` keeps every word that is not masked: only blanks are written freely, until the text
    after them goes on. Without it, as published, the whole sentence is written anew. With a ``choice``, its
    strengths take the place of these three, and the experts choose among what they bring.
    """

    masking: Masking
    alpha_expert: float
    alpha_anti: float
    temperature: float
    alpha_base: float = 1.0
    repetition_penalty: float = 1.0
    anchored: bool = True
    choice: Choice | None = None

    @property
    def strengths(self) -> tuple[float, float, float]:
        """Factor of each role's logits in the product."""
        return self.alpha_base / self.temperature, self.alpha_expert, -self.alpha_anti

    def as_data(self) -> dict[str, Any]:
        """The settings as JSON can hold them, the same in every process: they are part of keys."""
        plain = asdict(self)
        plain["masking"]["divergence"] = self.masking.divergence.__name__
        plain["masking"]["keeps"] = sorted(self.masking.keeps)
        return plain


def _published(alpha_expert: float, temperature: float, repetition_penalty: float) -> Settings:
    as_run = Masking(threshold=1.2, relative=True, divergence=masking.half_jeffreys)
    return Settings(
        as_run, alpha_expert, 1.5, temperature, repetition_penalty=repetition_penalty, anchored=False
    )


#: Settings of the paper by evaluation set (its appendix; DynaHate's penalty is given as 1.5 and as 1.0).
PUBLISHED = {
    "microaggressions": _published(4.25, 2.5, 1.0),
    "sbf": _published(5.0, 2.9, 1.5),
    "dynahate": _published(4.75, 2.5, 1.0),
}


def alone(settings: Settings) -> Settings:
    """The same settings with one model only, which reads the masked text: the one cast as the expert."""
    return replace(settings, alpha_base=0.0, alpha_expert=1.0, alpha_anti=0.0)


class Chosen(NamedTuple):
    """Settings for a folder of adapters: for toxic text, for text of any kind, and with a choice."""

    usual: Settings
    cautious: Settings
    several: Settings


def chosen(folder: Path) -> Chosen:
    """The settings in ``settings.json`` of a folder of adapters.

    Chosen on dev rows (:mod:`companion.marco.evaluation.settings_search`): the first for toxic text, the same
    with the cautious threshold for text of any kind, and several strengths for the experts to choose among
    (without a choice in the file, the usual ones).

    Raises
    ------
    CompanionError
        If none have been chosen.
    """
    path = folder / "settings.json"
    if not path.is_file():
        remedy = "choose threshold and strengths with `companion make settings`"
        raise CompanionError(f"there is no settings.json in '{folder}': {remedy}.")
    about = json.loads(path.read_text(encoding="utf-8"))
    strengths = {name: value for name, value in about["chosen"].items() if name != "threshold"}
    thresholds = about["chosen"]["threshold"], about["cautious"]
    usual, cautious = (Settings(masking.ours(t), **strengths) for t in thresholds)
    if "choice" not in about:
        return Chosen(usual, cautious, usual)
    found = about["choice"]
    among = Choice(tuple(map(tuple, found["strengths"])), found["least"], found["loss"])
    return Chosen(usual, cautious, replace(usual, masking=masking.ours(found["threshold"]), choice=among))
