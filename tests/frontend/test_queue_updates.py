"""Where a request stands in the queue, and on whose account it stands there, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from openai.types.responses import ResponseErrorEvent
from pydantic import SecretStr

from chairlift.frontend.results import Delta
from chairlift.frontend.token_stream import TokenStream
from chairlift.shared.errors import OverloadedError
from chairlift.shared.messages import Finish
from chairlift.shared.queue_place import QueuePlace
from chairlift.shared.settings import ServeSettings
from tests.frontend.conftest import app_over
from tests.frontend.events import events_of
from tests.frontend.fake_client import FakeClient, count_up

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
RESPONSES, EMBEDDINGS = "/v1/responses", "/v1/embeddings"
BODIES: dict[str, Any] = {
    COMPLETIONS: {"prompt": "abc"},
    CHAT: {"messages": [{"role": "user", "content": "hello"}]},
    RESPONSES: {"input": "hello"},
}
ALL_BODIES = BODIES | {EMBEDDINGS: {"input": "hello"}}
PLACES = [QueuePlace(3, 2000), QueuePlace(0, 1000)]
COMMENTS = [
    ": queue choice=0 position=3 expected_wait_ms=2000",
    ": queue choice=0 position=0 expected_wait_ms=1000",
]
REFUSAL = Finish(
    "error", code="queue_timeout", message="late", retry_after_ms=9000, queue=QueuePlace(7, 5000)
)
TOLD = {"position": 7, "expected_wait_ms": 5000}
KEYS = ("one", "two")


def waiting(*args: Any) -> list[Delta]:
    """An answer that comes after two places in the queue."""
    return [*(Delta([], "", queue=place) for place in PLACES), *count_up(*args)]


def stream(http: TestClient, path: str, **changes: Any) -> str:
    answer = http.post(path, json=BODIES[path] | {"stream": True, **changes})
    assert answer.status_code == 200
    return answer.text


def comments_of(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.startswith(": queue")]


@pytest.mark.parametrize("path", BODIES)
def test_places_are_comments_before_the_answer(
    http: TestClient, fake: FakeClient, path: str
) -> None:
    """They are in no event, and the events are those of an answer that did not wait."""
    usual = stream(http, path, seed=1)
    fake.script = waiting
    asked = stream(http, path, seed=1, queue_updates=True)
    assert comments_of(asked) == COMMENTS and not comments_of(usual)
    assert [options.wants_queue_news for options in fake.options] == [False, True]
    assert len(events_of(asked)) == len(events_of(usual))
    last = max(asked.index(comment) for comment in COMMENTS)
    assert last < asked.index('" 0"'), "the first token comes after them"


@pytest.mark.parametrize("path", BODIES)
def test_it_is_for_streams(http: TestClient, path: str) -> None:
    """An answer in one piece has no room for comments."""
    answer = http.post(path, json=BODIES[path] | {"queue_updates": True})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "queue_updates"
    assert "set stream to true" in answer.json()["error"]["message"]


def test_embeddings_have_no_stream_to_tell_it(http: TestClient) -> None:
    """The parameter is unknown there."""
    answer = http.post(EMBEDDINGS, json={"input": "a", "queue_updates": True})
    assert answer.json()["error"]["code"] == "unknown_parameter"


def test_each_choice_has_its_place(http: TestClient, fake: FakeClient) -> None:
    """Comments name the choice."""
    fake.script = waiting
    told = comments_of(stream(http, CHAT, queue_updates=True, n=2))
    assert sorted(told) == sorted(
        line.replace("choice=0", f"choice={index}") for line in COMMENTS for index in (0, 1)
    )


def test_waiting_takes_no_time_of_the_first_token(http: TestClient, fake: FakeClient) -> None:
    """A place is no token to the metrics: of one answer there is one first token."""
    fake.script = waiting
    stream(http, CHAT, queue_updates=True)
    metrics = http.get("/metrics").text
    assert "time_to_first_token_seconds_count 1.0" in metrics


@pytest.mark.parametrize("path", BODIES)
def test_a_refusal_after_a_place_ends_the_stream(
    http: TestClient, fake: FakeClient, path: str
) -> None:
    """The status is out by then; the last error tells where it stood."""
    fake.script = lambda *_: [Delta([], "", queue=PLACES[0]), Delta([], "", REFUSAL)]
    text = stream(http, path, queue_updates=True)
    assert comments_of(text) == COMMENTS[:1]
    events = [json.loads(event.data) for event in events_of(text)]
    if path == RESPONSES:
        (error,) = [event for event in events if event["type"] == "error"]
        assert ResponseErrorEvent.model_validate(error).code == "queue_timeout"
    else:
        error = events[-1]["error"]
    assert (error["code"], error["queue"]) == ("queue_timeout", TOLD)


@pytest.mark.parametrize("path", ALL_BODIES)
@pytest.mark.parametrize("by_worker", [True, False])
def test_a_refusal_is_told_with_its_place(
    http: TestClient, fake: FakeClient, path: str, by_worker: bool
) -> None:
    """In the error's body, whether the worker or its client refused; Retry-After is for the whole
    queue."""

    def refuse(*_: Any) -> list[Delta]:
        if by_worker:
            return [Delta([], "", REFUSAL)]
        raise OverloadedError("full", retry_after_s=9, queue=REFUSAL.queue)

    fake.script = refuse
    answer = http.post(path, json=ALL_BODIES[path])
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "9")
    assert answer.json()["error"]["queue"] == TOLD


@pytest.mark.anyio
async def test_the_official_client_reads_comments_and_refusals(
    api: openai.AsyncOpenAI, fake: FakeClient
) -> None:
    """It passes over the one and gives the other as the body of its exception."""
    messages: Any = BODIES[CHAT]["messages"]
    asked: Any = {"model": "lift/tiny", "messages": messages, "stream": True}
    fake.script = waiting
    extra = {"queue_updates": True}
    chunks = [c async for c in await api.chat.completions.create(**asked, extra_body=extra)]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == " 0 1 2 3 4"
    fake.script = lambda *_: [Delta([], "", REFUSAL)]
    with pytest.raises(openai.InternalServerError) as caught:
        await api.chat.completions.create(**asked)
    body: Any = caught.value.body
    assert (body["code"], body["queue"]) == ("queue_timeout", TOLD)


def test_a_place_does_not_tell_whose_request_it_is() -> None:
    """Tokens do; a reader that was slow gets them without the place that is no more."""
    stream = TokenStream(bytes(16), lambda *_: None, b"", may_own=True)
    stream.put(Delta([], "", queue=PLACES[0]))
    stream.put(Delta([], "", queue=PLACES[1]))
    assert not stream.is_open
    assert stream.take() == Delta([], "", queue=PLACES[1])
    stream.put(Delta([], "", queue=PLACES[1]))
    stream.put(Delta([5], "x"))
    assert stream.is_open
    assert stream.take() == Delta([5], "x")


class TestWithKeys:
    """Where there are several API keys they are the tenants."""

    @pytest.fixture
    def http(self, fake: FakeClient, address: str) -> Iterator[TestClient]:
        settings = ServeSettings(address=address, api_keys=tuple(map(SecretStr, KEYS)))
        with TestClient(app_over(fake, settings)) as client:
            yield client

    @pytest.mark.parametrize("path", ALL_BODIES)
    def test_a_key_is_a_tenant_whatever_its_users(
        self, http: TestClient, fake: FakeClient, path: str
    ) -> None:
        """A key can't have more by naming users, and its users don't share with another's."""
        for key, user in [("one", "ann"), ("one", "bob"), ("two", "ann"), ("one", None)]:
            body = ALL_BODIES[path] | ({"user": user} if user else {})
            headers = {"Authorization": f"Bearer {key}"}
            assert http.post(path, json=body, headers=headers).status_code == 200
        first, second, other, nameless = (options.tenant for options in fake.options)
        assert first == second == nameless != other
        assert len(first) == len(other) == 16


@pytest.mark.parametrize("path", ALL_BODIES)
def test_without_keys_a_user_is_a_tenant_and_else_the_frontend(
    http: TestClient, fake: FakeClient, path: str
) -> None:
    """An empty tenant leaves it to the worker, which takes the frontend for it."""
    for user in ("ann", "bob", "ann", None):
        body = ALL_BODIES[path] | ({"user": user} if user else {})
        assert http.post(path, json=body).status_code == 200
    ann, bob, again, nameless = (options.tenant for options in fake.options)
    assert ann == again != bob
    assert nameless == b""
