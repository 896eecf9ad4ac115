"""Results survive the way from a chapter's kernel through its notebook into results.json."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nbformat
import papermill
import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion.book import record, tables

PYTHON = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
SOURCE = """
from companion.book import record
from companion.metrics.estimates import Estimate
import numpy as np
record.text("word", "it's \\"quoted\\" {braces} \\\\ 😀")
record.result("estimate", Estimate(0.12345, 0.1, 0.2, 1234), seed=7)
record.result("share", Estimate(0.5, 0.25, 0.75, 10), seed=0, percent=True)
record.result("fine_share", Estimate(0.12345, 0.1, 0.2, 10), seed=0, percent=True, digits=4)
record.result("plain", 0.1 + 0.2, seed=1, digits=1)
record.result("numpy", np.float32(0.5), seed=2)
record.result("count", 220, seed=0, digits=0)
record.result("undefined", float("nan"), seed=0)
record.result("half_undefined", Estimate(float("nan"), float("nan"), float("inf"), 3), seed=0)
record.result("again", 1, seed=0)
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("record")
    cells = [
        nbformat.v4.new_code_cell(SOURCE),
        nbformat.v4.new_markdown_cell("text"),
        nbformat.v4.new_code_cell("print('output')\nrecord.result('again', 2, seed=0)\nrecord.resources()"),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=PYTHON)
    nbformat.write(notebook, folder / "in.ipynb")
    papermill.execute_notebook(
        str(folder / "in.ipynb"), str(folder / "out.ipynb"), kernel_name="python3", progress_bar=False
    )
    return folder / "out.ipynb"


def test_records_come_back_exactly(executed):
    records = record.collect(executed)
    assert records["estimate"] == {"value": 0.12345, "seed": 7, "low": 0.1, "high": 0.2, "n": 1234}
    assert records["plain"] == {"value": 0.1 + 0.2, "seed": 1}  # all digits, no interval
    assert records["numpy"] == {"value": 0.5, "seed": 2}
    assert records["share"]["value"] == 0.5  # the record holds the value, the text the percentage
    assert records["count"]["value"] == 220
    assert records["again"]["value"] == 2  # the last one counts
    assert set(records) == {
        "estimate",
        "share",
        "fine_share",
        "plain",
        "numpy",
        "count",
        "undefined",
        "half_undefined",
        "again",
        "peak_memory",
    }


def test_undefined_values_are_none(executed):
    records = record.collect(executed)
    assert records["undefined"] == {"value": None, "seed": 0}
    assert records["half_undefined"] == {"value": None, "seed": 0, "low": None, "high": None, "n": 3}
    assert "NaN" not in json.dumps(records, allow_nan=False)


def test_texts_for_the_prose(executed):
    shown = record.glued(executed)
    assert shown["word"] == 'it\'s "quoted" {braces} \\ 😀'
    assert shown["estimate"] == "0.123" and shown["estimate_ci"] == "0.123 [0.100, 0.200], n = 1,234"
    assert shown["share"] == "50.0 %" and shown["share_ci"] == "50.0 % [25.0 %, 75.0 %], n = 10"
    assert shown["fine_share"] == "12.35 %"
    assert shown["plain"] == "0.3" and "plain_ci" not in shown
    assert shown["count"] == "220"


def test_peak_memory_is_in_megabytes(executed):
    peak = record.collect(executed)["peak_memory"]["value"]
    assert 50 < peak < 20_000 and math.floor(peak) == peak


def test_prose_waits_for_its_results(tmp_path):
    """B29: shown at once with what is there, and again whenever a result comes or changes."""
    sources = [
        "from companion.book import record\nrecord.text('early', 'here')",
        "%%prose\nFirst {{early}}, then {{late}}: $x_{{1}}$ and {cite}`key`.",
        "record.result('late', 0.25, seed=0, percent=True)",
        "record.result('late', 0.5, seed=0, percent=True)",
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources], metadata=PYTHON
    )
    nbformat.write(notebook, tmp_path / "in.ipynb")
    papermill.execute_notebook(
        str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb"), kernel_name="python3", progress_bar=False
    )
    [shown] = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[1].outputs
    assert shown.data["text/markdown"].strip() == "First here, then 50.0 %: $x_{{1}}$ and {cite}`key`."


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]\w{0,5}", fullmatch=True), st.text(alphabet="ab1 %", max_size=5), max_size=4
    ),
    st.text(max_size=20),
)
def test_prose_is_filled_by_name(texts, rest):
    source = rest.replace("{", "") + "".join(f" {{{{{name}}}}}" for name in texts)
    assert record.filled(source, texts) == rest.replace("{", "") + "".join(
        f" {value}" for value in texts.values()
    )
    assert record.names(source) == list(texts)
    assert record.filled(source, {}).count(record.UNKNOWN) >= len(texts)


def test_a_notebook_without_results(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), tmp_path / "n.ipynb")
    assert record.collect(tmp_path / "n.ipynb") == {} == record.glued(tmp_path / "n.ipynb")


def test_published_rows_are_looked_up():
    assert tables.published("DPO", "lee2024") == "0.208 / 23.34 / 0.195"
    with pytest.raises(ValueError, match="not one row"):
        tables.published("prayer", "lee2024")
