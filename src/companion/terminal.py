"""What all commands share: how they print, and the option of a profile."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

# A folder may be called [old] or :cat:, and logs must not squeeze tables.
console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 150)
ProfileOption = Annotated[
    str,
    typer.Option(
        "--profile",
        "-p",
        help="smoke, embedded, full, gemma, public, paper or paper-gpt2, -gemma2, -llama3, -mistral",
    ),
]
