"""Disconnects, quiet streams, limits, keys, health and metrics."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from chairlift.frontend.api import create_app
from chairlift.frontend.api.gate import OPEN_PATHS
from chairlift.frontend.api.places import Places
from chairlift.frontend.auth import ApiKeys
from chairlift.frontend.results import Delta
from chairlift.shared.errors import ChairliftError, OverloadedError
from chairlift.shared.messages import Finish
from chairlift.shared.settings import ServeSettings
from tests.frontend.events import events_of

COMPLETIONS = "/v1/completions"
JSON = {"content-type": "application/json"}
KEYS = (SecretStr("first-key"), SecretStr("second-key"))


def paths_of(routes: Any) -> list[str]:
    """Those of included routers, too, where FastAPI keeps them apart."""
    paths = []
    for route in routes:
        inner = getattr(route, "original_router", None)
        paths += paths_of(inner.routes) if inner else [route.path]
    return paths


def num_tasks() -> int:
    return len(asyncio.all_tasks())


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [True, False])
async def test_disconnect_cancels(url: str, fake: Any, stream: bool) -> None:
    """A caller who hangs up ends the generation at once, streaming or not, and leaves no task."""
    fake.gate = asyncio.Semaphore(0)
    async with asyncio.timeout(10):
        before = num_tasks()
        host, port = url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps({"prompt": "a", "n": 2, "stream": stream}).encode()
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        while len(fake.streams) < 2:
            await asyncio.sleep(0)
        assert not any(stream.is_cancelled for stream in fake.streams)
        writer.close()
        for token_stream in fake.streams:
            await token_stream.ended.wait()
            assert token_stream.is_cancelled
        await writer.wait_closed()
        while num_tasks() > before:
            await asyncio.sleep(0)


@pytest.mark.anyio
async def test_leaving_a_stream_cancels(api: openai.AsyncOpenAI, fake: Any) -> None:
    """Closing the official client's stream midway cancels the generation."""
    fake.gate = asyncio.Semaphore(0)
    async with asyncio.timeout(10):
        stream = await api.completions.create(model="lift/tiny", prompt="a", stream=True)
        async for _ in stream:
            break
        await stream.close()
        await fake.streams[0].ended.wait()
    assert fake.streams[0].is_cancelled


@pytest.mark.anyio
async def test_a_finished_request_is_not_cancelled(api: openai.AsyncOpenAI, fake: Any) -> None:
    """Nothing is cancelled that ended by itself."""
    await api.completions.create(model="lift/tiny", prompt="a", n=3)
    assert not any(stream.is_cancelled for stream in fake.streams)


@pytest.mark.anyio
async def test_one_failure_cancels_the_others(api: openai.AsyncOpenAI, fake: Any) -> None:
    """When one choice fails the request fails, and its other choices are cancelled."""
    fake.gate = asyncio.Semaphore(0)
    failure = Finish("error", code="step_failed", message="oh")
    first, going_on = [Delta([], "", failure)], [Delta([1], "a"), Delta([], "", Finish("stop"))]
    fake.script = lambda *_: going_on if fake.streams else first
    with pytest.raises(openai.InternalServerError):
        await api.completions.create(model="lift/tiny", prompt="a", n=2)
    assert fake.streams[1].is_cancelled


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [True, False])
async def test_shutdown(url: str, fake: Any, stream: bool) -> None:
    """Who is cut off when the time to shut down is over gets a clear word. A stream is told where
    it goes on, anything else is cancelled."""
    fake.gate = asyncio.Semaphore(0)
    body = {"prompt": "a", "stream": stream}
    async with asyncio.timeout(10), httpx2.AsyncClient() as http:
        asking = asyncio.create_task(http.post(url + COMPLETIONS, json=body))
        await fake.generating.wait()
        fake.stop_server()
        answer = await asking
    assert answer.status_code == (200 if stream else 503)
    assert '"code":"shutting_down"' in answer.text
    if stream:
        error = events_of(answer.text)[-1].json["error"]
        assert f"/v1/streams/cmpl-{fake.streams[0].request_id.hex()}" in error["message"]
    assert fake.streams[0].is_detached == stream
    assert fake.streams[0].is_cancelled != stream


