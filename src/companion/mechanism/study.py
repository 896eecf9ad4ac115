"""What chapters 4 to 8 start from: both models, the toxic direction, and what neurons do in each.

Everything comes from the store where an earlier chapter or run made it, and is made now where not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from companion import toxicity
from companion.data import by_profile
from companion.lm import anatomy, models, recording
from companion.lm.activations import Sums
from companion.lm.generation import Generated
from companion.lm.models import LanguageModel
from companion.lm.recording import Task
from companion.mechanism import dpo, neurons, pairs, probe
from companion.mechanism.neurons import Group, Side
from companion.mechanism.pairs import Pair
from companion.profiles import Profile
from companion.toxicity import Scorer

if TYPE_CHECKING:  # chapters 6 and 7 need no view, and the import takes seconds
    from transformer_lens import TransformerBridge


@dataclass(frozen=True)
class Subject:
    """A model, what it wrote by itself, and what its neurons did meanwhile.

    ``own`` are activation sums on its own greedy text, ``mean`` the mean activations as the model
    has them, for patches (they differ from the sums only where a norm follows the MLP), and
    ``projected`` its value vectors along the toxic direction.
    """

    lm: LanguageModel
    text: Generated
    own: Sums
    mean: Float[Tensor, "layer d_mlp"]
    projected: Float[Tensor, "layer d_mlp"]

    def before_the_norm(self, task: Task, direction: Float[Tensor, "d_model"]) -> Side:
        """Its projections as published: what the MLP gives to a norm that follows it (Gemma), if one does."""
        sums = recording.write(self.lm, task, through_norm=False)[1]
        return Side(sums, neurons.projected(self.lm, direction, through_norm=False))

    @classmethod
    def of(cls, lm: LanguageModel, task: Task, direction: Float[Tensor, "d_model"], label: str) -> Subject:
        """Let a model write, or take from the store what it wrote."""
        text, own = recording.write(lm, task, progress=f"{label} writes")
        mean = recording.write(lm, task, through_norm=False)[1].mean
        return cls(lm, text, own, mean, neurons.projected(lm, direction))

    def side(self, sums: Sums | None = None) -> Side:
        """Its projections on its own text, or on one that it was given to read."""
        return Side(self.own if sums is None else sums, self.projected)


@dataclass(frozen=True)
class Study:
    """The base model, the DPO model and the pairs it learned from.

    ``direction`` is the probe's at unit length, ``cosine`` that of each base value vector with it.
    """

    profile: Profile
    base: Subject
    tuned: Subject
    scorer: Scorer
    second: Scorer
    pairs: list[Pair]
    direction: Float[Tensor, "d_model"]
    cosine: Float[Tensor, "layer d_mlp"]
    task: Task

    @property
    def scorers(self) -> tuple[Scorer, Scorer]:
        """The profile's scorer, and the second one, which chose nothing."""
        return self.scorer, self.second

    @property
    def group(self) -> Int[Tensor, "layer d_mlp"]:
        """Group of every neuron by the base model's own text."""
        return neurons.groups(self.cosine, self.base.own.mean)

    def members(self, *chosen: Group) -> Bool[Tensor, "layer d_mlp"]:
        """Mask of the neurons in some groups."""
        return torch.isin(self.group, torch.tensor([int(g) for g in chosen]))

    @property
    def reduction(self) -> Float[Tensor, "layer d_mlp"]:
        """Δp of every neuron, each model on its own text, as published."""
        return self.base.side().projections - self.tuned.side().projections

    def reading(self, subject: Subject, text: Generated, label: str) -> Side:
        """A model's projections while it reads a text that another one wrote."""
        return subject.side(recording.read(subject.lm, self.task, text, progress=label))

    def views(self) -> tuple[TransformerBridge, TransformerBridge]:
        """Both models through TransformerLens. It wraps them in place: ask last."""
        return anatomy.bridge(self.base.lm), anatomy.bridge(self.tuned.lm)


def begin(profile: Profile) -> Study:
    """Load or make all: probe (chapter 2), DPO model (chapter 3), both models' activations on their text."""
    lm, scorer = models.load(profile.model), toxicity.load(profile.scorer)
    fitted = probe.load(profile, lm)
    preferences = pairs.load(profile, lm, fitted, scorer)
    tuned, _ = dpo.trained(lm, preferences, dpo.DPOConfig.of(profile), progress="DPO")
    task = Task(by_profile.prompts(profile).prompt.tolist(), profile.new_tokens, profile.max_prompt_tokens)
    base, after = (
        Subject.of(this, task, fitted.direction, name) for this, name in ((lm, "base"), (tuned, "DPO"))
    )
    cosine = neurons.cosines(lm, fitted.direction)
    second = toxicity.load(profile.second)
    return Study(profile, base, after, scorer, second, preferences, fitted.direction, cosine, task)
