"""An executable companion to two papers on detoxifying language models."""

__version__ = "0.1.0"
