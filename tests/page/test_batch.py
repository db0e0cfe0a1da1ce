"""The running batch, as it is drawn, scrolled, chosen and read."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Visit
from tests.page.fake_server import FakeServer
from tests.page.rehearsal import BEGAN_US, Json
from tests.page.script import Row, chunk, finish, step

pytestmark = pytest.mark.slow

A, B, C, D = "0000000a", "0000000b", "0000000c", "0000000d"
AXIS, ROW, COLUMN = 20, 24, 8  # CSS pixels, of twelve rows and fewer
MAX_COLUMNS, MAX_RECORDS = 6_000, 256


def point_at(page: Page, lane: int, columns_back: int = 0) -> str:
    """What the tip says of a place, counted from the newest column."""
    box = page.locator("#rows").bounding_box()
    assert box is not None
    x = box["x"] + box["width"] - COLUMN * (columns_back + 0.5)
    page.mouse.move(x, box["y"] + AXIS + ROW * (lane + 0.5))
    return page.locator("#tip").inner_text()


def click_at(page: Page, lane: int, columns_back: int = 0) -> None:
    point_at(page, lane, columns_back)
    page.mouse.down()
    page.mouse.up()


def colours_at(page: Page, lane: int, columns_back: int) -> set[str]:
    """Of one cell's pixels, as they were drawn."""
    program = """([x, y, width, height]) => {
      const stage = document.getElementById("rows").getBoundingClientRect();
      const found = new Set();
      for (const canvas of document.querySelectorAll("#rows canvas")) {
        const box = canvas.getBoundingClientRect();
        const left = Math.round(stage.right - x - box.left);
        if (left < 0 || left >= box.width) continue;
        const { data } = canvas.getContext("2d").getImageData(left, y, width, height);
        for (let i = 0; i < data.length; i += 4) {
          if (data[i + 3] === 255) found.add(`rgb(${data[i]}, ${data[i + 1]}, ${data[i + 2]})`);
        }
      }
      return [...found];
    }"""
    place = [COLUMN * (columns_back + 1), AXIS + ROW * lane, COLUMN, ROW]
    return set(page.evaluate(program, place))


def colour(page: Page, name: str) -> str:
    program = """async (name) => (await import("./page/palette.js")).readPalette()[name]"""
    return str(page.evaluate(program, name))


def until_newest(page: Page, number: int) -> None:
    """The page has drawn a step, at its right edge."""
    page.wait_for_function(
        """(words) => {
          const stage = document.getElementById("rows").getBoundingClientRect();
          const at = { clientX: stage.right - 4, clientY: stage.bottom - 2, pointerType: "mouse" };
          document.getElementById("rows").dispatchEvent(new PointerEvent("pointermove", at));
          return document.getElementById("tip").textContent.includes(words);
        }""",
        arg=f"step {number},",
    )


def play(page: Page, server: FakeServer, *steps: Json) -> None:
    server.feed.tell_steps(steps)
    until_newest(page, steps[-1]["number"])


def open_table(page: Page) -> None:
    page.locator("#table summary").click()


def table(page: Page) -> list[list[str]]:
    rows = page.locator("#table-rows tr").all()
    return [row.locator("th, td").all_inner_texts() for row in rows]


def test_rows_and_marks(page: Page, server: FakeServer) -> None:
    """Chunks, decodes, accepted drafts, preemptions, absences and ends are each drawn their way and
    told under the pointer."""
    play(
        page,
        server,
        step(1, [chunk(A, 64, 64, 100), Row(B), Row(C)]),
        step(2, [chunk(A, 36, 100, 100), Row(B, num_drafts=3, num_new_tokens=3)], preempted=[C]),
        step(3, [Row(A), Row(B)], waiting=[C], finished=[finish(B)]),
        step(4, [Row(A), Row(D)], waiting=[C], finished=[finish(A, "error")]),
    )
    assert "chunk of 64, 64/100" in point_at(page, 0, 3)
    assert "decode" in point_at(page, 0, 1)
    assert "3 new of 3 guessed" in point_at(page, 1, 2)
    assert "not in this step" in point_at(page, 2, 0)
    named = {
        name: colour(page, name) for name in ("chunk", "decode", "accepted", "ink", "bad", "wait")
    }
    assert {named["chunk"], colour(page, "chunk-line")} <= colours_at(page, 0, 3)
    assert named["decode"] in colours_at(page, 1, 3)
    assert named["accepted"] in colours_at(page, 1, 2)
    assert named["bad"] in colours_at(page, 2, 2)
    assert named["ink"] in colours_at(page, 1, 1)
    assert named["bad"] in colours_at(page, 0, 0)
    assert named["wait"] in colours_at(page, 2, 0)
    assert named["chunk"] not in colours_at(page, 1, 3)


