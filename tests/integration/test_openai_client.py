"""What an application does with the official Python client, against real processes."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.integration.processes import chairlift, serving

pytestmark = pytest.mark.slow

KEY, OTHER_KEY = "sk-first", "sk-second"
LONG = 450


def completion(model: Path, max_tokens: int = 3, **changes: Any) -> dict[str, Any]:
    """What is asked of the random model: as many tokens, the same ones every time."""
    asked: dict[str, Any] = {"model": model.name, "prompt": "abc", "seed": 7}
    return asked | {"max_tokens": max_tokens, "extra_body": {"ignore_eos": True}} | changes


def chat(model: Path, **changes: Any) -> dict[str, Any]:
    asked = completion(model, 12, messages=[{"role": "user", "content": "abc"}], **changes)
    return {name: value for name, value in asked.items() if name != "prompt"}


@pytest.fixture(scope="module")
def url(worker: subprocess.Popen[bytes], worker_address: str) -> Iterator[str]:
    """Open to all."""
    with serving(worker_address) as address:
        yield address


@pytest.fixture(scope="module")
def keyed_url(worker: subprocess.Popen[bytes], worker_address: str) -> Iterator[str]:
    """For two keys, each with one request at a time."""
    keys = f"{KEY},{OTHER_KEY}"
    with serving(worker_address, api_keys=keys, max_requests_per_key=1) as address:
        yield address


class Attempts:
    """What a client's requests came to, retries included."""

    def __init__(self) -> None:
        self.answers: list[httpx2.Response] = []
        self.times: list[float] = []

    def saw(self, answer: httpx2.Response) -> None:
        self.answers.append(answer)
        self.times.append(time.monotonic())

    @property
    def statuses(self) -> list[int]:
        return [answer.status_code for answer in self.answers]

    @property
    def pauses_s(self) -> list[float]:
        return [later - time for time, later in zip(self.times, self.times[1:], strict=False)]

    def client(self, url: str, **options: Any) -> openai.OpenAI:
        hooks = {"response": [self.saw]}
        http = openai.DefaultHttpx2Client(event_hooks=hooks)  # type: ignore[arg-type]
        return client_of(url, http_client=http, **options)


def client_of(url: str, **options: Any) -> openai.OpenAI:
    chosen: dict[str, Any] = {"api_key": KEY, "max_retries": 0, "timeout": 60.0}
    return openai.OpenAI(base_url=f"{url}/v1", **chosen | options)


def async_client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60.0)


def test_sync_and_async_say_the_same(url: str, tiny_model: Path) -> None:
    """Whole and streamed, from either client, a completion and a chat are one text."""
    asked, asked_in_chat = completion(tiny_model, 12), chat(tiny_model)
    with client_of(url) as client:
        texts = [client.completions.create(**asked).choices[0].text]
        chunks = list(client.completions.create(**asked, stream=True))
        texts.append("".join(chunk.choices[0].text for chunk in chunks))
        contents = [client.chat.completions.create(**asked_in_chat).choices[0].message.content]

    async def run() -> None:
        async with async_client_of(url) as client:
            stream = await client.completions.create(**asked, stream=True)
            texts.append("".join([chunk.choices[0].text async for chunk in stream]))
            texts.append((await client.completions.create(**asked)).choices[0].text)
            deltas = await client.chat.completions.create(**asked_in_chat, stream=True)
            parts = [chunk.choices[0].delta.content or "" async for chunk in deltas]
            contents.append("".join(parts))

    asyncio.run(run())
    assert len(set(texts)) == 1 and texts[0]
    assert len(set(contents)) == 1 and contents[0]


def test_the_stream_helper_assembles_what_was_said(url: str, tiny_model: Path) -> None:
    """chat.completions.stream() puts n choices together as they are when they come whole."""
    asked = chat(tiny_model, n=2)
    with client_of(url) as client:
        whole = client.chat.completions.create(**asked)
        options: Any = {"include_usage": True}
        with client.chat.completions.stream(**asked, stream_options=options) as stream:
            kinds = {event.type for event in stream}
            with pytest.raises(openai.LengthFinishReasonError) as cut:  # the helper's own wish
                stream.get_final_completion()
    assembled = cut.value.completion
    assert {"chunk", "content.delta", "content.done"} <= kinds
    for index in range(2):
        assert assembled.choices[index].message.content == whole.choices[index].message.content
        assert assembled.choices[index].finish_reason == "length"
    assert assembled.usage and assembled.usage.completion_tokens == 24


def test_raw_responses_have_headers(url: str, tiny_model: Path) -> None:
    """The request id, the caller's own if it sent one, is with every answer, stream and error."""
    asked = completion(tiny_model)
    with client_of(url) as client:
        raw = client.completions.with_raw_response.create(**asked)
        assert raw.headers["content-type"] == "application/json"
        assert raw.request_id and raw.request_id.startswith("req-")
        answer = raw.parse()
        assert answer.choices[0].text and answer._request_id == raw.request_id

        named = {"x-request-id": "mine-1"}
        with client.completions.with_streaming_response.create(
            **asked, stream=True, extra_headers=named
        ) as streamed:
            assert streamed.headers["x-request-id"] == "mine-1"
            assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
            lines = [line for line in streamed.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1])
        assert text == answer.choices[0].text

        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(**completion(tiny_model, -1), extra_headers=named)
    assert refused.value.request_id == "mine-1"
    assert refused.value.param == "max_tokens" and refused.value.code == "invalid_value"


@contextmanager
def occupied_place(url: str, key: str) -> Iterator[None]:
    """A request with this key whose body never comes to an end."""
    host, port = url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode())
        yield


