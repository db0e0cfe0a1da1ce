"""Prompts and their answers, side by side."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from chairlift.frontend.results import Delta
from chairlift.shared.messages import Finish
from chairlift.shared.sampling_params import SamplingParams
from tests.page.conftest import Visit
from tests.page.fake_server import FakeServer
from tests.page.script import Row, finish, step

pytestmark = pytest.mark.slow

A = "0000000a"
MARKUP = '<img src=x onerror="window.hit = 1"><script>window.hit = 1</script>'


def card(page: Page, number: int) -> Locator:
    return page.locator("article.card").nth(number - 1)


def ask(page: Page, *prompts: str) -> None:
    """A card for each."""
    for number, prompt in enumerate(prompts, start=1):
        if number > 1:
            page.get_by_role("button", name="Add a prompt").click()
        page.get_by_role("textbox", name=f"Prompt {number}", exact=True).fill(prompt)


def run_all(page: Page) -> None:
    page.get_by_role("button", name="Run all").click()


def saying(*texts: str) -> Any:
    """A script: these texts, a token each."""

    def script(prompt: list[int], params: SamplingParams) -> list[Delta]:
        deltas = [Delta([number], text) for number, text in enumerate(texts)]
        return [*deltas, Delta([], "", Finish("stop"))]

    return script


def test_side_by_side(page: Page, server: FakeServer) -> None:
    """Answers grow at the same time, and end with how it went."""
    server.fake.gate = asyncio.Semaphore(0)
    ask(page, "one", "two", "three")
    run_all(page)
    for number in (1, 2, 3):
        expect(card(page, number).locator(".output")).to_have_text(" 0")
    server.permit(15)
    for number in (1, 2, 3):
        expect(card(page, number).locator(".output")).to_have_text(" 0 1 2 3 4")
        expect(card(page, number).locator(".outcome")).to_contain_text("stop")
        expect(card(page, number).locator(".outcome")).to_contain_text("5 tokens")
        expect(card(page, number).locator(".outcome")).to_contain_text("first after")


def test_stop(page: Page, server: FakeServer) -> None:
    """One answer is stopped or all are, and the server hears of it."""
    server.fake.gate = asyncio.Semaphore(0)
    ask(page, "one", "two", "three")
    run_all(page)
    expect(card(page, 3).locator(".output")).to_have_text(" 0")
    card(page, 2).get_by_role("button", name="Stop").click()
    expect(card(page, 2).locator(".outcome")).to_contain_text("stopped")
    expect(card(page, 1)).to_have_attribute("data-state", "running")
    page.get_by_role("button", name="Stop all").click()
    expect(page.locator("article.card[data-state=stopped]")).to_have_count(3)
    for _ in range(100):
        if all(stream.is_cancelled for stream in server.fake.streams):
            break
        page.wait_for_timeout(20)
    assert [stream.is_cancelled for stream in server.fake.streams] == [True] * 3


def test_parameters(page: Page, server: FakeServer) -> None:
    """What is set goes along with every prompt, and what is empty is the server's to choose."""
    ask(page, "one")
    page.get_by_label("max_tokens").fill("3")
    page.get_by_label("temperature").fill("0.25")
    page.get_by_label("seed").fill("7")
    page.get_by_label("stop").fill("END\n###")
    page.get_by_label("System prompt").fill("be brief")
    with page.expect_request("**/v1/chat/completions") as asked:
        run_all(page)
    body: Any = asked.value.post_data_json
    assert body["messages"][0] == {"role": "system", "content": "be brief"}
    assert body["stop"] == ["END", "###"] and "top_p" not in body
    assert asked.value.headers["x-chairlift-receipt"] == "1"
    expect(card(page, 1).locator(".outcome")).to_contain_text("length")
    ((_, params),) = server.fake.asked
    assert (params.max_tokens, params.temperature, params.seed) == (3, 0.25, 7)


def test_a_completion(page: Page, server: FakeServer) -> None:
    """The other tab sends the text as it is, without a system prompt."""
    page.get_by_text("Completion", exact=True).click()
    expect(page.get_by_label("System prompt")).to_be_hidden()
    ask(page, "Once upon")
    run_all(page)
    expect(card(page, 1).locator(".output")).to_have_text(" 0 1 2 3 4")
    ((prompt, _),) = server.fake.asked
    assert prompt == server.fake.tokenizer.encode("Once upon")


