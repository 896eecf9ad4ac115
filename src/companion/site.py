"""Build the book from executed chapters. Sphinx executes nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml

from companion import paths, runner
from companion.errors import CompanionError

PAGES = ("_config.yml", "_toc.yml", "intro.md", "pages", "references.bib")


def build(folder: Path) -> Path:
    """Render the book with the executed chapters of a run; return its index page.

    Raises
    ------
    CompanionError
        If a chapter has not been run, or Sphinx warns (warnings are errors).
    """
    project, source = paths.project(), paths.project() / "_build" / "book"
    shutil.rmtree(source, ignore_errors=True)
    (source / "chapters").mkdir(parents=True)
    for name in PAGES:
        path = project / name
        if path.is_dir():
            shutil.copytree(path, source / name)
        else:
            shutil.copy(path, source / name)
    for card in paths.DATA.glob("*/README.md"):  # pages/data.md includes them
        (source / "data" / card.parent.name).mkdir(parents=True)
        shutil.copy(card, source / "data" / card.parent.name)
    for chapter in runner.chapters():
        executed = folder / chapter.path.name
        if not executed.is_file():
            raise CompanionError(f"chapter '{chapter.name}' has not been run: run `companion run {chapter.name} --profile {folder.name}` first.")
        _copy_chapter(executed, source / "chapters" / chapter.path.name)
    output = project / "_build" / "site"
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(source),
        "--path-output",
        str(output),
        "-W",
        "-n",
        "--keep-going",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (project / "_build" / "build.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        shutil.rmtree(output, ignore_errors=True)  # or the next build would skip the pages that it has warned of
        problems = [line for line in (done.stdout + done.stderr).splitlines() if "WARNING" in line or "ERROR" in line]
        raise CompanionError("the book was not built, Sphinx complains (full log in _build/build.log): " + "; ".join(problems[:5]))
    index = output / "_build" / "html" / "index.html"
    require_pages(index.parent)
    return index


def _copy_chapter(executed: Path, target: Path) -> None:
    """Copy an executed chapter without the cell of parameters that papermill put in."""
    notebook = nbformat.read(executed, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    nbformat.write(notebook, target)


def require_pages(html: Path) -> None:
    """Check that every page of ``_toc.yml`` was built, and that every chapter has a figure.

    A book that silently builds nothing is the classic failure of an unattended Jupyter Book.
    """
    toc = yaml.safe_load((paths.project() / "_toc.yml").read_text())
    pages = [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]
    for page in pages:
        path = html / f"{page}.html"
        if not path.is_file():
            raise CompanionError(f"the page '{page}' of _toc.yml is missing from the built book: see _build/build.log.")
        if page.startswith("chapters/") and "_images/" not in path.read_text():
            raise CompanionError(f"the page '{page}' was built without a figure: run its chapter again with `companion run --force`.")
