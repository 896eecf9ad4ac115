"""Everything on a page that can be worked, by mouse, by keyboard and by touch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from built import DESKTOP, PHONE, show
from playwright.sync_api import Browser, Locator, Page, expect

WAYS = ["mouse", "keyboard", "touch"]


@dataclass(frozen=True)
class Hand:
    """A tab and the one way of working it."""

    page: Page
    way: str

    def press(self, element: Locator) -> None:
        element.scroll_into_view_if_needed()
        if self.way == "mouse":
            element.click()
        elif self.way == "touch":
            element.tap()
        else:
            element.focus()
            expect(element).to_be_focused()
            self.page.keyboard.press("Enter")

    def push(self, slider: Locator) -> None:
        """Move a slider to the right."""
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        x, y = box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2
        if self.way == "mouse":
            self.page.mouse.click(x, y)
        elif self.way == "touch":
            self.page.touchscreen.tap(x, y)
        else:
            slider.focus()
            self.page.keyboard.press("ArrowRight")

    def choose_next(self, select: Locator) -> None:
        """Take the next option of a list; where a list unfolds is the browser's matter, not the page's."""
        if self.way == "keyboard":
            select.focus()
            self.page.keyboard.press("ArrowDown")
        else:
            select.select_option(index=1)


@pytest.fixture(scope="module", params=WAYS)
def hand(request: pytest.FixtureRequest, browser: Browser, site: str) -> Iterator[Hand]:
    phone = {"viewport": PHONE, "has_touch": True, "is_mobile": True}
    settings = phone if request.param == "touch" else {"viewport": DESKTOP}
    allowed = ["clipboard-read", "clipboard-write"]
    with browser.new_context(base_url=site, permissions=allowed, **settings) as context:
        context.set_default_timeout(10_000)
        yield Hand(context.new_page(), request.param)


def element(hand: Hand, name: str, kind: str) -> Locator:
    """The element of a kind on a page, opened anew."""
    found = show(hand.page, name).locator(f".{kind}").first
    for fold in hand.page.locator(f"details:not([open]):has(.{kind}) > summary").all():
        hand.press(fold)
    if found.locator(".wx-empty").is_visible():
        pytest.skip("this run has nothing to show in it")  # smoke's random model may rewrite nothing
    expect(found.locator(".wx-app")).to_be_visible()
    return found


# --- the elements of chapters 6, 10 and 11 ----------------------------------------------------------


def test_neurons_are_filtered(hand):
    explorer = element(hand, "chapters/06_decomposition", "neuron-explorer")
    status = explorer.locator(".wx-status")
    for button in explorer.locator(".wx-legend button").all():
        before = status.inner_text()
        hand.press(button)
        expect(button).to_have_attribute("aria-pressed", "false")
        hand.press(button)
        expect(button).to_have_attribute("aria-pressed", "true")
        expect(status).to_have_text(before)
    before = status.inner_text()
    hand.choose_next(explorer.locator("select"))
    expect(status).not_to_have_text(before)


def test_neurons_change_their_axis(hand):
    explorer = element(hand, "chapters/06_decomposition", "neuron-explorer")
    hand.press(explorer.locator("[data-x=cosine]"))
    expect(explorer.locator("[data-x=layer]")).to_have_attribute("aria-pressed", "false")
    expect(explorer.locator(".wx-below")).to_contain_text("cosine")


def test_neurons_are_explained(hand):
    explorer = element(hand, "chapters/06_decomposition", "neuron-explorer")
    tip, button = explorer.locator(".wx-tip"), explorer.locator("tbody button").nth(2)
    hand.press(button)
    expect(tip).to_contain_text(button.inner_text())
    hand.page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    hand.press(explorer.locator("input"))
    hand.page.keyboard.type(button.inner_text())
    expect(tip).to_contain_text(button.inner_text())
    expect(explorer.locator(".wx-status")).to_contain_text("is marked")


def test_neurons_are_found_in_the_picture(hand):
    if hand.way == "keyboard":
        pytest.skip("by keyboard the table below gives the neurons")
    explorer = element(hand, "chapters/06_decomposition", "neuron-explorer")
    canvas, tip = explorer.locator("canvas"), explorer.locator(".wx-tip")
    canvas.scroll_into_view_if_needed()
    box, points = canvas.bounding_box(), 12
    for i in range(points * points):
        x, y = 0.15 + 0.8 * (i % points) / points, 0.1 + 0.8 * (i // points) / points
        at = {"x": x * box["width"], "y": y * box["height"]}
        canvas.tap(position=at) if hand.way == "touch" else canvas.hover(position=at)
        if tip.is_visible():
            return
    pytest.fail("no neuron answers")


def test_blanks_are_filled_anew(hand):
    blanks = element(hand, "chapters/10_marco", "blank-sliders")
    for slider, shown in zip(
        blanks.locator("input[type=range]").all(), blanks.locator("output").all(), strict=True
    ):
        before = shown.inner_text()
        hand.push(slider)
        expect(shown).not_to_have_text(before)
    for preset in reversed(blanks.locator(".wx-presets button").all()):
        hand.press(preset)
        expect(preset).to_have_attribute("aria-pressed", "true")


def test_blanks_and_sentences_are_chosen(hand):
    blanks = element(hand, "chapters/10_marco", "blank-sliders")
    text = blanks.locator(".wx-text")
    last = text.locator("button").last
    hand.press(last)
    expect(last).to_have_attribute("aria-pressed", "true")
    if blanks.locator("option").count() > 1:
        before = text.inner_text()
        hand.choose_next(blanks.locator("select"))
        expect(text).not_to_have_text(before)


def test_pairs_are_rated(hand):
    ratings = element(hand, "chapters/11_evaluation", "blind-ratings")
    status, votes = ratings.locator(".wx-status"), ratings.locator("[data-vote]")
    pairs = int(status.inner_text().split(" of ")[1].split(".")[0])
    for i in range(min(pairs - 1, votes.count())):
        expect(status).to_contain_text(f"Pair {i + 1} of {pairs}.")
        hand.press(votes.nth(i))
    hand.press(ratings.locator(".wx-show"))
    expect(ratings.locator(".wx-found table")).to_be_visible()
    with hand.page.expect_download() as saved:
        hand.press(ratings.locator(".wx-save"))
    kept = json.loads(Path(saved.value.path()).read_text(encoding="utf-8"))
    assert len(kept["ratings"]) == min(pairs - 1, votes.count())
    hand.press(ratings.locator(".wx-again"))
    expect(status).to_contain_text("Pair 1 of")


@pytest.mark.parametrize(
    "name, kind",
    [
        ("chapters/06_decomposition", "neuron-explorer"),
        ("chapters/10_marco", "blank-sliders"),
        ("chapters/11_evaluation", "blind-ratings"),
    ],
)
def test_tab_reaches_every_control(hand, name, kind):
    if hand.way != "keyboard":
        pytest.skip("the keyboard's")
    found = element(hand, name, kind)
    controls = found.locator(":is(button, select, input):visible")
    controls.first.focus()
    for i in range(1, controls.count()):
        hand.page.keyboard.press("Tab")
        expect(controls.nth(i)).to_be_focused()


# --- the theme's ------------------------------------------------------------------------------------


def test_search_finds_a_chapter(hand):
    show(hand.page, "intro")
    hand.press(hand.page.locator("button.search-button:visible, button.search-button-field:visible").first)
    hand.page.keyboard.type("probe")
    hand.page.keyboard.press("Enter")
    hand.page.wait_for_url("**/search.html?q=probe*")
    expect(hand.page.locator("#search-results a[href*='02_probe']").first).to_be_visible()


def test_the_mode_is_switched(hand):
    show(hand.page, "intro")
    before = hand.page.evaluate("document.documentElement.dataset.mode")
    hand.press(hand.page.locator(".theme-switch-button:visible").first)
    assert hand.page.evaluate("document.documentElement.dataset.mode") != before


def test_the_contents_fold_and_unfold(hand):
    show(hand.page, "chapters/01_setting")
    link = hand.page.locator("#pst-primary-sidebar, #pst-primary-sidebar-modal").get_by_role(
        "link", name="Controls"
    )
    before = link.first.is_visible()
    hand.press(hand.page.locator(".primary-toggle:visible").first)
    expect(link.first).to_be_visible(visible=not before)


def test_menus_open(hand):
    show(hand.page, "chapters/01_setting")
    for button in hand.page.locator(".article-header-buttons .dropdown-toggle:visible").all():
        hand.press(button)
        expect(button).to_have_attribute("aria-expanded", "true")
        hand.page.keyboard.press("Escape")
        expect(button).to_have_attribute("aria-expanded", "false")


def test_hidden_code_unfolds_and_is_copied(hand):
    show(hand.page, "chapters/01_setting")
    folded = hand.page.locator("details.hide").first
    hand.press(folded.locator("summary"))
    expect(folded).to_have_attribute("open", "")
    button = hand.page.locator(".cell_input .copybtn:visible").first
    code = button.locator("xpath=..").locator("pre").inner_text()
    hand.press(button)
    assert hand.page.evaluate("navigator.clipboard.readText()").strip() == code.strip()