class TestQuietStream:
    """Signs of life on a stream without news."""

    @pytest.fixture
    def settings(self) -> ServeSettings:
        return ServeSettings(keep_alive_s=0.01)

    @pytest.mark.anyio
    async def test_keep_alive(self, url: str, fake: Any) -> None:
        """Comment lines come while nothing else does, and clients skip them."""
        fake.gate = asyncio.Semaphore(0)
        body = {"prompt": "a", "stream": True}
        lines = []
        async with (
            asyncio.timeout(10),
            httpx2.AsyncClient() as http,
            http.stream("POST", url + COMPLETIONS, json=body) as answer,
        ):
            async for line in answer.aiter_lines():
                lines.append(line)
                if lines.count(": keep-alive") == 3:
                    for _ in range(5):
                        fake.gate.release()
        assert lines.count(": keep-alive") >= 3
        assert "data: [DONE]" in lines
        text = [json.loads(x[6:])["choices"][0]["text"] for x in lines if x.startswith("data: {")]
        assert "".join(text) == " 0 1 2 3 4"

    @pytest.mark.anyio
    async def test_the_official_client_goes_on(self, api: openai.AsyncOpenAI, fake: Any) -> None:
        """Signs of life between two chunks are no events to it."""
        fake.gate = asyncio.Semaphore(0)
        text = ""
        async with asyncio.timeout(10):
            stream = await api.completions.create(model="lift/tiny", prompt="a", stream=True)
            async for chunk in stream:
                text += chunk.choices[0].text
                await asyncio.sleep(0.05)
                fake.gate.release()
        assert text == " 0 1 2 3 4"


