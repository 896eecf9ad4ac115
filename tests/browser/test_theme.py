"""Light and dark: the switch works and is remembered, and every figure can be read in both."""

from __future__ import annotations

import io

import numpy as np
import pytest
from built import CHAPTERS, show
from jaxtyping import Float
from PIL import Image

MODES = "document.documentElement.dataset.mode"
READABLE = 3.0  # WCAG's least contrast of graphics


def luminance(pixels: Float[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape"]:
    """WCAG's relative luminance of sRGB pixels from 0 to 1."""
    linear = np.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def ink(png: bytes) -> tuple[float, float]:
    """Luminance of a figure's commonest colour, and the share of pixels that stand out from it."""
    light = luminance(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) / 255).round(3)
    values, counts = np.unique(light, return_counts=True)
    ground = values[counts.argmax()]
    contrast = (np.maximum(light, ground) + 0.05) / (np.minimum(light, ground) + 0.05)
    return float(ground), float((contrast >= READABLE).mean())


@pytest.mark.parametrize("name", CHAPTERS)
def test_figures_are_readable_in_both(page, name):
    show(page, name)
    figures = page.locator("article .cell_output img")
    assert figures.count()
    for theme in ("light", "dark"):
        page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
        for i in range(figures.count()):
            if not figures.nth(i).is_visible():  # folded away
                continue
            ground, standing_out = ink(figures.nth(i).screenshot(animations="disabled"))
            assert (ground < 0.1) == (theme == "dark"), "a board of the other mode's colour"
            assert standing_out > 0.002, f"figure {i} can hardly be seen in {theme}"


def test_the_switch_goes_round_and_is_remembered(page):
    show(page, "intro")
    seen = set()
    for _ in range(3):
        page.locator(".theme-switch-button").first.click()
        seen.add(mode := page.evaluate(MODES))
        show(page, CHAPTERS[0])
        assert page.evaluate(MODES) == mode
    assert seen == {"light", "dark", "auto"}


def test_without_a_choice_the_system_decides(browser, site):
    for scheme in ("light", "dark"):
        with browser.new_context(base_url=site, color_scheme=scheme) as context:
            page = show(context.new_page(), "intro")
            assert page.evaluate("document.documentElement.dataset.theme") == scheme
