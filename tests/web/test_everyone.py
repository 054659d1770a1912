"""The page for everyone: keyboard alone, names for screen readers, contrast, light and dark, a phone, less motion."""

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from service.models.better import pull_command
from service.settings import Settings
from tests.support.page import card, choose, finished, transcript
from tests.support.serving import engine_for, wav
from tests.web.conftest import OpenPage, Site, site_for

PHONE = {"viewport": {"width": 375, "height": 667}, "has_touch": True, "is_mobile": True}

# Every text that is shown with its contrast to what is behind it, by WCAG 2's formula. Colours are read from pixels,
# because style sheets have several ways to write them.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([red, green, blue]) => {
    const linear = (byte) => byte <= 10 ? byte / 255 / 12.92 : ((byte / 255 + 0.055) / 1.055) ** 2.4;
    return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return rgba("Canvas");
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    const text = texts.currentNode.textContent.trim();
    const isShown = element.checkVisibility({ visibilityProperty: true }) && !element.closest("svg, .unseen, option");
    if (!text || !isShown) continue;
    const pair = [luminance(rgba(getComputedStyle(element).color)), luminance(ground(element))].sort((a, b) => b - a);
    found.push([text, (pair[0] + 0.05) / (pair[1] + 0.05)]);
  }
  return found;
}"""

# Every control without a name of its own, every id that stands twice, every reference to an id that is not there.
NAMELESS = """() => {
  const faults = [];
  const controls = "button, a, input:not([hidden]), select, textarea, summary, progress, dialog";
  for (const control of document.querySelectorAll(controls)) {
    const named = control.getAttribute("aria-label") || control.labels?.length || control.textContent.trim()
      || document.getElementById(control.getAttribute("aria-labelledby"));
    if (!named) faults.push(control.outerHTML);
  }
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  faults.push(...ids.filter((id, at) => ids.indexOf(id) !== at));
  for (const name of ["aria-labelledby", "aria-describedby", "for"]) {
    for (const element of document.querySelectorAll(`[${name}]`)) {
      faults.push(...element.getAttribute(name).split(" ").filter((id) => !ids.includes(id)));
    }
  }
  return faults;
}"""


def assert_legible(page: Page) -> None:
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 5
    assert not [(text, round(ratio, 2)) for text, ratio in contrasts if ratio < 4.5]


def assert_fits(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_legible_and_named(open_page: OpenPage, site: Site, scheme: Any) -> None:
    page = open_page(site, may_fail=True, color_scheme=scheme)
    page.get_by_text("Options").click()
    assert_legible(page)
    choose(page, ("good.wav", wav(3.0)), ("bad.wav", b"no sound"))
    finished(page, "good.wav")
    transcript(card(page, "good.wav")).get_by_role("button").click()
    expect(card(page, "bad.wav").get_by_role("alert")).to_contain_text("not transcribed")
    assert_legible(page)
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.get_by_role("main").count() == page.get_by_role("banner").count() == 1


def test_light_and_dark_follow_the_system_until_one_is_chosen(open_page: OpenPage, site: Site) -> None:
    page = open_page(site, color_scheme="dark")

    def ground() -> int:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))

    toggle = page.get_by_role("button", name="Dark theme")
    assert ground() < 200 and toggle.get_attribute("aria-pressed") == "true"
    page.emulate_media(color_scheme="light")
    assert ground() > 600
    expect(toggle).to_have_attribute("aria-pressed", "false")
    toggle.click()
    assert ground() < 200
    page.reload()
    assert ground() < 200, "the choice outlasts the visit"
    expect(toggle).to_have_attribute("aria-pressed", "true")


def test_a_phone_needs_no_sideways_scrolling(open_page: OpenPage, site: Site) -> None:
    page = open_page(site, may_fail=True, **PHONE)
    assert_fits(page)
    page.get_by_text("Options").click()
    page.get_by_label("Time every word").check()
    page.get_by_label("Time every word").uncheck()
    assert_fits(page)
    name = "a-very-long-file-name-without-any-spaces-in-it-at-all-as-phones-make-them.wav"
    choose(page, (name, wav(3.0)), ("bad.wav", b"no sound"))
    finished(page, name)
    expect(card(page, "bad.wav").get_by_role("alert")).to_contain_text("not transcribed")
    assert_fits(page)
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        assert box is None or (box["height"] >= 28 and box["x"] >= 0 and box["x"] + box["width"] <= 375)
    page.get_by_role("button", name="Record", exact=True).click()
    expect(page.get_by_role("group", name="Recording")).to_contain_text("0:00")
    assert_fits(page)


def test_the_keyboard_alone_does_it_all(open_page: OpenPage, site: Site) -> None:
    page = open_page(site)
    press = page.keyboard.press
    for name in ("Wisp", "Dark theme", "Choose files"):
        press("Tab")
        expect(page.locator(":focus")).to_have_accessible_name(name)
    with page.expect_file_chooser() as chooser:
        press("Enter")
    chooser.value.set_files({"name": "talk.wav", "mimeType": "audio/wav", "buffer": wav(9.0)})
    one = finished(page, "talk.wav")
    reached = []
    while "Play from 0:00" not in reached:
        press("Tab")
        reached.append(page.locator(":focus").evaluate("(e) => e.ariaLabel || e.textContent.trim()"))
    assert reached == ["Record", "Options", "talk.wav", "Remove talk.wav", "Play", "Position", "Play from 0:00"]
    outline = page.locator(":focus").evaluate("(e) => getComputedStyle(e).outlineStyle")
    assert outline == "solid", "where the focus is can be seen"
    press("ArrowDown")
    press("ArrowDown")
    press("Enter")
    expect(transcript(one).nth(2)).to_have_attribute("aria-current", "true")
    press("Space")
    expect(one.get_by_role("button", name="Play", exact=True)).to_be_visible()
    press("Tab")
    expect(page.locator(":focus")).to_have_accessible_name("Copy text")
    press("Enter")
    expect(one.get_by_role("button", name="Copied")).to_be_focused()


def test_less_motion_is_respected(open_page: OpenPage, site: Site) -> None:
    page = open_page(site, reduced_motion="reduce")
    moving = """() => [...document.querySelectorAll("*")].filter((e) => getComputedStyle(e).animationName !== "none"
      || getComputedStyle(e).transitionDuration.split(", ").some((s) => s !== "0s")).length"""
    page.get_by_role("button", name="Record", exact=True).click()
    expect(page.get_by_role("button", name="Discard")).to_be_visible()
    assert page.evaluate(moving) == 0


def test_the_embedded_model_is_amber_and_says_how_to_get_a_better_one(open_page: OpenPage) -> None:
    with engine_for(Settings(model="embedded", target="cpu")) as engine, site_for(engine) as site:
        page = open_page(site)
        expect(page.locator("#model")).to_have_attribute("data-state", "poor")
        expect(page.locator("#embedded-notice")).to_contain_text(pull_command(engine.settings))


def test_a_better_model_is_not_amber(open_page: OpenPage, site: Site) -> None:
    page = open_page(site)
    expect(page.locator("#model")).to_have_attribute("data-state", "ready")
    expect(page.locator("#embedded-notice")).to_be_hidden()
