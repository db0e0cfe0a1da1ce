"""Streams that go on: after a cut, on another frontend, for a second reader."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient
from msgspec.structs import replace
from pydantic import ByteSize, SecretStr
from structlog.testing import capture_logs

from chairlift.frontend.results import Delta
from chairlift.shared.messages import Finish
from chairlift.shared.settings import ServeSettings
from tests.frontend.conftest import serving
from tests.frontend.events import Assembled, Event, events_of

pytestmark = pytest.mark.anyio
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ASK: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": ["ab", "c"]},
    CHAT: {"messages": [{"role": "user", "content": "hello"}]},
}
ALL = {"stream": True, "n": 2, "stream_options": {"include_usage": True}}


async def read_some(http: Any, path: str, body: dict[str, Any], count: int, **more: Any) -> str:
    """The first `count` events, and then the reader is gone."""
    text = ""
    async with http.stream("POST", path, json=body, **more) as answer:
        assert answer.status_code == 200
        async for piece in answer.aiter_text():
            text += piece
            if text.count("\n\n") >= count:
                break
    return text


async def read_one(http: Any, body: dict[str, Any], **more: Any) -> Event:
    """The first of a gated stream's events, after which its reader is gone."""
    return events_of(await read_some(http, COMPLETIONS, {"prompt": "a"} | body, 1, **more))[0]


async def ended(stream: Any) -> Any:
    await stream.ended.wait()
    return stream


