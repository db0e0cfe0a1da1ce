"""Pictures of the page for docs/, of a server that runs: python -m tests.page.screenshots URL"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from playwright.sync_api import Browser, Page, sync_playwright

from tests.page.conftest import ARGUMENTS, CHROMIUM

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
NUM_CALLERS = 22
WARM_UP_MS = 9_000
THINGS = ("fox", "boat", "small robot", "cat", "kite", "drum", "bear", "lamp")
WORDS = "river stone cloud lamp boat tree bird moon "


@contextmanager
def load(url: str) -> Iterator[None]:
    """Callers who ask again as soon as they are answered, until the picture is taken."""
    is_over = threading.Event()
    threads = [
        threading.Thread(target=_call, args=(url, seed, is_over)) for seed in range(NUM_CALLERS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def _call(url: str, seed: int, is_over: threading.Event) -> None:
    dice = random.Random(seed)
    with httpx2.Client(timeout=60) as http:
        while not is_over.is_set():
            thing = dice.choice(THINGS)
            prompt = f"Tell me a long story about a {thing} who lived near the river."
            if dice.random() < 0.3:
                prompt = f"Repeat these words: {WORDS * dice.randrange(4, 20)}"
            body = {"prompt": prompt, "max_tokens": dice.randrange(20, 120), "ignore_eos": True}
            http.post(f"{url}/v1/completions", json=body)
            is_over.wait(dice.uniform(0, 0.8))


def open_page(browser: Browser, url: str, scheme: str, size: tuple[int, int]) -> Page:
    page = browser.new_page(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,  # type: ignore[arg-type]
        device_scale_factor=2 if size[0] < 500 else 1,
    )
    page.goto(url)
    page.wait_for_selector("#condition[data-kind=good]")
    page.wait_for_timeout(WARM_UP_MS)
    return page


def choose_a_row(page: Page, number: int) -> None:
    page.locator("#timeline").focus()
    for _ in range(number):
        page.keyboard.press("ArrowDown")
    page.locator("#timeline").blur()


def main(url: str) -> int:
    with sync_playwright() as playwright, load(url):
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        page = open_page(browser, url, "light", (1440, 960))
        page.keyboard.press("Space")
        choose_a_row(page, 5)
        page.wait_for_timeout(500)
        page.screenshot(path=DOCS / "page-light.png")

        page = open_page(browser, url, "dark", (1440, 1440))
        page.get_by_label("Show tokens with their probabilities").check()
        page.get_by_role("button", name="8 samples", exact=True).click()
        page.wait_for_timeout(WARM_UP_MS)
        page.screenshot(path=DOCS / "page-dark.png")

        page = open_page(browser, url, "light", (390, 844))
        page.screenshot(path=DOCS / "page-phone.png")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"))
