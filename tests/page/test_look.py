"""Light and dark, wide and narrow, by keyboard alone, and nothing from elsewhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Visit
from tests.page.fake_server import FakeServer
from tests.page.script import Row, step

pytestmark = pytest.mark.slow

UNNAMED = """() => [...document.querySelectorAll("button, input, select, textarea, a, [tabindex]")]
  .filter((element) => element.checkVisibility() && !element.closest("[aria-hidden=true]"))
  .filter((element) => !(element.textContent.trim() || element.getAttribute("aria-label")
    || element.labels?.length || element.getAttribute("aria-labelledby")))
  .map((element) => element.outerHTML)"""
CONTRAST = """(names) => {
  const channel = (value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => channel(part / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const probe = document.body.appendChild(document.createElement("span"));
  const of = (name) => (probe.style.color = `var(--${name})`, light(getComputedStyle(probe).color));
  const [one, two] = names.map(of).sort((a, b) => b - a);
  return (one + 0.05) / (two + 0.05);
}"""


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_dark_and_light(page: Page) -> None:
    """The system's choice holds until one is made on the page, which is kept."""
    light = background(page)
    page.emulate_media(color_scheme="dark")
    dark = background(page)
    assert light != dark
    page.get_by_role("button", name="Colours: auto").click()
    assert background(page) == light
    page.get_by_role("button", name="Colours: light").click()
    page.emulate_media(color_scheme="light")
    page.reload()
    assert background(page) == dark


def test_contrast(page: Page) -> None:
    """Text on its ground has the contrast that WCAG asks for, in both."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        for ink in ("ink", "muted", "bad"):
            for ground in ("panel", "paper", "band"):
                assert page.evaluate(CONTRAST, [ink, ground]) >= 4.5, (scheme, ink, ground)


def test_a_phone(page: Page, server: FakeServer) -> None:
    """At 360 pixels nothing hangs over the edge, while the batch runs and with all prompts open."""
    page.set_viewport_size({"width": 360, "height": 740})
    server.tell_steps(60)
    page.get_by_role("button", name="8 samples", exact=True).click()
    expect(page.locator("article.card[data-state=done]")).to_have_count(8)
    page.locator("#table summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator("#gutter").click(position={"x": 20, "y": 30})
    expect(page.locator("#receipt")).not_to_have_attribute("data-request", "")


def test_everything_has_a_name(page: Page, server: FakeServer) -> None:
    """Whatever can be reached says what it is; headings come in order."""
    server.tell_steps(60)
    page.locator("#table summary").click()
    page.locator("#timeline").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#table-rows tr").first).to_be_visible()
    assert page.evaluate(UNNAMED) == []
    levels = [
        int(heading.evaluate("(h) => h.tagName[1]")) for heading in page.locator("h1, h2, h3").all()
    ]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert page.get_attribute("html", "lang") == "en"


def test_the_keyboard_reaches_all(page: Page) -> None:
    """Tab goes from the skip link over the timeline to the prompts, and what has focus shows it."""
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate("document.activeElement.id || document.activeElement.textContent")
        )
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or page.evaluate("document.activeElement.name") == "kind", seen[-1]
        if seen[-1] == "Run":
            break
    assert seen[0] == "Skip to the playground"
    for expected in ("theme", "pause", "timeline", "scroll", "samples", "run-all", "Run"):
        assert expected in seen


def test_what_is_said(page: Page, server: FakeServer) -> None:
    """Who does not see the page hears what was chosen, of pauses, and how an answer ended."""
    server.feed.tell_steps([step(1, [Row("0000000a")])])
    expect(page.locator("#num-running")).to_have_text("1")
    said = page.locator("#said[role=status]")
    page.locator("#timeline").focus()
    page.keyboard.press("ArrowDown")
    expect(said).to_have_text("request 0000000a, decode, 40/41")
    page.keyboard.press("Space")
    expect(said).to_contain_text("paused at step 1")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(said).to_contain_text("Prompt 1: stop, 5 tokens")


def test_motion(page: Page) -> None:
    """The picture glides to the newest step, but for those who want no motion."""
    program = """async () => {
      const { Viewport } = await import("./page/viewport.js");
      const view = new Viewport({ first: 0, end: 50, at: () => undefined });
      const places = [];
      do places.push(view.right); while (view.follow(16) && places.length < 1000);
      return [...places, view.right];
    }"""
    assert page.evaluate(program) == [0, 50]
    page.emulate_media(reduced_motion="no-preference")
    places = page.evaluate(program)
    assert len(places) > 10 and places == sorted(places) and places[-1] == 50


def test_the_policy_holds(visit: Visit, page: Page) -> None:
    """A script that gets into the page is not run, and nothing is fetched from elsewhere."""
    program = """async () => {
      const script = document.createElement("script");
      script.textContent = "window.hit = 1";
      document.body.append(script);
      const image = new Image();
      image.src = "https://example.com/x.png";
      const refused = await fetch("https://example.com/").then(() => false, () => true);
      return [window.hit ?? null, refused];
    }"""
    assert page.evaluate(program) == [None, True]
    page.wait_for_timeout(50)
    visit.forgive("Content Security Policy")
    visit.addresses = [address for address in visit.addresses if "example.com" not in address]
