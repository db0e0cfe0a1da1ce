"""The page of a server with API keys."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect
from pydantic import SecretStr

from chairlift.shared.settings import ServeSettings
from tests.page.conftest import Visit

pytestmark = pytest.mark.slow

KEY = "open sesame"


@pytest.fixture(scope="module")
def settings() -> ServeSettings:
    return ServeSettings(address="ipc:///nowhere", api_keys=(SecretStr(KEY),))


def give(page: Page, key: str) -> None:
    page.get_by_role("textbox", name="API key").fill(key)
    page.get_by_role("button", name="Go on").click()


def test_a_key_is_asked_for(visit: Visit) -> None:
    """The page is open and its data are not: a key is asked for, once, until it is the right one,
    and it stays in this tab."""
    page = visit.page
    expect(page.locator("#key-reason")).to_have_text("send Authorization: Bearer KEY")
    give(page, "wrong")
    expect(page.locator("#key-reason")).to_have_text("this API key is not known here")
    give(page, KEY)
    page.wait_for_selector("#condition[data-kind=good]")
    expect(page.locator("select[name=model]")).to_have_value("lift/tiny")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator(".card .output")).to_have_text(" 0 1 2 3 4")
    assert page.evaluate("sessionStorage.getItem('chairlift-key')") == KEY
    assert KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location")
    visit.forgive("401")


def test_without_a_key(visit: Visit) -> None:
    """Who closes the question is told what is missing."""
    page = visit.page
    expect(page.locator("#key-reason")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#notice")).to_contain_text("an API key is needed")
    visit.forgive("401")
