"""An executable companion to two papers on detoxifying language models."""

from __future__ import annotations

__version__ = "0.1.0"
