"""What a reader sees of a chapter's code: short cells of short lines, and no method hidden."""

from __future__ import annotations

import ast
import re

import nbformat
import pytest

from companion.book import contents, record

CHAPTERS = contents.chapters()
MOST_LINES, WIDEST = 40, 110


def python(source: str) -> ast.Module:
    """The cell without IPython magics."""
    if source.startswith(record.MAGIC):
        return ast.parse("")
    return ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", source, flags=re.MULTILINE))


def imported(trees: list[ast.Module]) -> set[str]:
    """Names that a chapter imports."""
    return {
        (alias.asname or alias.name).split(".")[0]
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


def hidden_methods(tree: ast.Module, libraries: set[str]) -> list[str]:
    """Definitions of a cell, and its calls of anything imported but ``record``: more than recording."""
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            wrong.append(ast.unparse(node).splitlines()[0])
        if isinstance(node, ast.Call):
            root = node.func
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in libraries - {"record"}:
                wrong.append(ast.unparse(node))
    return wrong


@pytest.fixture(params=CHAPTERS, ids=[c.name for c in CHAPTERS])
def cells(request) -> list[nbformat.NotebookNode]:
    return [c for c in nbformat.read(request.param.path, as_version=4).cells if c.cell_type == "code"]


def test_hidden_cells_record_and_do_nothing_else(cells):
    libraries = imported([python(cell.source) for cell in cells])
    hidden = [cell for cell in cells if "remove-cell" in cell.metadata.get("tags", [])]
    assert hidden
    assert [bad for cell in hidden for bad in hidden_methods(python(cell.source), libraries)] == []


def test_cells_are_short_and_narrow(cells):
    code = [cell.source for cell in cells if not cell.source.startswith(record.MAGIC)]
    assert [source[:60] for source in code if len(source.splitlines()) > MOST_LINES] == []
    assert [line for source in code for line in source.splitlines() if len(line) > WIDEST] == []


@pytest.mark.parametrize(
    "hidden",
    [
        "def share(x):\n    return x",
        "f = lambda x: x",
        "record.result('a', estimates.mean(x), seed=0)",
        "low, high = np.quantile(x, [0.1, 0.9])",
    ],
)
def test_the_rule_can_fail(hidden):
    assert hidden_methods(ast.parse(hidden), {"estimates", "np", "record"})
    assert not hidden_methods(ast.parse("record.result('a', mean[k], seed=P.seed)"), {"estimates", "record"})