class TestLimits:
    """Sizes and times of bodies, and how much may be in flight."""

    @pytest.fixture
    def settings(self) -> ServeSettings:
        return ServeSettings(
            max_body_bytes=200_000,  # type: ignore[arg-type]  # a ByteSize is an int
            body_timeout_s=0.05,
            max_requests=2,
            max_requests_per_key=1,
            api_keys=KEYS,
        )

    def test_large_body(self, http: TestClient) -> None:
        """A body over the limit is refused, whether it says its length or not."""
        headers = JSON | {"authorization": "Bearer first-key"}
        large = b'{"prompt":"' + b"a" * 200_000 + b'"}'
        for content in (large, iter([large[:150_000], large[150_000:]])):
            answer = http.post(COMPLETIONS, content=content, headers=headers)
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "body_too_large"

    def test_long_prompt_in_threads(self, http: TestClient) -> None:
        """A body that is parsed and encoded in threads gives the same answer."""
        headers = {"authorization": "Bearer first-key"}
        answer = http.post(COMPLETIONS, json={"prompt": "a" * 100_000}, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        messages = [{"role": "user", "content": "a" * 100_000}]
        answer = http.post("/v1/chat/completions", json={"messages": messages}, headers=headers)
        assert answer.json()["error"]["code"] == "context_length_exceeded"

    @pytest.mark.anyio
    async def test_slow_body(self, url: str) -> None:
        """A body that does not arrive in time is refused and the connection closed."""
        host, port = url.removeprefix("http://").split(":")
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(host, int(port))
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            head += "Authorization: Bearer first-key\r\nContent-Length: 100\r\n\r\n"
            writer.write(head.encode() + b'{"prompt"')
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
        assert answer.startswith(b"HTTP/1.1 408 ") and b'"request_timeout"' in answer

    @pytest.mark.anyio
    async def test_in_flight(self, url: str, fake: Any) -> None:
        """One key may not have more in flight than its share; what ends gives its place back."""
        fake.gate = asyncio.Semaphore(0)
        first, second = ({"authorization": f"Bearer {key}-key"} for key in ("first", "second"))
        body = {"prompt": "a"}
        async with asyncio.timeout(10), httpx2.AsyncClient(base_url=url) as http:
            running = asyncio.create_task(http.post(COMPLETIONS, json=body, headers=first))
            await fake.generating.wait()
            answer = await http.post(COMPLETIONS, json=body, headers=first)
            assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
            many = await http.post(COMPLETIONS, json=body | {"n": 2}, headers=second)
            assert many.status_code == 400  # more than it may ever have
            fake.generating.clear()
            other = asyncio.create_task(http.post(COMPLETIONS, json=body, headers=second))
            await fake.generating.wait()
            for _ in range(20):
                fake.gate.release()
            assert (await running).status_code == (await other).status_code == 200
            assert (await http.post(COMPLETIONS, json=body, headers=first)).status_code == 200


class TestTotalLimit:
    """Without keys all share one limit."""

    @pytest.fixture
    def settings(self) -> ServeSettings:
        return ServeSettings(max_requests=2)

    def test_total(self, http: TestClient) -> None:
        """More choices than may ever be in flight are no matter of waiting."""
        assert http.post(COMPLETIONS, json={"prompt": "a", "n": 2}).status_code == 200
        answer = http.post(COMPLETIONS, json={"prompt": "a", "n": 3})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "n"

    def test_others_count(self) -> None:
        """What others have in flight is a matter of waiting, and is given back."""
        places = Places(None, 2)
        with places.hold("one", 2), pytest.raises(OverloadedError), places.hold("other", 1):
            pass
        with places.hold("other", 2):
            assert places.num_in_flight == 2


class TestKeys:
    """API keys."""

    @pytest.fixture
    def settings(self) -> ServeSettings:
        return ServeSettings(api_keys=KEYS)

    @pytest.mark.parametrize(
        "header",
        [
            *(None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer first-ke", "first-key"),
            *("Basic first-key", "Bearer first-key x", "Bearer " + "x" * 1_000_000, "Bearer \xff"),
        ],
    )
    def test_every_route_is_closed(self, http: TestClient, header: str | None) -> None:
        """Without a known key every route but those that tell of readiness, and the page's empty
        files, is a 401, those that don't exist too."""
        headers = [] if header is None else [(b"authorization", header.encode("latin-1"))]
        paths = paths_of(http.app.routes)  # type: ignore[attr-defined]
        assert {"/health", "/metrics", "/docs", "/openapi.json", COMPLETIONS} <= set(paths)
        for path in [*paths, "/nothing"]:
            for method in ("GET", "POST", "OPTIONS"):
                answer = http.request(method, path, headers=headers)
                if path not in OPEN_PATHS:
                    assert answer.status_code == 401, path
                    assert answer.json()["error"]["code"] == "invalid_api_key"
        assert {path for path in OPEN_PATHS if not path.startswith("/page/")} == {
            "/",
            "/health",
            "/ready",
        }
        assert http.get("/health").status_code == 200

    @pytest.mark.parametrize("key", ["first-key", "second-key"])
    def test_known_key(self, http: TestClient, key: str) -> None:
        """Every known key opens; what is cached by others is not told."""
        headers = {"authorization": f"bearer {key}"}
        answer = http.post(COMPLETIONS, json={"prompt": "a"}, headers=headers)
        assert answer.status_code == 200
        assert "prompt_tokens_details" not in answer.json()["usage"]

    def test_key_file(self, tmp_path: Path) -> None:
        """Keys come from a file, one a line; an empty file does not open the door."""
        path = tmp_path / "keys"
        path.write_text("# ours\n\n  one \ntwo\n")
        keys = ApiKeys.from_settings(ServeSettings(api_key_file=path))
        assert len(keys) == 2 and keys.tenant_of(b"Bearer one")
        path.write_text("# none\n")
        with pytest.raises(ChairliftError, match="no API key"):
            ApiKeys.from_settings(ServeSettings(api_key_file=path))


@pytest.mark.parametrize(
    ("changes", "status", "state"),
    [
        ({}, 200, "ok"),
        ({"worker": None}, 503, "starting"),
        ({"trouble": "away"}, 503, "away"),
        ({"trouble": "wedged"}, 503, "wedged"),
        ({"trouble": "draining"}, 503, "draining"),
    ],
)
def test_health(http: TestClient, fake: Any, changes: Any, status: int, state: str) -> None:
    """Health says whether the worker makes progress; without it requests are refused for now."""
    for name, value in changes.items():
        setattr(fake, name, value)
    answer = http.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (status, state)
    answer = http.post(COMPLETIONS, json={"prompt": "a"})
    assert answer.status_code == status
    if status == 503:
        assert answer.headers["retry-after"] and state in answer.json()["error"]["message"]
        assert http.get("/v1/models").status_code == 503


def test_metrics(http: TestClient, fake: Any) -> None:
    """The worker's figures and the callers' latencies are there under the usual suffixes."""
    http.post(COMPLETIONS, json={"prompt": "a"})
    http.post(COMPLETIONS, json={"prompt": "a", "n": 99})
    http.get("/nothing")
    text = http.get("/metrics").text
    for line in (
        "chairlift:kv_cache_usage_perc 0.6",
        "chairlift:prompt_tokens_total 7.0",
        "chairlift:num_requests_running 0.0",
        "chairlift:num_requests_waiting 0.0",
        "chairlift:generation_tokens_total 0.0",
        "chairlift:prefix_cache_queries_total 0.0",
        "chairlift:prefix_cache_hits_total 0.0",
        "chairlift:num_preemptions_total 0.0",
        "chairlift:spec_decode_num_draft_tokens_total 0.0",
        "chairlift:spec_decode_num_accepted_tokens_total 0.0",
        "chairlift:step_age_seconds 0.0",
        "chairlift:time_to_first_token_seconds_count 1.0",
        "chairlift:inter_token_latency_seconds_count 4.0",
        "chairlift:e2e_request_latency_seconds_count 1.0",
        'chairlift:request_success_total{finished_reason="stop"} 1.0',
        'chairlift:http_requests_total{method="POST",route="/v1/completions",status="400"} 1.0',
        'chairlift:http_requests_total{method="other",route="unknown",status="404"} 1.0',
        'chairlift:http_refusals_total{code="invalid_value"} 1.0',
        'chairlift:tokens_total{kind="prompt"} 7.0',
        'chairlift:tokens_total{kind="cached"} 0.0',
        'chairlift:step_seconds_total{phase="forward"} 3.0',
        'chairlift:requests_refused_total{code="overloaded"} 2.0',
        "chairlift:request_queue_time_seconds_count 1.0",
    ):
        assert line in text, line


def test_two_apps_share_nothing(fake: Any) -> None:
    """Each app has its own registry, so a process can hold several."""
    for _ in range(2):
        with TestClient(create_app(fake, ServeSettings())) as http:
            assert http.get("/metrics").status_code == 200
