"""What a benchmark found, on the terminal and in a file."""

from __future__ import annotations

import json
from pathlib import Path


def show(result: dict, out: Path | None) -> None:
    """Print a result as JSON, and write it to ``out`` if that is given."""
    text = json.dumps(result, indent=1)
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
