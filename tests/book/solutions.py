"""The solutions of the chapters' exercises: read from the notebooks, and run behind their cells."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import papermill

EXERCISE = re.compile(r"^```\{exercise\} (\w+)\n:label: ([\w-]+)\n", re.MULTILINE)
SOLUTION = re.compile(r"^````\{solution\} ([\w-]+)\n:class: dropdown\n(.*?)^````$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text(notebook: Path) -> str:
    """All Markdown of a chapter."""
    cells = nbformat.read(notebook, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def codes(notebook: Path) -> dict[str, str]:
    """The code of the chapter's solutions by label; solutions in words are left out."""
    found = {label: CODE.search(body) for label, body in SOLUTION.findall(text(notebook))}
    return {label: code[1] for label, code in found.items() if code}


def added(notebook: Path, folder: Path) -> Path:
    """A copy of a chapter with a cell for each solution before its last one, which says what it took."""
    read = nbformat.read(notebook, as_version=4)
    read.cells[-1:-1] = [nbformat.v4.new_code_cell(code) for code in codes(notebook).values()]
    nbformat.write(read, folder / notebook.name)
    return folder / notebook.name


def solved() -> None:
    """From here on, in this process, chapters run with their solutions."""
    execute = papermill.execute_notebook

    def with_solutions(source: str, *args: Any, **options: Any) -> nbformat.NotebookNode:
        with tempfile.TemporaryDirectory() as folder:
            return execute(str(added(Path(source), Path(folder))), *args, **options)

    papermill.execute_notebook = with_solutions
