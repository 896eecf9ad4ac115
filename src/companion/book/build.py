"""Build the book from executed chapters. Sphinx executes nothing."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

from companion import paths
from companion.book import contents, landing, record, runs, scoreboard
from companion.errors import CompanionError

PAGES = ("_config.yml", "_toc.yml", "_static", "intro.md", "pages", "references.bib")
SPHINX = [sys.executable, "-X", "utf8", "-c", "from jupyter_book.cli.main import main; main()", "build"]
# An entry of Font Awesome's tables: name:[width,height,[other names],"code",path or paths].
ICON = re.compile(r'"?([\w-]+)"?:\[\d+,\d+,\[([^]]*)\],"\w+",(?:"[^"]*"|\[[^]]*\])\],?')


def build(folder: Path) -> Path:
    """Render the book with the executed chapters of a run; return its index page.

    Raises
    ------
    CompanionError
        If a chapter has not been run or failed when it last was, or Sphinx warns (warnings are errors).
    """
    source, output, log = (paths.build() / name for name in ("book", "site", "build.log"))
    shutil.rmtree(source, ignore_errors=True)
    _copy_pages(source)
    executed = {chapter: _executed(chapter, folder) for chapter in contents.chapters()}
    texts: dict[str, Any] = {}
    for path in executed.values():
        texts |= record.glued(path)
    for chapter, path in executed.items():
        _copy_chapter(chapter, path, texts, source / "chapters" / chapter.path.name)
        _copy_picture(path, source / landing.PICTURE)
    intro = source / "intro.md"
    drawn = intro.read_text(encoding="utf-8").replace(landing.MARK, landing.chapter_map(runs.seconds(folder)))
    intro.write_text(_filled(drawn, texts), encoding="utf-8")
    command = [*SPHINX, str(source), "--path-output", str(output), "-W", "-n", "--keep-going"]
    settings = os.environ | {"DOCUTILSCONFIG": str(paths.project() / "docutils.conf")}
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False, env=settings
    )
    said = done.stdout + done.stderr
    log.write_text(said, encoding="utf-8")
    if done.returncode:
        shutil.rmtree(output, ignore_errors=True)  # the next build would skip pages that it has warned of
        problems = [line for line in said.splitlines() if "WARNING" in line or "ERROR" in line]
        raise CompanionError(
            f"the book was not built, Sphinx complains (full log in '{log}'): " + "; ".join(problems[:5])
        )
    index = output / "_build" / "html" / "index.html"
    require_pages(index.parent)
    trim_icons(index.parent)
    for source_map in index.parent.rglob("*.js.map"):  # only developers of the scripts would ask for it
        source_map.unlink()
    return index


def _copy_pages(source: Path) -> None:
    """Copy what is in the book beside the chapters."""
    (source / "chapters").mkdir(parents=True)
    for name in PAGES:
        path = paths.project() / name
        if path.is_dir():
            shutil.copytree(path, source / name)
        else:
            shutil.copy(path, source / name)
    for card in paths.DATA.glob("*/README.md"):  # pages/data.md includes them
        (source / "data" / card.parent.name).mkdir(parents=True)
        shutil.copy(card, source / "data" / card.parent.name)


def _executed(chapter: contents.Chapter, folder: Path) -> Path:
    """The executed chapter of a run, if it is the one that was run last."""
    again = f"run `companion run {chapter.name} --profile {folder.name}` first."
    if how := runs.failed(folder).get(chapter.name):
        raise CompanionError(f"chapter '{chapter.name}' failed when it was last run ({how}): {again}")
    if not (folder / chapter.path.name).is_file():
        raise CompanionError(f"chapter '{chapter.name}' has not been run: {again}")
    return folder / chapter.path.name


def _copy_chapter(chapter: contents.Chapter, executed: Path, texts: Mapping[str, Any], target: Path) -> None:
    """Copy an executed chapter: prose with results becomes Markdown; what only machines read is left out.

    Below its heading stand the verdicts on its claims: they are known when all chapters have run.
    """
    notebook = nbformat.read(executed, as_version=4)
    shown = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    first, *others = [_cell(cell, texts) for cell in shown]
    if badges := scoreboard.badges(chapter.name, texts):
        heading, _, rest = first.source.partition("\n")
        first.source = f"{heading}\n\n{badges}\n{rest}"
    notebook.cells = [first, *_headline(others), *others]
    nbformat.write(notebook, target)


def _headline(cells: Sequence[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The figure tagged ``headline`` once more, to begin the chapter with: what begins with one is read."""
    main = next((cell for cell in cells if "headline" in cell.metadata.get("tags", [])), None)
    if main is None:
        return []
    look = main.metadata["mystnb"]
    said = "*Ahead of its explanation, {{numref}}`{name}`:* {caption}".format_map(look["figure"])
    pictures = [output for output in main.outputs if "image/png" in output.get("data", {})]
    metadata = {"tags": ["remove-input"], "mystnb": {"image": look.get("image", {})}}
    return [
        nbformat.v4.new_code_cell(main.source, outputs=pictures, metadata=metadata, id=f"{main.id}-ahead"),
        nbformat.v4.new_markdown_cell(said, id=f"{main.id}-said"),
    ]


