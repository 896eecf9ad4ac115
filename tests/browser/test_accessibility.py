"""axe-core finds nothing serious, by day and by night."""

from __future__ import annotations

from pathlib import Path

import axe_playwright_python
import pytest

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
RUN = """async () => (await axe.run(document, { resultTypes: ["violations"] })).violations
  .filter((found) => ["serious", "critical"].includes(found.impact))
  .flatMap((found) => found.nodes.map((node) =>
    `${found.id}: ${node.target} ${node.html.slice(0, 120)} ${node.failureSummary.slice(0, 200)}`))"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, theme):
    opened.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    opened.add_style_tag(content="* { transition: none !important; }")  # or a colour on its way is measured
    opened.add_script_tag(path=AXE)
    found = opened.evaluate(RUN)
    assert not found, "\n".join(found)
