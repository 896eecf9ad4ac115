"""How the training of the shipped adapters went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from companion.marco.denoisers.protocol import BASE, ROLES
from companion.marco.experts import loading


class History(NamedTuple):
    """How adapters were trained: settings, and a row per role and step."""

    config: dict
    curve: pd.DataFrame

    def of(self, role: str) -> pd.DataFrame:
        """Rows of one role: step (an expert's go on from the base's), loss, seconds, and where measured ``non-toxic`` and ``toxic``."""
        return self.curve[self.curve.role == role]


def load(folder: Path | None) -> History:
    """Read ``history.json`` of a folder of adapters; models that were trained elsewhere (None) have none: then of the shipped ones."""
    found = json.loads(((folder or loading.FOLDER) / "history.json").read_text(encoding="utf-8"))
    begun = {role: 0 if role == BASE else found["config"]["base_steps"] for role in ROLES}
    rows = [
        {"role": role, **row, "step": begun[role] + row["step"] + 1}
        for role in ROLES
        for row in found["history"][role]
    ]
    return History(found["config"], pd.DataFrame(rows))
