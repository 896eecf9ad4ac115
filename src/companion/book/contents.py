"""The book's contents: its pages and chapters as ``_toc.yml`` lists them, and a new chapter to begin with."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

from companion import paths
from companion.errors import CompanionError

TEMPLATE = Path(__file__).with_name("new_chapter.ipynb")


@dataclass(frozen=True)
class Chapter:
    """A notebook of the book: ``01_setting.ipynb`` is called *setting*."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem.split("_", 1)[1]

    @property
    def number(self) -> int:
        return int(self.path.stem.split("_", 1)[0])

    @property
    def title(self) -> str:
        """Its heading without the number, a name and a question."""
        cells = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        heading = "".join(cells[0]["source"]).splitlines()[0]
        return heading.lstrip("# ").partition(" · ")[2] or heading.lstrip("# ")

    @property
    def sums_up(self) -> bool:
        """Whether it shows results of the other chapters (``sums_up`` in the notebook's metadata)."""
        return self._metadata.get("sums_up", False)

    @property
    def after(self) -> list[str] | None:
        """Names of the chapters that it builds on (``after`` in the metadata); None if it does not say."""
        return self._metadata.get("after")

    @property
    def _metadata(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8"))["metadata"].get("companion", {})


def pages() -> list[str]:
    """All pages in the order of the book, as paths without their endings."""
    toc = yaml.safe_load((paths.project() / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]


def parts() -> dict[str, list[Chapter]]:
    """The chapters by the caption of their part of the book; parts without chapters are left out."""
    toc = yaml.safe_load((paths.project() / "_toc.yml").read_text(encoding="utf-8"))
    files = {part.get("caption", ""): {entry["file"] for entry in part["chapters"]} for part in toc["parts"]}
    listed = {
        caption: [chapter for chapter in chapters() if f"chapters/{chapter.path.stem}" in within]
        for caption, within in files.items()
    }
    return {caption: found for caption, found in listed.items() if found}


def chapters(names: Sequence[str] | None = None) -> list[Chapter]:
    """The chapters in the order of the book; ``names`` picks some by name, number or file name.

    Raises
    ------
    CompanionError
        If there is no such chapter.
    """
    listed = [Chapter(paths.project() / f"{page}.ipynb") for page in pages() if page.startswith("chapters/")]
    known = {alias: c for c in listed for alias in (c.name, str(c.number), c.path.stem, c.path.name)}
    for name in names or ():
        if name not in known:
            raise CompanionError(
                f"there is no chapter '{name}': choose from {', '.join(c.name for c in listed)}."
            )
    return [c for c in listed if c in [known[name] for name in names]] if names else listed


def add(name: str) -> Chapter:
    """Write a chapter that runs as it is, and its line in ``_toc.yml``, as the last.

    The set-up cell is that of the other chapters.

    Raises
    ------
    CompanionError
        If that is no name for a chapter, or another one has it.
    """
    listed = chapters()
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise CompanionError(
            f"'{name}' is no name for a chapter: take lower-case letters, for example length."
        )
    if name in [chapter.name for chapter in listed]:
        raise CompanionError(f"there is a chapter '{name}' already: choose another name.")
    last = listed[-1]
    new = Chapter(last.path.with_name(f"{last.number + 1:02}_{name}.ipynb"))
    text = TEMPLATE.read_text(encoding="utf-8").replace("NUMBER", str(new.number)).replace("NAME", name)
    notebook = nbformat.reads(text, as_version=4)
    set_up = next(cell for cell in nbformat.read(last.path, as_version=4).cells if cell.cell_type == "code")
    notebook.cells.insert(1, set_up)
    nbformat.write(notebook, new.path)
    toc = paths.project() / "_toc.yml"
    line = f"      - file: chapters/{last.path.stem}\n"
    listed_there = toc.read_text(encoding="utf-8")
    added = listed_there.replace(line, line + line.replace(last.path.stem, new.path.stem))
    toc.write_text(added, encoding="utf-8", newline="\n")
    return new