def test_probabilities(page: Page, server: FakeServer) -> None:
    """Tokens are shaded by their probability, and tell what else could have stood there."""
    page.get_by_label("Show tokens with their probabilities").check()
    for kind in ("Chat", "Completion"):
        page.get_by_text(kind, exact=True).click()
        run_all(page)
        tokens = card(page, 1).locator(".token")
        expect(tokens).to_have_count(5)
        levels = [token.get_attribute("data-level") for token in tokens.all()]
        assert levels == ["1", "1", "1", "1", "2"]  # of e^(-1/8) to e^(-5/8)
        tokens.nth(4).hover()
        expect(page.locator("#tip b")).to_contain_text("54 %")
        expect(page.locator("#tip .alternative")).to_have_count(5)
        card(page, 1).locator(".output").focus()
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#tip b")).to_contain_text("61 %")
        page.keyboard.press("Escape")
        expect(page.locator("#tip")).to_be_hidden()


def test_errors(visit: Visit, page: Page) -> None:
    """A refusal is shown in the server's own words; the next try may go well."""
    ask(page, "one")
    page.get_by_label("max_tokens").fill("100000")
    run_all(page)
    expect(card(page, 1)).to_have_attribute("data-state", "failed")
    expect(card(page, 1).locator(".error")).to_contain_text("this model takes 1000 tokens")
    page.get_by_label("max_tokens").fill("10")
    run_all(page)
    expect(card(page, 1).locator(".output")).to_have_text(" 0 1 2 3 4")
    expect(card(page, 1).locator(".error")).to_have_count(0)
    visit.forgive("400")


def test_an_answer_that_fails(page: Page, server: FakeServer) -> None:
    """What came before the failure stays, with the reason below it."""

    def script(prompt: list[int], params: SamplingParams) -> list[Delta]:
        failed = Finish("error", code="worker_crashed", message="the worker died of it")
        return [Delta([1], "so far"), Delta([], "", failed)]

    server.fake.script = script
    run_all(page)
    expect(card(page, 1).locator(".error")).to_contain_text("the worker died of it")
    expect(card(page, 1).locator(".output")).to_have_text("so far")


def test_markup_stays_text(page: Page, server: FakeServer) -> None:
    """What a model or a user writes is shown as it is, never run, with probabilities or without."""
    server.fake.script = saying(MARKUP, " and more")
    ask(page, MARKUP)
    run_all(page)
    expect(card(page, 1).locator(".output")).to_have_text(f"{MARKUP} and more")
    assert page.locator(".output img, .output script").count() == 0
    server.feed.tell("worker", server.rehearsal.worker() | {"model": MARKUP})
    expect(page.locator("#model")).to_have_text(MARKUP)
    server.feed.tell_steps([step(1, [Row(A)], finished=[finish(A, MARKUP)])])
    page.locator("#timeline").focus()
    expect(page.locator("#steps-per-s")).to_have_text("50")  # it has been drawn
    page.keyboard.press("ArrowDown")
    expect(page.locator("#receipt")).to_contain_text(MARKUP)
    assert page.evaluate("window.hit") is None


def test_receipt(page: Page, server: FakeServer) -> None:
    """An answer's receipt is a button that leads to its row."""
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 1,
        "total_tokens": 4,
        "receipt": [finish(A)["receipt"]],
    }
    events = [
        {"choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": usage},
    ]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"

    def answer(route: Route) -> None:
        route.fulfill(body=body, content_type="text/event-stream")

    page.route("**/v1/chat/completions", answer)
    run_all(page)
    link = page.get_by_role("button", name=f"Receipt of request {A}")
    link.click()
    expect(page.locator("#receipt")).to_contain_text("finished")
    server.feed.tell_steps([step(1, [Row(A)], finished=[finish(A)])])
    expect(page.locator("#steps-per-s")).to_have_text("50")
    link.click()
    expect(page.locator("#chosen")).to_be_visible()


def test_more_than_there_are_connections(page: Page, server: FakeServer) -> None:
    """Five answers are streamed at a time, since the browser has no more connections; the others
    say what they wait for, can be stopped meanwhile, and come when there is room."""
    server.fake.gate = asyncio.Semaphore(0)
    ask(page, *(f"prompt {number}" for number in range(7)))
    run_all(page)
    for number in range(1, 6):
        expect(card(page, number).locator(".output")).to_have_text(" 0")
    expect(card(page, 6).locator(".outcome")).to_contain_text("the browser's connections")
    card(page, 6).get_by_role("button", name="Stop").click()
    expect(card(page, 6).locator(".outcome")).to_have_text("stopped")
    server.permit(100)
    expect(card(page, 7).locator(".output")).to_have_text(" 0 1 2 3 4")
    assert len(server.fake.asked) == 6


def test_at_most_eight(page: Page) -> None:
    """There is room for eight prompts, and one is always there."""
    ask(page, *(f"prompt {number}" for number in range(8)))
    expect(page.get_by_role("button", name="Add a prompt")).to_be_disabled()
    for _ in range(7):
        page.get_by_role("button", name="Remove this prompt").first.click()
    expect(page.get_by_role("button", name="Remove this prompt")).to_have_count(0)
    expect(card(page, 1).locator("textarea")).to_have_value("prompt 7")
