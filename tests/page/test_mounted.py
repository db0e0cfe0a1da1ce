"""The page inside another application, below a path of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.page.fake_server import FakeServer, serving_below
from tests.page.rehearsal import Rehearsal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared_server() -> Iterator[FakeServer]:
    with serving_below("/some/llm", Rehearsal()) as server:
        yield server


def test_below_another_path(page: Page, server: FakeServer) -> None:
    """It reads the feed and asks the model there, and nothing beside."""
    assert server.url.endswith("/some/llm/")
    server.tell_steps(5)
    expect(page.locator("#steps-per-s")).to_have_text(re.compile(r"\d"))
    expect(page.locator("select[name=model]")).to_have_value("lift/tiny")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator(".card .output")).to_have_text(" 0 1 2 3 4")
