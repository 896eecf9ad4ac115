"""No page scrolls sideways, on a phone or at a desk; what is wide scrolls in a box of its own, visibly."""

from __future__ import annotations

import pytest
from built import DESKTOP, PHONE

# What sticks out to the right and is not inside a box that scrolls.
STICKS_OUT = """() => {
  const edge = document.documentElement.clientWidth + 1, right = (e) => e.getBoundingClientRect().right;
  const scrolls = (e) => /auto|scroll/.test(getComputedStyle(e).overflowX) && right(e) <= edge;
  const boxed = (e) => e !== document.body && (scrolls(e) || boxed(e.parentElement));
  const seen = (e) => e.checkVisibility({ visibilityProperty: true })
    && !e.closest('mjx-assistive-mml, .sr-only, .visually-hidden');
  return [...document.querySelectorAll('.bd-article-container *')]
    .filter((e) => right(e) > edge && seen(e) && !boxed(e))
    .map((e) => `${e.tagName}.${e.className}: ${e.textContent.trim().slice(0, 40)}`);
}"""

# Boxes with more than they can show, and the room that their scrollbar takes: none if it is not in sight.
BOXES = """() => [...document.querySelectorAll('.bd-article *')]
  .filter((e) => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1)
  .map((e) => [e, getComputedStyle(e)]).filter(([, style]) => /auto|scroll/.test(style.overflowX))
  .map(([e, style]) => [`${e.tagName}.${e.className}: ${e.textContent.trim().slice(0, 40)}`,
    e.offsetHeight - e.clientHeight - 2 * parseFloat(style.borderTopWidth)])"""

FIRST_FIGURE = """() => {
  const figure = document.querySelector('.bd-article .cell_output img, .bd-article img');
  return figure.getBoundingClientRect().top + scrollY;
}"""


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desk", "phone"])
def view(request, opened):
    opened.set_viewport_size(request.param)
    return opened


def test_the_page_does_not_scroll_sideways(view):
    assert view.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert view.evaluate("document.body.scrollWidth - document.documentElement.clientWidth") <= 0
    assert not view.evaluate(STICKS_OUT)


def test_boxes_that_scroll_show_it(view):
    assert not [box for box, bar in view.evaluate(BOXES) if bar < 3]


def test_the_first_figure_of_a_chapter_is_within_two_screens(view):
    if "/chapters/" not in view.url:
        return
    assert view.evaluate(FIRST_FIGURE) < 2 * view.viewport_size["height"]
