"""The line through two models in weight space: base + λ · (tuned − base).

λ = 0 is the base model, 1 the tuned one. Between them weights are interpolated; beyond 1 the change of the
training is continued, as ExPO does with aligned models (Zheng et al., 2024, *Weak-to-strong extrapolation
expedites alignment*); below 0 it is undone and more::

    further = line.along(base, tuned, 2.0)  # the change twice
"""

from __future__ import annotations

import copy

import torch

from companion.errors import CompanionError
from companion.lm.models import LanguageModel


@torch.no_grad()
def along(base: LanguageModel, tuned: LanguageModel, weight: float) -> LanguageModel:
    """A copy with weights base + ``weight`` · (tuned − base); at 0 and 1, bit for bit, those of the models.

    There it has their fingerprint as well, so that the store gives what they wrote; elsewhere one that names
    both and the weight. Weights that are tied stay tied.

    Raises
    ------
    CompanionError
        If the models do not have the same weights by name and shape, or the weight is no finite number.
    """
    ends = [dict(lm.model.named_parameters()) for lm in (base, tuned)]
    shapes = [{name: tuple(parameter.shape) for name, parameter in end.items()} for end in ends]
    if shapes[0] != shapes[1]:
        raise CompanionError(
            f"there is no line from '{base.name}' to '{tuned.name}': their weights differ in name or shape."
        )
    if not abs(weight) < float("inf"):
        raise CompanionError(f"the place on a line between models is a finite number, not {weight}.")
    model = copy.deepcopy(base.model)
    for name, parameter in model.named_parameters():
        # lerp counts from the nearer end; base + 1 · (tuned − base) would round
        parameter.copy_(torch.lerp(ends[0][name], ends[1][name].to(parameter), float(weight)))
    own = {0.0: base.fingerprint, 1.0: tuned.fingerprint}
    fingerprint = f"{base.fingerprint}-line-{tuned.fingerprint}-{float(weight)!r}"
    name = f"{base.name}+{weight:g}({tuned.name})"
    return LanguageModel(name, model, base.tokenizer, own.get(float(weight), fingerprint))
