"""The page on architecture says what the code does. ``python tests/test_architecture.py`` draws its diagram
anew."""

from __future__ import annotations

import ast
import re
from html import escape
from pathlib import Path

import pytest

from companion import paths

try:
    from tests.test_rooms import FLOORS
except ModuleNotFoundError:
    from test_rooms import FLOORS

PAGE = Path(__file__).parent.parent / "pages" / "architecture.md"
BEGIN, END = "<!-- floors -->\n", "<!-- /floors -->\n"


def purpose(room: str) -> str:
    """First sentence of a room's docstring."""
    path = paths.PACKAGE / room
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=\.)\s", text.replace("``", ""), maxsplit=1)[0].rstrip(".:")


def diagram() -> str:
    """The floors from the top, each room with its purpose."""
    floors = []
    for floor in reversed(FLOORS):
        rooms = "".join(
            f'<div class="room"><b>{room}</b>{escape(purpose(room))}</div>\n' for room in sorted(floor)
        )
        floors.append(f'<div class="floor">\n{rooms}</div>\n')
    return BEGIN + '<div class="down">↓</div>\n'.join(floors) + END


def test_the_diagram_is_that_of_the_code():
    text = PAGE.read_text(encoding="utf-8")
    assert diagram() in text, "run `python tests/test_architecture.py`"
    spoken = re.search(r'aria-label="([^"]*)"', text)[1]
    assert all(re.search(rf"\b{room}\b", spoken) for floor in FLOORS for room in floor)


@pytest.mark.parametrize("page", ["architecture.md", "../CONTRIBUTING.md"])
def test_every_file_that_is_named_is_there(page):
    text = (PAGE.parent / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./-]+\.(?:py|md|yml|toml|sh))`", text))
    root = paths.project()
    assert named
    assert [n for n in sorted(named) if not any((base / n).exists() for base in (root, paths.PACKAGE))] == []


if __name__ == "__main__":
    old = PAGE.read_text(encoding="utf-8")
    before, _, rest = old.partition(BEGIN)
    PAGE.write_text(before + diagram() + rest.partition(END)[2], encoding="utf-8")
