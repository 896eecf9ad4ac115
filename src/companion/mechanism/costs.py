"""What an intervention may cost in perplexity, and the scale at which a subtraction costs as much.

Lee et al. (2024) chose the scale of a subtraction so that perplexity equals that of the DPO model. Their rise
is one budget, this book's DPO model another.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from torch import Tensor
from transformer_lens import TransformerBridge

from companion import store
from companion.lm.models import LanguageModel
from companion.mechanism.interventions import Positions, Subtract, applied
from companion.mechanism.study import Study
from companion.metrics import perplexity
from companion.profiles import Profile

PUBLISHED_RISE = 23.56 / 21.70 - 1  # perplexity that subtracting W costs in Lee et al. (2024), table 2
COSTS = {1.0: "", 0.25: ", a quarter of the cost", 4.0: ", four times the cost"}  # in units of that
OWN_COST = ", at this DPO model's cost"


def of(profile: Profile) -> list[float]:
    """Rises in perplexity at which directions are subtracted, in units of the published one."""
    return [cost for cost in COSTS if profile.complete or cost == 1]


def calibrated(
    lm: LanguageModel,
    view: TransformerBridge,
    direction: Float[Tensor, "*draw d_model"],
    windows: list[list[int]],
    rise: float,
) -> Subtract:
    """Subtraction with the scale at which perplexity on (dev) windows rises by ``rise``; kept in the store.

    Lee et al. chose the scale so that perplexity equals that of the DPO model. Small steps cost
    about the square of their size, which gives the next guess from the last. No rise, no step.
    """
    layer = lm.n_layers - 2  # the stream that enters the last block, where the probe reads
    if rise == 0:
        return Subtract(direction, 0.0, layer)

    def search() -> float:
        nll, count = perplexity.cross_entropy(lm, windows, 8)
        scale = 1.0
        for _ in range(5):
            with applied(view, Subtract(direction, scale, layer), positions=Positions.ALL):
                risen = np.exp((perplexity.cross_entropy(lm, windows, 8)[0] - nll).sum() / count.sum()) - 1
            scale *= np.clip((rise / max(risen, 1e-9)) ** 0.5, 0.1, 10)
        return float(scale)

    unscaled = Subtract(direction, 1.0, layer).fingerprint
    inputs = {"model": lm.fingerprint, "direction": unscaled, "windows": windows, "rise": rise}
    return Subtract(direction, store.kept("scales", inputs, search), layer)


def own_cost(study: Study, windows: list[list[int]]) -> float:
    """What the DPO model costs in perplexity on (dev) windows, in units of the published rise; at least 0."""
    (before, count), (after, _) = (
        perplexity.cross_entropy(s.lm, windows, 8) for s in (study.base, study.tuned)
    )
    return max(0.0, float(np.exp((after - before).sum() / count.sum()) - 1) / PUBLISHED_RISE)
