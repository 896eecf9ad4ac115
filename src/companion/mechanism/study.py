"""What chapters 4 to 8 start from: both models, the toxic direction, and what neurons do in each.

Everything comes from the store where an earlier chapter or run made it, and is made now where not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import TransformerBridge

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


@dataclass(frozen=True)
class Study:
    """The base model, the DPO model and their neurons.

    ``direction`` is the probe's at unit length, ``cosine`` that of each base value vector with it;
    ``base_own`` and ``tuned_own`` are activation sums of each model on its own greedy text;
    ``base_mean`` and ``tuned_mean`` the mean activations as the model has them, for patches (they
    differ from the sums only where a norm follows the MLP).
    """

    profile: Profile
    lm: LanguageModel
    tuned: LanguageModel
    scorer: Scorer
    pairs: list[Pair]
    direction: Float[Tensor, "d_model"]
    cosine: Float[Tensor, "layer d_mlp"]
    task: Task
    base_text: Generated
    base_own: Sums
    tuned_text: Generated
    tuned_own: Sums
    base_mean: Float[Tensor, "layer d_mlp"]
    tuned_mean: Float[Tensor, "layer d_mlp"]

    def base_side(self, sums: Sums | None = None, direction: Tensor | None = None) -> Side:
        """The base model's projections on its own text, or with other sums or another direction."""
        d = self.direction if direction is None else direction
        return Side(self.base_own if sums is None else sums, neurons.projected(self.lm, d))

    def tuned_side(self, sums: Sums | None = None, direction: Tensor | None = None) -> Side:
        """The same for the DPO model."""
        d = self.direction if direction is None else direction
        return Side(self.tuned_own if sums is None else sums, neurons.projected(self.tuned, d))

    @property
    def group(self) -> Int[Tensor, "layer d_mlp"]:
        """Group of every neuron by the base model's own text."""
        return neurons.groups(self.cosine, self.base_own.mean)

    def members(self, *chosen: Group) -> Bool[Tensor, "layer d_mlp"]:
        """Mask of the neurons in some groups."""
        return torch.isin(self.group, torch.tensor([int(g) for g in chosen]))

    @property
    def reduction(self) -> Float[Tensor, "layer d_mlp"]:
        """Δp of every neuron, each model on its own text, as published."""
        return self.base_side().projections - self.tuned_side().projections

    def views(self) -> tuple[TransformerBridge, TransformerBridge]:
        """Both models through TransformerLens. It wraps them in place: ask last."""
        return anatomy.bridge(self.lm), anatomy.bridge(self.tuned)


def begin(profile: Profile) -> Study:
    """Load or make everything: probe (chapter 2), DPO model (chapter 3), activations of both models on their own text."""
    lm = models.load(profile.model)
    scorer = toxicity.load(profile.scorer)
    comments = by_profile.comments(profile, "train")
    fitted = probe.trained(lm, comments.text.tolist(), comments.label.to_numpy(), lm.n_layers - 1)
    made = pairs.load(profile, lm, fitted, scorer)
    tuned, _ = dpo.trained(lm, made, dpo.DPOConfig.of(profile), progress="DPO")
    task = Task(by_profile.prompts(profile).prompt.tolist(), profile.new_tokens, profile.max_prompt_tokens)
    base_text, base_own = recording.write(lm, task, progress="base writes")
    tuned_text, tuned_own = recording.write(tuned, task, progress="DPO writes")
    cosine = neurons.cosines(lm, fitted.direction)
    raw = [recording.write(this, task, through_norm=False)[1].mean for this in (lm, tuned)]
    return Study(
        profile,
        lm,
        tuned,
        scorer,
        made,
        fitted.direction,
        cosine,
        task,
        base_text,
        base_own,
        tuned_text,
        tuned_own,
        *raw,
    )