class TestContinued:
    """The answer's rest, once."""

    @pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
    async def test_from_every_event(self, url: str, other_url: str, fake: Any, path: str) -> None:
        """After any event another frontend gives what follows it: the same whole, whether the
        place comes in the header or in the query."""
        async with asyncio.timeout(60), httpx2.AsyncClient() as http:
            answer = await http.post(url + path, json=ASK[path] | ALL)
            events = events_of(answer.text)
            where = f"{other_url}/v1/streams/{events[0].json['id']}"
            expected = Assembled(events)
            assert len(expected.usages) == expected.num_done == 1
            for number, event in enumerate(events[:-1]):
                if number % 2:
                    rest = await http.get(where, headers={"Last-Event-ID": event.id})
                else:
                    rest = await http.get(where, params={"last_event_id": event.id})
                assert rest.status_code == 200, rest.text
                assert rest.headers["content-type"].startswith("text/event-stream")
                together = Assembled(events[: number + 1] + events_of(rest.text))
                assert together.whole == expected.whole
            assert Assembled(events_of((await http.get(where)).text)).whole == expected.whole

    async def test_while_it_runs(self, url: str, other_url: str, fake: Any) -> None:
        """A stream that was cut midway goes on elsewhere, with nothing lost and nothing twice."""
        fake.gate = asyncio.Semaphore(2)
        body = ASK[CHAT] | {"stream": True, "resumable": True}
        async with asyncio.timeout(10), httpx2.AsyncClient(base_url=url) as http:
            events = events_of(await read_some(http, CHAT, body, 3))
            where = f"{other_url}/v1/streams/{events[0].json['id']}"
            headers = {"Last-Event-ID": events[-1].id}
            reading = asyncio.create_task(http.get(where, headers=headers))
            for _ in range(5):
                fake.gate.release()
            together = Assembled(events + events_of((await reading).text))
        assert together.text[0] == " 0 1 2 3 4"
        assert together.openings[0] == together.num_done == len(together.reasons[0]) == 1
        assert len(together.heads) == 1
        assert fake.num_made == 1

    async def test_after_the_server_has_ended(self, url: str, other_url: str, fake: Any) -> None:
        """Who was sent away by a server that shuts down goes on with another one."""
        fake.gate = asyncio.Semaphore(1)
        async with asyncio.timeout(10), httpx2.AsyncClient() as http:
            body = {"prompt": "a", "stream": True}
            async with http.stream("POST", url + COMPLETIONS, json=body) as answer:
                pieces = answer.aiter_text()
                text = await anext(pieces)
                fake.stop_server()
                async for piece in pieces:
                    text += piece
            *events, error = events_of(text)
            assert error.json["error"]["code"] == "shutting_down"
            for _ in range(5):
                fake.gate.release()
            where = f"{other_url}/v1/streams/{events[0].json['id']}"
            rest = await http.get(where, headers={"Last-Event-ID": error.id})
        together = Assembled(events + events_of(rest.text))
        assert together.text[0] == " 0 1 2 3 4" and together.num_done == 1

    async def test_the_header_counts_more(self, url: str) -> None:
        """A browser that reconnects sends the place where it is, to the address as it was."""
        async with httpx2.AsyncClient(base_url=url) as http:
            events = events_of((await http.post(COMPLETIONS, json=ASK[COMPLETIONS] | ALL)).text)
            where = f"/v1/streams/{events[0].json['id']}?last_event_id={events[0].id}"
            rest = await http.get(where, headers={"Last-Event-ID": events[-2].id})
        assert [event.data for event in events_of(rest.text)] == ["[DONE]"]

    async def test_a_choice_that_is_gone(self, url: str, fake: Any) -> None:
        """A choice of which the reader has all need not be kept any longer; its tokens count."""
        async with httpx2.AsyncClient(base_url=url) as http:
            body = ASK[CHAT] | ALL
            events = events_of((await http.post(CHAT, json=body)).text)
            expected = Assembled(events)
            number = next(
                i
                for i, event in enumerate(events)
                if event.json["choices"][0]["finish_reason"] is not None
            )
            index = events[number].json["choices"][0]["index"]
            del fake.requests[fake.streams[index].request_id]
            where = f"/v1/streams/{events[0].json['id']}"
            rest = await http.get(where, headers={"Last-Event-ID": events[number].id})
            together = Assembled(events[: number + 1] + events_of(rest.text))
            assert (together.text, together.reasons) == (expected.text, expected.reasons)
            (usage,) = together.usages
            assert usage["completion_tokens"] == expected.usages[0]["completion_tokens"]
            gone = await http.get(where)
            assert gone.status_code == 404

    async def test_the_reader_holds_one_of_the_others(self, url: str, fake: Any) -> None:
        """When a choice is missing that the reader needs, nothing of the others is taken."""
        async with httpx2.AsyncClient(base_url=url) as http:
            events = events_of((await http.post(CHAT, json=ASK[CHAT] | ALL)).text)
            del fake.requests[fake.streams[1].request_id]
            answer = await http.get(f"/v1/streams/{events[0].json['id']}")
        assert answer.status_code == 404
        assert fake.streams[-1].is_detached

    async def test_official_client(self, api: openai.AsyncOpenAI) -> None:
        """The official client can ask for the rest, and skips what it does not know."""
        chunks = [
            chunk
            async for chunk in await api.chat.completions.create(
                model="lift/tiny", messages=ASK[CHAT]["messages"], stream=True
            )
        ]
        rest = await api.get(f"/streams/{chunks[0].id}", cast_to=httpx2.Response)
        assert Assembled(events_of(rest.text)).text[0] == " 0 1 2 3 4"

    async def test_what_failed_midway(self, url: str, fake: Any) -> None:
        """A stream's failure is an event; afterwards it is gone."""
        fake.script = lambda *_: [
            Delta([1], "a"),
            Delta([2], "b", Finish("error", code="deadline_exceeded", message="too slow")),
        ]
        async with httpx2.AsyncClient(base_url=url) as http:
            answer = await http.post(COMPLETIONS, json={"prompt": "a", "stream": True})
            events = events_of(answer.text)
            assert events[-1].json["error"]["code"] == "deadline_exceeded"
            gone = await http.get(f"/v1/streams/{events[0].json['id']}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "stream_not_found")


class TestReaders:
    """Who owns a stream, and who only watches."""

    async def test_taken_over(self, url: str, other_url: str, fake: Any) -> None:
        """Who continues a stream has it: the former reader is told, and stops nothing."""
        fake.gate = asyncio.Semaphore(0)
        async with asyncio.timeout(10), httpx2.AsyncClient() as http:
            body = {"prompt": "a", "stream": True, "n": 2}
            async with http.stream("POST", url + COMPLETIONS, json=body) as answer:
                pieces = answer.aiter_text()
                text = await anext(pieces)
                where = f"{other_url}/v1/streams/{events_of(text)[0].json['id']}"
                reading = asyncio.create_task(http.get(where))
                async for piece in pieces:
                    text += piece
            assert events_of(text)[-1].json["error"]["code"] == "taken_over"
            assert not any(stream.is_cancelled for stream in fake.streams)
            for _ in range(10):
                fake.gate.release()
            rest = Assembled(events_of((await reading).text))
        assert rest.text == {0: " 0 1 2 3 4", 1: " 0 1 2 3 4"} and not rest.errors

    async def test_taken_over_before_the_first_byte(self, url: str, fake: Any) -> None:
        """One who waits for a whole answer gets a 409, which the official client must not retry."""
        fake.script = lambda *_: [
            Delta([], "", Finish("abort", code="taken_over", message="another reader took over"))
        ]
        async with httpx2.AsyncClient(base_url=url) as http:
            answer = await http.post(COMPLETIONS, json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "taken_over")
        assert answer.headers["x-should-retry"] == "false"

    async def test_read_only(self, url: str, other_url: str, fake: Any) -> None:
        """A watcher sees the same text and takes nothing from the reader, nor by leaving."""
        fake.gate = asyncio.Semaphore(0)
        async with asyncio.timeout(10), httpx2.AsyncClient() as http:
            body = {"prompt": "a", "stream": True}
            async with http.stream("POST", url + COMPLETIONS, json=body) as answer:
                pieces = answer.aiter_text()
                text = await anext(pieces)
                where = f"{other_url}/v1/streams/{events_of(text)[0].json['id']}?read_only=true"
                async with http.stream("GET", where) as watched:
                    assert events_of(await anext(watched.aiter_text()))
                assert (await ended(fake.streams[1])).is_detached
                watching = asyncio.create_task(http.get(where))
                while len(fake.streams) < 3:
                    await asyncio.sleep(0)
                for _ in range(10):
                    fake.gate.release()
                async for piece in pieces:
                    text += piece
            assert (
                Assembled(events_of(text)).whole
                == Assembled(events_of((await watching).text)).whole
            )

    @pytest.mark.parametrize(
        ("asked", "headers", "is_kept"),
        [
            ({"stream": True}, {}, False),
            ({"stream": True, "resumable": True}, {}, True),
            ({"stream": True}, {"Idempotency-Key": "k"}, True),
        ],
    )
    async def test_own_disconnect(
        self, url: str, fake: Any, asked: Any, headers: Any, is_kept: bool
    ) -> None:
        """Hanging up cancels, unless the request was meant to be continued; also for one who has
        continued it."""
        fake.gate = asyncio.Semaphore(0)
        async with asyncio.timeout(10), httpx2.AsyncClient(base_url=url) as http:
            first = await read_one(http, asked, headers=headers)
            if not is_kept:
                assert (await ended(fake.streams[0])).is_cancelled
                return
            for _ in range(2):
                await asyncio.sleep(0.05)  # the server has seen it
                assert not fake.streams[-1].ended.is_set()
                where = f"/v1/streams/{first.json['id']}"
                async with http.stream("GET", where) as answer:
                    await anext(answer.aiter_text())

    async def test_nobody_comes_back(self, fake: Any, settings: ServeSettings) -> None:
        """What was kept for a caller who hung up is cancelled after the worker's grace."""
        fake.gate = asyncio.Semaphore(0)
        fake.worker = replace(fake.worker, orphan_grace_ms=100)
        async with asyncio.timeout(10), serving(fake, settings) as url:
            http = httpx2.AsyncClient(base_url=url)
            await read_one(http, {"stream": True, "resumable": True})
            assert (await ended(fake.streams[0])).is_cancelled
            await http.aclose()

    async def test_continued_without_being_resumable(self, url: str, fake: Any) -> None:
        """One who continues a stream that is not resumable stops it by hanging up."""
        fake.gate = asyncio.Semaphore(0)
        async with asyncio.timeout(10), httpx2.AsyncClient(base_url=url) as http:
            async with http.stream(
                "POST", COMPLETIONS, json={"prompt": "a", "stream": True}
            ) as answer:
                pieces = answer.aiter_text()
                first = events_of(await anext(pieces))[0]
                async with http.stream("GET", f"/v1/streams/{first.json['id']}") as rest:
                    await anext(rest.aiter_text())
            assert (await ended(fake.streams[-1])).is_cancelled

    async def test_hanging_up_frees_no_place(self, fake: Any) -> None:
        """What goes on without its caller counts as his, until he or somebody reads it again."""
        fake.gate = asyncio.Semaphore(0)
        settings = ServeSettings(max_requests=2)
        async with (
            asyncio.timeout(10),
            serving(fake, settings) as url,
            httpx2.AsyncClient(base_url=url) as http,
        ):
            first = await read_one(http, {"stream": True, "resumable": True, "n": 2})
            await asyncio.sleep(0.05)  # the server has seen it
            assert (await http.post(COMPLETIONS, json={"prompt": "a"})).status_code == 503
            async with http.stream("GET", f"/v1/streams/{first.json['id']}") as answer:
                assert answer.status_code == 200

    @pytest.mark.parametrize(
        ("asked", "headers", "is_resumable"),
        [
            ({}, {}, False),
            ({"stream": True}, {}, True),
            ({"stream": True, "resumable": True}, {}, True),
            ({}, {"Idempotency-Key": "k"}, True),
        ],
    )
    async def test_what_the_worker_keeps(
        self, url: str, fake: Any, asked: Any, headers: Any, is_resumable: bool
    ) -> None:
        """Every stream survives its frontend; what is no stream does so with a key."""
        async with httpx2.AsyncClient(base_url=url) as http:
            await http.post(COMPLETIONS, json={"prompt": "a"} | asked, headers=headers)
        (options,) = fake.options
        assert options.is_resumable == is_resumable
        assert options.ttl_s == 600


@pytest.mark.parametrize(
    ("path", "position", "code"),
    [
        ("cmpl-" + "0" * 32, None, "stream_not_found"),
        ("chatcmpl-" + "0" * 32, None, "stream_not_found"),
        ("nonsense", None, "stream_not_found"),
        ("{other}", None, "stream_not_found"),
        ("{id}", "nonsense", "invalid_value"),
        ("{id}", "1:2,3:4", "invalid_value"),
        ("{id}?last_event_id=1", None, "invalid_value"),
        ("{id}", "6:10", "invalid_value"),
        ("{id}", "5:11", "invalid_value"),
        ("{id}", "3:6.", "invalid_value"),
        ("{id}?read_only=true", "9:1", "invalid_value"),
        ("{id}", "1001:10", "invalid_value"),
        ("{id}?read_only=maybe", None, "invalid_value"),
        ("{id}?readonly=true", None, "unknown_parameter"),
    ],
)
def test_refusals(http: TestClient, path: str, position: str | None, code: str) -> None:
    """What can't be continued is refused with a reason, and still can be continued rightly."""
    body = {"prompt": "a", "stream": True}
    own = events_of(http.post(COMPLETIONS, json=body).text)[0].json["id"]
    where = path.format(id=own, other=own.replace("cmpl", "chatcmpl"))
    headers = {"Last-Event-ID": position} if position else {}
    answer = http.get(f"/v1/streams/{where}", headers=headers)
    assert answer.status_code == (404 if code == "stream_not_found" else 400)
    assert answer.json()["error"]["code"] == code
    assert http.get(f"/v1/streams/{own}").status_code == 200


async def test_a_position_beyond_a_running_stream(url: str, fake: Any) -> None:
    """Nobody knows yet: it is refused as soon as the answer has ended without getting there."""
    fake.gate = asyncio.Semaphore(0)
    async with asyncio.timeout(10), httpx2.AsyncClient(base_url=url) as http:
        first = await read_one(http, {"stream": True, "resumable": True})
        where = f"/v1/streams/{first.json['id']}"
        reading = asyncio.create_task(http.get(where, headers={"Last-Event-ID": "9:20"}))
        for _ in range(4):
            fake.gate.release()
        await asyncio.sleep(0.05)
        assert not reading.done()
        fake.gate.release()
        answer = await reading
        assert answer.status_code == 400
        assert "never the id of an event of this stream" in answer.json()["error"]["message"]
        assert Assembled(events_of((await http.get(where)).text)).text[0] == " 0 1 2 3 4"


async def test_a_position_that_is_slow_to_prove_wrong(fake: Any) -> None:
    """Who waits gets signs of life meanwhile, and the refusal as the last event."""
    fake.gate = asyncio.Semaphore(0)
    async with (
        asyncio.timeout(10),
        serving(fake, ServeSettings(keep_alive_s=0.05)) as url,
        httpx2.AsyncClient(base_url=url) as http,
    ):
        first = await read_one(http, {"stream": True, "resumable": True})
        headers = {"Last-Event-ID": "9:20"}
        where = f"/v1/streams/{first.json['id']}"
        async with http.stream("GET", where, headers=headers) as answer:
            assert answer.status_code == 200
            pieces = answer.aiter_text()
            assert ": keep-alive" in await anext(pieces)
            for _ in range(5):
                fake.gate.release()
            text = "".join([piece async for piece in pieces])
    error = events_of(text)[-1].json["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "Last-Event-ID")


def test_a_request_of_no_http_frontend(http: TestClient, fake: Any) -> None:
    """What an application submitted by itself can't be written as an HTTP answer."""
    http.post(COMPLETIONS, json={"prompt": "a"})
    (_, params) = fake.asked[0]
    stream = fake.generate([1], params)
    answer = http.get(f"/v1/streams/cmpl-{stream.request_id.hex()}")
    assert answer.status_code == 404 and "not made over HTTP" in answer.text
    assert fake.streams[-1].is_detached


def test_the_id_stays_secret(fake: Any, settings: ServeSettings) -> None:
    """Neither a log line nor a figure shows the id, which opens the stream."""
    from tests.frontend.conftest import app_over

    with capture_logs() as lines, TestClient(app_over(fake, settings)) as http:
        body = {"prompt": "a", "stream": True}
        own = events_of(http.post(COMPLETIONS, json=body).text)[0].json["id"]
        http.get(f"/v1/streams/{own}")
        http.get(f"/v1/streams/{own}", headers={"Last-Event-ID": "x"})
        http.get(f"/v1/streams/{own}/more")
        figures = http.get("/metrics").text
    digits = own.removeprefix("cmpl-")
    assert lines and digits not in str(lines) and digits not in figures
    assert {line["route"] for line in lines} >= {"/v1/streams/{response_id}", "unknown"}


class TestPlaces:
    """A reader takes a place, but not from himself."""

    @pytest.fixture
    def settings(self, address: str) -> ServeSettings:
        return ServeSettings(
            address=address,
            api_keys=(SecretStr("one"), SecretStr("two")),
            max_requests_per_key=1,
            max_requests=2,
        )

    async def test_takeover_at_the_limit(self, url: str, fake: Any) -> None:
        """A tenant whose last place is held by a connection that he lost can take over from it;
        a watcher needs a place of his own."""
        fake.gate = asyncio.Semaphore(0)
        headers = {"Authorization": "Bearer one"}
        async with (
            asyncio.timeout(10),
            httpx2.AsyncClient(base_url=url, headers=headers) as http,
            http.stream("POST", COMPLETIONS, json={"prompt": "a", "stream": True}) as lost,
        ):
            pieces = lost.aiter_text()
            first = events_of(await anext(pieces))[0]
            where = f"/v1/streams/{first.json['id']}"
            refused = await http.get(where, params={"read_only": "true"})
            assert refused.status_code == 429
            reading = asyncio.create_task(http.get(where))
            for _ in range(5):
                fake.gate.release()
            assert Assembled(events_of((await reading).text)).text[0] == " 0 1 2 3 4"


class TestSlowReader:
    """One who takes less than comes."""

    @pytest.fixture
    def settings(self, address: str) -> ServeSettings:
        return ServeSettings(address=address, max_buffer_bytes=ByteSize(1000), keep_alive_s=0.05)

    async def test_cut_off(self, url: str, fake: Any) -> None:
        """Who lets more than the cap wait is cut off, long before the stall timeout."""
        fake.script = lambda *_: [Delta([1], "x" * 10_000)] * 2000
        host, port = url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1000)
        body = b'{"prompt":"a","stream":true}'
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        async with asyncio.timeout(10):
            await fake.generating.wait()
            fake.streams[0].num_pending_characters = 240
            await asyncio.sleep(0.3)
            assert not fake.streams[0].ended.is_set()
            fake.streams[0].num_pending_characters = 260
            assert (await ended(fake.streams[0])).is_cancelled
        writer.close()

    async def test_not_for_one_who_takes_it(self, url: str, fake: Any) -> None:
        """However much comes at once, a reader who is not waited for is not too slow."""
        fake.script = lambda *_: [Delta([1], "x" * 10_000), Delta([2], "", Finish("stop"))]
        async with httpx2.AsyncClient(base_url=url) as http:
            answer = await http.post(COMPLETIONS, json={"prompt": "a", "stream": True})
        assert Assembled(events_of(answer.text)).text[0] == "x" * 10_000
