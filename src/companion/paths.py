"""Where things live: the project's data, the cache and the run folder."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

PACKAGE = Path(__file__).parent
# A wheel carries data/ as companion/_data; an editable checkout has it at the top level.
DATA = PACKAGE / "_data" if (PACKAGE / "_data").is_dir() else PACKAGE.parents[1] / "data"


def project() -> Path:
    """Return the checkout that holds the chapters (the folder of ``_toc.yml``)."""
    return PACKAGE.parents[1]


def cache() -> Path:
    """Return the cache folder: ``$COMPANION_CACHE`` or the user's cache."""
    return Path(os.environ.get("COMPANION_CACHE") or platformdirs.user_cache_dir("companion"))