def test_lanes(page: Page, server: FakeServer) -> None:
    """A request keeps its row while it lives, and its row is the next one's afterwards."""
    play(
        page,
        server,
        step(1, [Row(A), Row(B), Row(C)]),
        step(2, [Row(B), Row(C)], finished=[finish(A)]),
    )
    assert point_at(page, 1).startswith(B) and point_at(page, 2).startswith(C)
    play(page, server, step(3, [Row(C), Row(B), Row(D)]))
    assert [point_at(page, lane)[:8] for lane in range(3)] == [D, B, C]


def test_the_table(page: Page, server: FakeServer) -> None:
    """What the picture shows is also a table, with the progress of each request."""
    open_table(page)
    play(page, server, step(1, [chunk(A, 64, 64, 100), Row(B, num_blocks=5)]))
    expect(page.locator("#table-rows tr")).to_have_count(2)
    assert table(page) == [
        [A, "prefill", "64", "100", "0", "1", "0", "2"],
        [B, "decode", "40", "41", "1", "0", "0", "5"],
    ]
    play(page, server, step(2, [Row(B)], finished=[finish(A)]))
    expect(page.locator("#table-rows tr")).to_have_count(1)


def test_figures(page: Page, server: FakeServer) -> None:
    """The figures are those of the steps in sight: rates, latencies, times, blocks."""
    play(page, server, *(step(number, [Row(A), Row(B)]) for number in range(1, 12)))
    expect(page.locator("#num-running")).to_have_text("2")
    expect(page.locator("#steps-per-s")).to_have_text("50")
    expect(page.locator("#tokens-per-s")).to_have_text("100")
    for name in ("p50", "p90", "p99"):
        expect(page.locator(f"#itl-{name}")).to_have_text("20 ms")
    expect(page.locator("#step-time")).to_have_text("20 ms")
    expect(page.locator("#phase-list li").first).to_have_text("forward15 ms")
    expect(page.locator("#num-blocks")).to_have_text("100 of 420")
    expect(page.locator("#block-list li").first).to_have_text("shared30")


def test_percentiles(page: Page, server: FakeServer) -> None:
    """A pause between two tokens of a request shows in the high percentiles alone."""
    late_us = BEGAN_US + 11 * 20_000 + 60_000
    steps = [step(number, [Row(A)]) for number in range(1, 11)]
    play(page, server, *steps, step(11, [Row(A)], began_us=late_us))
    expect(page.locator("#itl-p50")).to_have_text("20 ms")
    expect(page.locator("#itl-p99")).to_have_text("80 ms")


def test_the_queue(page: Page, server: FakeServer) -> None:
    """Who waits is listed in the queue's order, and counted where they are too many."""
    names = [f"{number:08x}" for number in range(20)]
    play(page, server, step(1, [Row(A)], waiting=names))
    expect(page.locator("#num-waiting")).to_have_text("20")
    expect(page.locator("#queue li")).to_have_text([*names[:12], "and 8 more"])
    play(page, server, step(2, [Row(A)]))
    expect(page.locator("#queue-length")).to_have_text("nobody")


def test_pause(page: Page, server: FakeServer) -> None:
    """What is paused stays in sight while steps go on, and End goes back to them."""
    play(page, server, *(step(number, [Row(A)]) for number in range(1, 11)))
    page.keyboard.press("Space")
    expect(page.locator("#pause")).to_have_text("Resume")
    server.feed.tell_steps([step(number, [Row(A)]) for number in range(11, 21)])
    expect(page.locator("#position")).to_have_text("step 10, 200 ms back")
    assert "step 10," in point_at(page, 0)
    page.locator("#timeline").focus()
    page.keyboard.press("End")
    expect(page.locator("#position")).to_have_text("live")
    until_newest(page, 20)