def _copy_picture(executed: Path, target: Path) -> None:
    """Copy the figure of the landing page out of the chapter that draws it."""
    for cell in nbformat.read(executed, as_version=4).cells:
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == target.stem:
            [png] = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(base64.b64decode(png))


def _cell(cell: nbformat.NotebookNode, texts: Mapping[str, Any]) -> nbformat.NotebookNode:
    if cell.source.startswith(record.MAGIC):
        source = _filled(cell.source.removeprefix(record.MAGIC).lstrip("\n"), texts)
        return nbformat.v4.new_markdown_cell(source, id=cell.id)
    if cell.cell_type == "code":
        cell.outputs = [output for output in cell.outputs if "scrapbook" not in output.get("metadata", {})]
    return cell


def _filled(source: str, texts: Mapping[str, Any]) -> str:
    """Markdown with its results.

    Raises
    ------
    CompanionError
        If one of them is in no chapter of the run.
    """
    unknown = [name for name in record.names(source) if name not in texts]
    if unknown:
        raise CompanionError(
            f"the prose shows '{unknown[0]}', which no chapter of this run has: run the chapters again."
        )
    return record.filled(source, texts)


def require_pages(html: Path) -> None:
    """Check that every page of ``_toc.yml`` was built, and that every chapter has a figure.

    A book that silently builds nothing is the classic failure of an unattended Jupyter Book.
    """
    for page in contents.pages():
        path = html / f"{page}.html"
        if not path.is_file():
            raise CompanionError(
                f"the page '{page}' of _toc.yml is missing from the built book: see _build/build.log."
            )
        if page.startswith("chapters/") and "_images/" not in path.read_text(encoding="utf-8"):
            again = "run its chapter again with `companion run --force`."
            raise CompanionError(f"the page '{page}' was built without a figure: {again}")


def trim_icons(html: Path) -> None:
    """Keep of the theme's two thousand icons those that a page or script names: the rest weighs 1.4 MB."""
    script = html / "_static" / "scripts" / "fontawesome.js"
    readers = [*html.rglob("*.html"), *(path for path in script.parent.glob("*.js") if path != script)]
    named = {
        name for path in readers for name in re.findall(r"fa-([\w-]+)", path.read_text(encoding="utf-8"))
    }

    def kept(icon: re.Match[str]) -> str:
        return icon[0] if named & {icon[1], *re.findall(r"[\w-]+", icon[2])} else ""

    script.write_text(ICON.sub(kept, script.read_text(encoding="utf-8")), encoding="utf-8")
