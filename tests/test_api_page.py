"""The API page: its examples run, and every module that a program would import has its section."""

from __future__ import annotations

import ast
import doctest
import re

import pytest

from companion import paths

PAGE = paths.project() / "pages" / "api.md"
COMMANDS = {"cli", "make", "terminal", "doctor", "rewrite_command"}  # the command line has its own help
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^\*\*(.+?)\*\*[^\n]*\n\n```pycon\n(.*?)```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def names() -> dict[str, object]:
    """What the examples have named so far: each goes on where the one before it stopped."""
    return {}


@pytest.mark.parametrize(("title", "source"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_examples_run(names, title, source):
    test = doctest.DocTestParser().get_doctest(source, names, title, str(PAGE), 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(test, out=report.append, clear_globs=False)
    names |= test.globs
    assert runner.failures == 0, "".join(report)


def test_examples_are_found():
    assert [title.split()[0] for title, _ in EXAMPLES] == [
        *("Load", "Score", "Fit", "Decompose", "Intervene", "Rewrite")
    ]


def test_sections_of_what_comes_back_begin_with_its_type():
    """Sphinx takes the first line for a type: a sentence there is a link that leads nowhere, and no book."""
    for file in sorted(paths.PACKAGE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        for head, first, second in re.findall(r" (Returns|Yields)\n +-+\n( *\S.*)\n(.*)\n", text):
            indents = [len(line) - len(line.lstrip()) for line in (first, second)]
            assert indents[0] < indents[1], f"{file}: {head} begins with {first.strip()!r}"


def test_what_describes_a_property_has_no_colon():
    """Sphinx takes what stands before it for a type, as above."""
    for file in sorted(paths.PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                decorated = {ast.unparse(one) for one in node.decorator_list}
                first = (ast.get_docstring(node) or "").partition("\n")[0]
                if decorated & {"property", "cached_property"}:
                    assert ": " not in first, f"{file}: {node.name}"


def test_every_module_has_its_section():
    modules = {
        ".".join(("companion", *path.relative_to(paths.PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for path in paths.PACKAGE.rglob("*.py")
    } - {"companion"}
    expected = {module for module in modules if module.split(".")[1] not in COMMANDS}
    assert set(re.findall(r"automodule:: (\S+)", TEXT)) == expected
