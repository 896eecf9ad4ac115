"""What is done to the rendered pages after Sphinx. (How they look, tests/browser sees.)"""

from __future__ import annotations

from companion.book import build

UNUSED = '"angle-up":[1,512,[8963],"f106",["M3",""]],'
ICONS = f'a={{sun:[512,512,[9728],"f185","M1 2"],{UNUSED}"turn-up":[3,5,[1,"level-up-alt"],"f3bf","M4"]}}'


def test_icons_that_no_page_names_are_left_out(tmp_path):
    scripts = tmp_path / "_static" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "fontawesome.js").write_text(ICONS, encoding="utf-8")
    (scripts / "theme.js").write_text('add("fa-solid fa-level-up-alt")', encoding="utf-8")
    (tmp_path / "index.html").write_text('<i class="fa-solid fa-sun fa-lg"></i>', encoding="utf-8")
    for _ in range(2):
        build.trim_icons(tmp_path)
        assert (scripts / "fontawesome.js").read_text(encoding="utf-8") == ICONS.replace(UNUSED, "")
