"""The examples in docstrings run and give what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["companion.lm.activations", "companion.store", "companion.toxicity"])
def test_examples(module, tmp_path, monkeypatch):
    if module == "companion.store":  # the others take converted models from the user's
        monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried and not failed