def test_too_many_are_tried_again_when_told(keyed_url: str, tiny_model: Path) -> None:
    """A 429 says when to come back; the client waits as long, then finds the place that was freed.
    Another key's place is free all the time."""
    asked = completion(tiny_model)
    attempts = Attempts()
    with ExitStack() as occupied, attempts.client(keyed_url, max_retries=3) as client:
        occupied.enter_context(occupied_place(keyed_url, KEY))
        until_refused(keyed_url, asked)
        with client_of(keyed_url, api_key=OTHER_KEY) as other:
            assert other.completions.create(**asked).choices[0].text

        def free(answer: httpx2.Response) -> None:
            occupied.close()

        client._client.event_hooks["response"].append(free)
        assert client.completions.create(**asked).choices[0].text
    assert attempts.statuses == [429, 200]
    told_s = float(attempts.answers[0].headers["retry-after-ms"]) / 1000
    assert 1.0 <= told_s <= attempts.pauses_s[0] < told_s + 5
    assert int(attempts.answers[0].headers["retry-after"]) >= told_s


def until_refused(url: str, asked: dict[str, Any]) -> None:
    """The occupied place counts from when its headers were read."""
    deadline = time.monotonic() + 10
    with client_of(url) as client:
        while time.monotonic() < deadline:
            try:
                client.completions.create(**asked)
            except openai.RateLimitError as error:
                assert (error.code, error.type) == ("rate_limit_exceeded", "rate_limit_error")
                return
    raise AssertionError("the place was never taken")


def test_an_absent_worker_is_waited_for(address: str, tiny_model: Path) -> None:
    """A 503 says when to come back, so a client that came too early is served in the end."""
    attempts = Attempts()
    asked = completion(tiny_model)
    with ExitStack() as worker, serving(address, status=503) as url:
        with client_of(url) as impatient, pytest.raises(openai.InternalServerError) as refused:
            impatient.completions.create(**asked)
        assert refused.value.status_code == 503
        settings: dict[str, Any] = {"model": tiny_model, "address": address, "dtype": "float32"}
        worker.enter_context(chairlift("worker", **settings))
        with attempts.client(url, max_retries=30) as client:
            assert client.completions.create(**asked).choices[0].text
    *early, last = attempts.statuses
    assert last == 200 and set(early) == {503}
    for answer, pause_s in zip(attempts.answers, attempts.pauses_s, strict=False):
        assert pause_s >= float(answer.headers["retry-after-ms"]) / 1000 >= 1


def test_what_would_fail_again_is_not_tried_again(keyed_url: str, tiny_model: Path) -> None:
    """A caller's mistake costs one request, however many retries are allowed."""
    asked = completion(tiny_model)
    attempts = Attempts()
    with attempts.client(keyed_url, max_retries=5) as client:
        with pytest.raises(openai.BadRequestError):
            client.completions.create(**asked, temperature=3)
        with pytest.raises(openai.NotFoundError):
            client.completions.create(**completion(Path("nosuch")))
        with pytest.raises(openai.AuthenticationError) as unknown:
            client.with_options(api_key="sk-third").models.list()
    assert unknown.value.code == "invalid_api_key"
    assert attempts.statuses == [400, 404, 401]


def test_options_of_one_call(url: str, tiny_model: Path) -> None:
    """with_options gives a call a time limit of its own; what ran is given up, and the client as it
    was is served."""
    asked = completion(tiny_model, LONG)
    with client_of(url) as client:
        hasty = client.with_options(timeout=0.02, max_retries=0)
        with pytest.raises(openai.APITimeoutError):
            hasty.completions.create(**asked)
        with pytest.raises(openai.APITimeoutError):
            for _ in client.with_options(timeout=0.001).completions.create(**asked, stream=True):
                pass
        until_idle(url)
        named = client.with_options(default_headers={"x-request-id": "mine-2"})
        answer = named.completions.create(**completion(tiny_model))
        assert answer._request_id == "mine-2" and answer.choices[0].text

    async def run() -> None:
        async with async_client_of(url) as client:
            with pytest.raises(openai.APITimeoutError):
                await client.with_options(timeout=0.02).completions.create(**asked)
            task = asyncio.create_task(client.completions.create(**asked))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    until_idle(url)


def until_idle(url: str) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        figures = httpx2.get(f"{url}/metrics").text
        if "chairlift:num_requests_running 0.0" in figures:
            return
        time.sleep(0.05)
    raise AssertionError("requests that nobody waits for go on")


def test_models_are_one_page(url: str, tiny_model: Path) -> None:
    """The list can be read as a page, by iteration and with either client, and is all there is."""
    with client_of(url) as client:
        page = client.models.list()
        assert page.object == "list" and not page.has_next_page()
        assert [model.id for model in page] == [model.id for model in page.data]
        (model,) = page.data
        assert (model.id, model.object, model.owned_by) == (tiny_model.name, "model", "chairlift")
        assert client.models.retrieve(tiny_model.name) == model
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("no/such")

    async def run() -> None:
        async with async_client_of(url) as client:
            assert [one async for one in client.models.list()] == [model]

    asyncio.run(run())


def test_a_key_makes_two_requests_one(url: str, tiny_model: Path) -> None:
    """A request sent again with its Idempotency-Key, as after a lost answer, is not run again."""
    asked = completion(tiny_model, 6, seed=None)
    with client_of(url) as client:
        keyed = client.with_options(default_headers={"Idempotency-Key": "order-1"})
        first, second = keyed.completions.create(**asked), keyed.completions.create(**asked)
        assert (first.id, first.choices[0].text) == (second.id, second.choices[0].text)
        with pytest.raises(openai.ConflictError) as reused:
            keyed.with_options(max_retries=2).completions.create(
                **completion(tiny_model, prompt="cab")
            )
    assert reused.value.code == "idempotency_key_reused"
