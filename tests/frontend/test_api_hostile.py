"""What a stranger can send to make one request cost everybody."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import orjson
import pytest
from fastapi.testclient import TestClient
from pydantic import ByteSize, SecretStr

from chairlift.frontend.api import create_app
from chairlift.frontend.auth import ApiKeys
from chairlift.frontend.client import AsyncClient
from chairlift.frontend.readers import Readers
from chairlift.shared.errors import ChairliftError, InvalidRequestError
from chairlift.shared.messages import Greeting, WorkerStats
from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import ServeSettings

JSON = {"content-type": "application/json"}
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MILLION = 1_000_000


def chat(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "empty parts": (CHAT, chat([{}] * MILLION)),
    "numbers for parts": (CHAT, chat([1] * MILLION)),
    "too many text parts": (CHAT, chat([{"type": "text", "text": ""}] * 2000)),
    "biases": (COMPLETIONS, {"prompt": "a", "logit_bias": {f"x{i}": 1 for i in range(300_000)}}),
    "unknown keys": (COMPLETIONS, {f"key{i}": 1 for i in range(400_000)}),
    "unknown keys inside": (CHAT, {"messages": [{f"key{i}": 1 for i in range(400_000)}]}),
    "a long name": (CHAT, {"messages": [{"role": "user", "content": "a", "name": "n" * 10_000}]}),
    "a prompt without end": (COMPLETIONS, {"prompt": "a" * 4 * MILLION}),
    "a message without end": (CHAT, chat("a" * 4 * MILLION)),
    "prompts of wrong kinds": (COMPLETIONS, {"prompt": [None] * MILLION}),
    "too many scores": (COMPLETIONS, {"prompt": [[1] * 400] * 128, "prompt_logprobs": 20}),
    "too many answers": (COMPLETIONS, {"prompt": ["a"] * 100, "n": 8}),
    "an overflowing penalty": (COMPLETIONS, {"prompt": "a", "repetition_penalty": 1e-38}),
}


@pytest.mark.parametrize(("path", "body"), BODIES.values(), ids=BODIES.keys())
def test_costly_bodies_are_refused_early(fake: Any, path: str, body: dict[str, Any]) -> None:
    """A few megabytes of nonsense are a 400 that says one thing, not a complaint for each item."""
    settings = ServeSettings(max_body_bytes=ByteSize(16 * MILLION))
    with TestClient(create_app(fake, settings)) as http:
        answer = http.post(path, content=orjson.dumps(body), headers=JSON)
    assert answer.status_code == 400, answer.text[:300]
    assert len(answer.content) < 1000
    assert not fake.asked


def test_a_text_that_cannot_fit_is_not_encoded(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the context filled with the longest tokens: that takes no tokenizer to see."""
    monkeypatch.setattr(type(fake.tokenizer), "encode", lambda *_: pytest.fail("was encoded"))
    with TestClient(create_app(fake, ServeSettings())) as http:
        answer = http.post(COMPLETIONS, json={"prompt": "a" * MILLION})
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_who_may_go_ahead(fake: Any) -> None:
    """Nobody but by the operator's leave, and then so far and no further."""
    for settings, best in ((ServeSettings(), 0), (ServeSettings(best_priority=-5), -5)):
        with TestClient(create_app(fake, settings)) as http:
            asked = {"prompt": "a", "max_tokens": 1}
            assert http.post(COMPLETIONS, json=asked | {"priority": best}).status_code == 200
            answer = http.post(COMPLETIONS, json=asked | {"priority": best - 1})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "priority"
        assert f"at least {best}" in answer.json()["error"]["message"]


class TestStalledReaders:
    """Readers that take nothing, and callers that never finish asking."""

    @pytest.fixture
    def settings(self) -> ServeSettings:
        return ServeSettings(stall_timeout_s=0.3, header_timeout_s=0.3)

    @pytest.mark.anyio
    async def test_reader_that_takes_nothing_is_cut_off(self, url: str, fake: Any) -> None:
        """Its generation is cancelled and its place given back, though it keeps the line."""
        fake.script = endless
        host, port = url.removeprefix("http://").split(":")
        body = orjson.dumps({"prompt": "a", "stream": True})
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port))) as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            async with asyncio.timeout(20):
                await fake.generating.wait()
                await fake.streams[0].ended.wait()
            assert fake.streams[0].is_cancelled

    @pytest.mark.anyio
    @pytest.mark.parametrize("beginning", [b"", b"GET /hea"])
    async def test_connection_without_a_request_is_closed(self, url: str, beginning: bytes) -> None:
        """Silence, or headers that never end, hold a connection for a while only."""
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(beginning)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


def endless(prompt: list[int], params: SamplingParams) -> list[Any]:
    from chairlift.frontend.results import Delta

    return [Delta([1], "x" * 10_000)] * 2000


def test_keys_that_are_none_do_not_open_the_server() -> None:
    """A variable that was meant to hold keys and holds only commas is an error."""
    with pytest.raises(ChairliftError, match="CHAIRLIFT_API_KEYS"):
        ApiKeys.from_settings(ServeSettings(api_keys=()))
    assert len(ApiKeys.from_settings(ServeSettings(api_keys=(SecretStr("a"),)))) == 1


class FakeConnection:
    """What AsyncClient.condition looks at."""

    def __init__(self) -> None:
        self.protocol = self
        self.greeting: Greeting | None = Greeting(1, "m", 0, b"1" * 8, b"2" * 8, 9, 9, 0)
        self.stats = WorkerStats()
        self.state = "ready"
        self.outgoing: list[bytes] = []
        self.last_heard = 0.0


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("silence_s", "num_waiting", "state", "condition"),
    [
        (0.0, 0, "ready", "ok"),
        (3.5, 0, "ready", "away"),
        (1.5, 0, "ready", "ok"),
        (1.5, 0, "draining", "away"),
        (1.5, 1, "draining", "draining"),
        (3.5, 1, "ready", "ok"),
        (10.5, 1, "ready", "wedged"),
        (0.0, 1, "draining", "draining"),
    ],
)
async def test_condition_of_the_worker(
    silence_s: float, num_waiting: int, state: str, condition: str
) -> None:
    """Silence means one thing while there is work and another when there is none."""
    client = AsyncClient("ipc:///tmp/nowhere")
    connection = FakeConnection()
    client._connection = connection  # type: ignore[assignment]
    connection.last_heard = asyncio.get_running_loop().time() - silence_s
    connection.stats, connection.state = WorkerStats(num_waiting=num_waiting), state
    assert client.condition == condition
    connection.greeting = None
    assert client.condition == "starting"
    client._connection = None


@pytest.mark.anyio
async def test_generate_checks_before_it_counts() -> None:
    """Parameters and ids that the worker would not even decode are refused here, and leave
    nothing behind."""
    client = AsyncClient("ipc:///tmp/nowhere")
    connection = FakeConnection()
    connection.last_heard = asyncio.get_running_loop().time()
    client._connection = connection  # type: ignore[assignment]
    client._readers = Readers(client._connection)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="temperature"):
        client.generate([1], SamplingParams(max_tokens=2, temperature=5.0))
    with pytest.raises(InvalidRequestError, match="vocabulary"):
        client.generate([-1], SamplingParams(max_tokens=2))
    assert client.num_live == 0
    client._connection = None