def test_scrolling(page: Page, server: FakeServer) -> None:
    """Keys, the wheel, dragging and the slider each go back in time."""
    play(page, server, *(step(number, [Row(A)]) for number in range(1, 501)))
    page.locator("#timeline").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#position")).to_contain_text("step 499,")
    page.keyboard.press("Shift+ArrowLeft")
    expect(page.locator("#position")).to_contain_text("step 489,")
    point_at(page, 0)
    page.mouse.wheel(-10 * COLUMN, 0)
    expect(page.locator("#position")).to_contain_text("step 479,")
    box = page.locator("#rows").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 100 + 20 * COLUMN, box["y"] + 100, steps=4)
    page.mouse.up()
    expect(page.locator("#position")).to_contain_text("step 459,")
    page.locator("#scroll").fill("300")
    expect(page.locator("#position")).to_contain_text("step 300,")


def test_memory_is_bounded(page: Page, server: FakeServer) -> None:
    """The oldest steps and the requests in them are forgotten."""
    count = MAX_COLUMNS + 600
    steps = [
        step(number, [Row(f"{number:08x}")], finished=[finish(f"{number:08x}")])
        for number in range(1, count)
    ]
    for first in range(0, len(steps), MAX_RECORDS):  # as many as a worker tells at once
        play(page, server, *steps[first : first + MAX_RECORDS])
    expect(page.locator("#scroll")).to_have_attribute("max", str(count - 1))
    page.locator("#timeline").focus()
    page.keyboard.press("Home")
    oldest = int(page.locator("#scroll").get_attribute("min") or 0)
    assert count - MAX_COLUMNS <= oldest < count - MAX_COLUMNS + 200
    program = """async () => {
      const { History } = await import("./page/history.js");
      const history = new History();
      const rows = (hash) => ({
        request: [hash], num_tokens: [1], num_prompt_tokens: [0], num_drafts: [0],
        num_new_tokens: [1], num_computed_tokens: [1], num_total_tokens: [1], num_blocks: [1],
      });
      for (let number = 1; number <= 7000; number++) {
        const hash = String(number);
        const step = { number, began_us: number, phases_us: {}, num_waiting: 0, waiting: [],
          num_free_blocks: 0, num_shared_blocks: 0, preempted: [], rows: rows(hash) };
        history.take([step], [{ request: hash, reason: "stop", receipt: null }]);
      }
      return history.requests.size;
    }"""
    assert page.evaluate(program) < MAX_COLUMNS + 300


def test_receipt_by_click(page: Page, server: FakeServer) -> None:
    """A click on a row shows what its request got so far, and the worker's receipt at its end."""
    play(
        page,
        server,
        step(1, [chunk(A, 64, 64, 100), Row(B)]),
        step(2, [chunk(A, 36, 100, 100), Row(B)]),
    )
    click_at(page, 0)
    receipt = page.locator("#receipt")
    expect(receipt).to_contain_text(A)
    expect(receipt).to_contain_text("prefill, so far")
    expect(receipt).to_contain_text("of them chunks2")
    expect(receipt).to_contain_text("prompt100 tokens")
    play(page, server, step(3, [Row(A)], finished=[finish(A)]))
    expect(receipt).to_contain_text("stop")
    for words in (
        "queued13 ms",
        "first token after80 ms",
        "of it cached64 tokens",
        "preempted2 times",
    ):
        expect(receipt).to_contain_text(words)
    expect(receipt).to_contain_text("6.4 mean, 9 most")
    page.get_by_role("button", name="Close the receipt").click()
    expect(receipt).to_contain_text("Choose a request")


