"""How the training of the shipped adapters went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from companion.marco.denoisers import adapters
from companion.marco.denoisers.protocol import BASE, ROLES


class History(NamedTuple):
    """How adapters were trained: settings, and a row per role and step."""

    config: dict
    curve: pd.DataFrame

    def of(self, role: str) -> pd.DataFrame:
        """Rows of one role: step, loss, seconds, and where measured ``non-toxic`` and ``toxic``.

        The steps of an expert go on from those of the base.
        """
        return self.curve[self.curve.role == role]


def load(folder: Path | None) -> History:
    """Read ``history.json`` of a folder of adapters; None (models from elsewhere): the shipped."""
    about = json.loads(((folder or adapters.FOLDER) / "history.json").read_text(encoding="utf-8"))
    begun = {role: 0 if role == BASE else about["config"]["base_steps"] for role in ROLES}
    rows = [
        {"role": role, **row, "step": begun[role] + row["step"] + 1}
        for role in ROLES
        for row in about["history"][role]
    ]
    return History(about["config"], pd.DataFrame(rows))
