"""The plan of the house, held against the imports.

``errors, paths, profiles, store ← lm, data ← metrics, toxicity ← mechanism | marco ← plan ← book ← cli``
"""

from __future__ import annotations

import ast

from companion import paths

FLOORS = [
    {"errors", "paths", "terminal"},
    {"profiles", "store"},
    {"lm", "data"},
    {"metrics", "toxicity"},
    {"mechanism", "marco"},
    {"plan"},
    {"book", "doctor"},
    {"cli", "make", "rewrite_command"},
]
MARCO = [{"denoisers"}, {"rewriting"}, {"experts", "records"}, {"evaluation"}, {"command"}]


def imports() -> set[tuple[str, str]]:
    """(module, module that it imports) as dotted names below ``companion``, those inside functions, too."""
    found = set()
    for path in paths.PACKAGE.rglob("*.py"):
        here = (
            ".".join(path.relative_to(paths.PACKAGE).with_suffix("").parts)
            .removesuffix("__init__")
            .rstrip(".")
        )
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "companion":
                base = node.module.removeprefix("companion").lstrip(".")
                found |= {(here, f"{base}.{alias.name}".lstrip(".")) for alias in node.names if here}
    return found


def violations(pairs: set[tuple[str, str]], floors: list[set[str]], below: str = "") -> list[str]:
    """Imports from a higher floor, or from another room of the same one."""
    level = {room: height for height, rooms in enumerate(floors) for room in rooms}
    wrong = []
    for importer, imported in sorted(pairs):
        a, b = (name.removeprefix(below).split(".")[0] for name in (importer, imported))
        inside = importer.startswith(below) and imported.startswith(below) and {a, b} <= set(level)
        # two rooms of one floor may look in at each other, but for the two papers
        if inside and (level[a] < level[b] or {a, b} == {"mechanism", "marco"}):
            wrong.append(f"{importer} imports {imported}")
    return wrong


def test_rooms_import_downwards_only():
    assert violations(imports(), FLOORS) == []
    assert violations(imports(), MARCO, "marco.") == []
    rooms = {
        path.stem if path.is_file() else path.name
        for path in paths.PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert rooms - {"__init__"} == set().union(*FLOORS)  # every room has a floor


def test_the_rule_can_fail():
    assert violations({("lm.models", "mechanism.dpo")}, FLOORS) and violations(
        {("marco.command", "mechanism.dpo")}, FLOORS
    )
    assert violations(
        {("marco.denoisers.causal", "marco.experts.loading")}, MARCO, "marco."
    ) and not violations({("book.build", "lm.models")}, FLOORS)


def test_no_two_modules_import_each_other():
    graph: dict[str, set[str]] = {}
    modules = {
        ".".join(path.relative_to(paths.PACKAGE).with_suffix("").parts)
        for path in paths.PACKAGE.rglob("*.py")
    }
    for importer, imported in imports():
        target = imported if imported in modules else imported.rpartition(".")[0]
        if target in modules:
            graph.setdefault(importer, set()).add(target)

    def reached(start: str) -> set[str]:
        seen, todo = set(), list(graph.get(start, ()))
        while todo:
            if (name := todo.pop()) not in seen:
                seen.add(name)
                todo += graph.get(name, ())
        return seen

    assert [name for name in sorted(graph) if name in reached(name)] == []