def test_receipt_by_key(page: Page, server: FakeServer) -> None:
    """Up and down go through the rows, and Escape lets go."""
    play(page, server, step(1, [Row(A), Row(B), Row(C)]))
    page.locator("#timeline").focus()
    for expected in (A, B, C):
        page.keyboard.press("ArrowDown")
        expect(page.locator("#receipt")).to_have_attribute("data-request", expected)
    page.keyboard.press("ArrowUp")
    expect(page.locator("#receipt")).to_have_attribute("data-request", B)
    page.keyboard.press("Escape")
    expect(page.locator("#receipt")).to_have_attribute("data-request", "")


def test_what_http_says(page: Page, server: FakeServer) -> None:
    """A receipt names the HTTP request behind it, once that has ended."""
    play(page, server, step(1, [Row(A)], finished=[finish(A)]))
    ended = {"requests": [A], "endpoint": "chat", "request_id": "req-7", "outcome": "stop"}
    server.feed.tell("requests", [ended])
    click_at(page, 0)
    expect(page.locator("#receipt")).to_contain_text("chat · stop · req-7")


def test_late_ends(page: Page, server: FakeServer) -> None:
    """An end that is told after further steps stands where it was, and frees the row."""
    play(page, server, step(1, [Row(A), Row(B)]), step(2, [Row(B)]), step(3, [Row(B)]))
    assert "not in this step" in point_at(page, 0, 0)
    server.feed.tell("ended", [finish(A)])
    play(page, server, step(4, [Row(B), Row(C)]))
    assert colour(page, "ink") in colours_at(page, 0, 3)
    assert A not in point_at(page, 0, 1)
    assert point_at(page, 0, 0).startswith(C)


def test_gaps(page: Page, server: FakeServer) -> None:
    """Steps that were not told are a gap, and what ended in it frees its row later."""
    open_table(page)
    play(page, server, step(1, [Row(A), Row(B)]), step(9, [Row(B)]))
    assert point_at(page, 3, 1) == "7 steps not told"
    play(page, server, *(step(number, [Row(B)]) for number in range(10, 90)))
    expect(page.locator("#table-rows tr")).to_have_count(1)
    expect(page.locator("#table-rows")).to_contain_text(B)


def test_another_worker(page: Page, server: FakeServer) -> None:
    """A worker that began anew counts from one, and nobody lives on in the picture."""
    play(page, server, step(500, [Row(A)]))
    server.feed.tell("worker", server.rehearsal.worker() | {"epoch": 2, "model": "other/model"})
    expect(page.locator("#model")).to_have_text("other/model")
    play(page, server, step(1, [Row(B)]))
    assert point_at(page, 0).startswith(B)
    assert point_at(page, 3, 1) == "another worker"


def test_reconnects(visit: Visit, page: Page, server: FakeServer) -> None:
    """A feed that broke off is said to be so, asked for again, and goes on."""
    play(page, server, step(1, [Row(A)]))
    server.feed.is_down = True
    server.feed.drop()
    expect(page.locator("#notice")).to_contain_text("no feed today")
    expect(page.locator("#condition")).to_have_text("not connected")
    server.feed.is_down = False
    page.wait_for_selector("#condition[data-kind=good]")
    expect(page.locator("#notice")).to_be_hidden()
    play(page, server, step(4, [Row(A)]))
    assert point_at(page, 0, 1) == "2 steps not told"
    visit.forgive("503")


def test_the_worker_is_away(page: Page, server: FakeServer) -> None:
    """The worker's condition stands at the top, in words."""
    server.feed.tell("stats", server.rehearsal.stats() | {"condition": "away"})
    expect(page.locator("#condition")).to_have_text("the worker is away")


def test_the_idle_page(page: Page, server: FakeServer) -> None:
    """Before anything ran it says what to try, and one button sends eight prompts."""
    expect(page.locator("#idle")).to_contain_text("Nothing has run yet")
    page.get_by_role("button", name="Start 8 sample prompts").click()
    expect(page.locator("article.card[data-state=done]")).to_have_count(8)
    assert len(server.fake.asked) == 8
    play(page, server, step(1, [Row(A)]))
    expect(page.locator("#idle")).to_be_hidden()


def test_broken_news(page: Page, server: FakeServer) -> None:
    """Comments and events that the page does not know are passed over."""
    server.feed.comment()
    server.feed.tell("weather", {"is": "fine"})
    play(page, server, step(1, [Row(A)]))
