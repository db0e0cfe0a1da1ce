"""A real Chromium on the real app, with a feed that tests write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog
from playwright.sync_api import Browser, Page, sync_playwright

from chairlift.shared.settings import ServeSettings
from tests.page.fake_server import FakeServer, serving
from tests.page.rehearsal import Rehearsal

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 10_000


@dataclass
class Visit:
    """One page, and what went wrong in it."""

    page: Page
    server: FakeServer
    problems: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    def forgive(self, part: str) -> None:
        """What a test provokes."""
        self.problems = [problem for problem in self.problems if part not in problem]


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For one module: while it is open, no other event loop runs in this thread."""
    if not CHROMIUM.exists():
        pytest.fail(f"{CHROMIUM} is missing: install Debian's package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def settings() -> ServeSettings:
    return ServeSettings(address="ipc:///nowhere")  # the scripted client connects to nothing


@pytest.fixture(scope="module")
def shared_server(settings: ServeSettings) -> Iterator[FakeServer]:
    with serving(settings, Rehearsal()) as server:
        yield server


@pytest.fixture
def server(shared_server: FakeServer) -> FakeServer:
    """As if it had just begun."""
    shared_server.begin_anew()
    return shared_server


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Page]:
    """One for a module: a new one would take a second for each test."""
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    yield page
    page.close()


@pytest.fixture
def visit(tab: Page, server: FakeServer) -> Iterator[Visit]:
    """The page, just opened, which shows news at once; at the end nothing may have gone wrong."""
    visit = Visit(tab, server)
    listeners: dict[str, Callable[[Any], None]] = {
        "console": lambda said: said.type == "error" and visit.problems.append(said.text),
        "pageerror": lambda error: visit.problems.append(str(error)),
        "request": lambda asked: visit.addresses.append(asked.url),
    }
    for event, listener in listeners.items():
        tab.on(event, listener)  # type: ignore[call-overload]
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.emulate_media(color_scheme="light", reduced_motion="reduce")
    tab.goto(server.url)
    yield visit
    tab.evaluate("localStorage.clear(), sessionStorage.clear()")
    tab.unroute_all()
    tab.goto("about:blank")
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    assert not visit.problems
    assert all(address.startswith((server.url, "data:", "about:")) for address in visit.addresses)


@pytest.fixture
def page(visit: Visit) -> Page:
    """Connected to the feed."""
    visit.page.wait_for_selector("#condition[data-kind=good]")
    return visit.page
