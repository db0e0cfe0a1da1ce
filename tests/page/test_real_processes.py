"""The page over a real worker and a real server."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from tests.integration.conftest import short_address
from tests.integration.processes import chairlift, serving
from tests.page.conftest import PATIENCE_MS

LONG_MS = 60_000


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of the demo model, which four at a time may use."""
    with (
        short_address() as address,
        chairlift("worker", address=address, max_num_seqs=4, dtype="float32"),
        serving(address) as served,
    ):
        yield served


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    page, problems = browser.new_page(), list[str]()

    def note(said: ConsoleMessage) -> None:
        if said.type == "error":
            problems.append(said.text)

    page.set_default_timeout(PATIENCE_MS)
    page.on("console", note)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(url)
    yield page
    page.close()
    assert not problems


def test_samples_move_the_batch_and_leave_their_receipts(page: Page) -> None:
    """One click: rows and a queue appear, answers come side by side, and each has a receipt that
    says what the steps have shown."""
    page.wait_for_selector("#condition[data-kind=good]")
    expect(page.locator("#model")).to_have_text("demo")
    page.locator("#idle-samples").click()
    expect(page.locator("#num-running")).not_to_have_text("0", timeout=PATIENCE_MS)
    cards = page.locator("article.card")
    expect(cards).to_have_count(8)
    links = page.get_by_role("button", name=re.compile("Receipt of request"))
    expect(links).to_have_count(8, timeout=LONG_MS)
    for number in range(8):
        expect(cards.nth(number).locator(".output")).not_to_be_empty()
        expect(cards.nth(number).locator(".outcome")).to_contain_text("tokens/s")
    expect(page.locator("#num-running")).to_have_text("0", timeout=PATIENCE_MS)
    expect(page.locator("#itl-p50")).to_contain_text("ms")
    request = links.first.text_content() or ""
    assert re.fullmatch("[0-9a-f]{8}", request)
    links.first.click()
    receipt = page.locator("#receipt")
    expect(receipt).to_contain_text(request)
    for term in ("queued", "first token after", "chunks", "mates", "preempted"):
        expect(receipt).to_contain_text(term)
