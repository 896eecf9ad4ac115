"""Where things live: the book's checkout, the project's data, the cache and what runs write."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import platformdirs

from companion.errors import CompanionError

PACKAGE = Path(__file__).parent

# A wheel carries data/ as companion/_data; an editable checkout has it at the top level.
DATA = PACKAGE / "_data" if (PACKAGE / "_data").is_dir() else PACKAGE.parents[1] / "data"


def absolute(path: str) -> str:
    """A path as the user means it: from the current folder, with ``~`` for the home folder."""
    return os.path.abspath(os.path.expanduser(path))


def project() -> Path:
    """Return the checkout that holds the chapters: the package's own, or the one around the current folder.

    Raises
    ------
    CompanionError
        If there is none, as where the package was installed from a wheel.
    """
    for folder in (PACKAGE.parents[1], here := Path.cwd(), *here.parents):
        if (folder / "_toc.yml").is_file() and (folder / "chapters").is_dir():
            return folder
    raise CompanionError("there is no book here: run this inside a clone of the repository.")


def cache() -> Path:
    """Return the cache folder: ``$COMPANION_CACHE`` or the user's; absolute, as chapters run elsewhere."""
    chosen = os.environ.get("COMPANION_CACHE")
    folder = Path(absolute(chosen) if chosen else platformdirs.user_cache_dir("companion"))
    # A user without a home folder has no cache of their own: platformdirs says "~/.cache" then, as it stands.
    return folder if folder.is_absolute() else Path(tempfile.gettempdir()) / "companion"


def build() -> Path:
    """Return the folder of runs and the built book: in the checkout, or in the cache if it is read-only."""
    root = project()
    folder = root / "_build"
    if os.access(folder if folder.exists() else root, os.W_OK):
        return folder
    return cache() / "build" / hashlib.sha256(str(root).encode()).hexdigest()[:8]
