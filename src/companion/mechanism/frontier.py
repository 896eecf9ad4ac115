"""The editing rule at other α and β: chosen on dev prompts within a budget of perplexity, then examined once.

The authors' repository has files for a dozen settings and does not say how one was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from companion.mechanism.exam import Candidate, Exam, Outcome
from companion.mechanism.interventions import Positions
from companion.mechanism.selection import edited
from companion.mechanism.study import Study
from companion.mechanism.trials import Sweep, Trial

ALPHAS, BETAS = (0.5, 1.0, 2.0), (0.01, 0.03, 0.1)  # a profile that is not complete tries the corners
Setting = tuple[float, float]


def on_dev(sweep: Sweep) -> Sweep:
    """The same models with an exam of the same size on dev prompts and dev prose."""
    study = sweep.study
    exam = Exam.of(study.profile, study.base.lm, "dev")
    models = ((study.base.lm, sweep.base.view), (study.tuned.lm, sweep.tuned.view))
    return Sweep(study, *(Candidate(lm, view, exam) for lm, view in models))


def grid(study: Study) -> dict[Setting, Trial]:
    """The rule at every α and β, or at the least and largest of both."""
    step = 1 if study.profile.complete else 2
    return {(alpha, beta): edit(study, alpha, beta) for alpha in ALPHAS[::step] for beta in BETAS[::step]}


def edit(study: Study, alpha: float, beta: float) -> Trial:
    """The rule, on generated tokens as published; for perplexity behind a clean context."""
    given = (edited(study, study.cosine, alpha, beta),)
    key, label = f"edit_{alpha:g}_{beta:g}", f"edit, α = {alpha:g}, β = {beta:g}"
    return Trial(key, label, "edit", given, writing=Positions.GENERATED, reading=Positions.CONTINUATION)


def controls(study: Study, alpha: float, beta: float) -> tuple[Trial, Trial]:
    """The clamp of the same neurons to their own means, and random neurons of each group turned as far."""
    of = edit(study, alpha, beta)
    clamp = edited(study, study.cosine, 0.0, beta)
    random = edited(study, study.cosine, alpha, beta, random=True)
    return (
        replace(
            of,
            key=f"clamp_{beta:g}",
            label=f"clamp only, β = {beta:g}",
            family="clamp",
            given=(clamp,),
            control_of=(of.key,),
        ),
        replace(
            of,
            key=f"random_{alpha:g}_{beta:g}",
            label=f"random for: {of.label}",
            given=(random,),
            control_of=(of.key,),
        ),
    )


def chosen(outcomes: Mapping[Setting, Outcome], base: Outcome, budget: float) -> Setting | None:
    """The setting with the lowest mean toxicity among those whose perplexity rises by at most ``budget``."""
    more = {setting: (o.nll - base.nll).sum() / o.count.sum() for setting, o in outcomes.items()}  # nats
    within = [setting for setting, nats in more.items() if np.exp(nats) - 1 <= budget]
    return min(within, key=lambda setting: outcomes[setting].toxicity.mean(), default=None)
