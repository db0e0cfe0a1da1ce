"""POST /v1/embeddings, with a script instead of a worker: what is asked, answered and refused."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from chairlift.frontend.embedding import Embedding
from chairlift.frontend.results import Delta
from chairlift.shared.errors import InvalidRequestError, OverloadedError, RequestFailedError
from chairlift.shared.messages import Finish
from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import ServeSettings
from tests.frontend.fake_client import MAX_MODEL_LEN

EMBEDDINGS = "/v1/embeddings"
DONE = Delta([], "", Finish("stop"))


def post(http: TestClient, **changes: Any) -> Any:
    return http.post(EMBEDDINGS, json={"input": "abc"} | changes)


def vectors(answer: Any) -> list[Any]:
    return [one["embedding"] for one in answer.json()["data"]]


def scaled(*vector: float) -> Any:
    """To length 1, as near as float32 comes to it."""
    length = math.hypot(*vector)
    return pytest.approx([x / length for x in vector], rel=1e-6, abs=1e-9)


def refusal(answer: Any, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    return dict(answer.json()["error"])


def test_the_answer(http: TestClient, fake: Any) -> None:
    """A list of vectors of length 1 in the order of the inputs, with the tokens that were read."""
    token = fake.tokenizer.encode("c")[0]
    answer = post(http, input=["abc", "c"]).json()
    assert answer.pop("data") == [
        {"object": "embedding", "index": 0, "embedding": scaled(token, 3, 0, -1)},
        {"object": "embedding", "index": 1, "embedding": scaled(token, 1, 0, -1)},
    ]
    usage = {"prompt_tokens": 4, "total_tokens": 4}
    assert answer == {"object": "list", "model": "lift/tiny", "usage": usage}
    assert all(params == SamplingParams(max_tokens=0) for _, params in fake.asked)


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("AB", [[32, 33]]),
        (["AB", "A"], [[32, 33], [32]]),
        ([32, 33], [[32, 33]]),
        ([[32, 33], [7]], [[32, 33], [7]]),
    ],
)
def test_inputs(http: TestClient, fake: Any, given: Any, prompts: list[list[int]]) -> None:
    """Texts and token ids, one or several: each is a request of its own."""
    answer = post(http, input=given)
    assert len(vectors(answer)) == len(prompts)
    assert [prompt for prompt, _ in fake.asked] == prompts
    assert fake.num_made == len(prompts)


def test_base64_is_little_endian_float32(http: TestClient) -> None:
    """The same numbers, in the form that the official clients ask for."""
    (text,) = vectors(post(http, encoding_format="base64"))
    (floats,) = vectors(post(http, encoding_format="float"))
    assert list(struct.unpack("<4f", base64.b64decode(text))) == floats


def test_fewer_dimensions(http: TestClient) -> None:
    """The first of them, of length 1 again; as many as there are is all of them, more is refused,
    and so is none."""
    first, second, *_ = vectors(post(http))[0]
    assert vectors(post(http, dimensions=2)) == [scaled(first, second)]
    assert vectors(post(http, dimensions=4)) == vectors(post(http))
    error = refusal(post(http, dimensions=5))
    assert error["param"] == "dimensions" and "4 dimensions" in error["message"]
    assert refusal(post(http, dimensions=0))["param"] == "dimensions"


def test_pooling(http: TestClient, fake: Any) -> None:
    """The last token's state by default, the mean of all on demand."""
    last, mean = post(http, input=[32, 34]), post(http, input=[32, 34], pooling="mean")
    assert vectors(last) == [scaled(34, 2, 0, -1)]
    assert vectors(mean) == [scaled(33, 2, 0, -1)]
    assert refusal(post(http, pooling="max"))["param"] == "pooling"


def test_how_it_is_served(http: TestClient, fake: Any) -> None:
    """Priority, deadline and salt reach the worker; nothing is kept for anybody."""
    assert post(http, priority=7, deadline_ms=1500, cache_salt="a").status_code == 200
    assert post(http).status_code == 200
    chosen, usual = fake.options
    assert (chosen.priority, chosen.ttl_s, len(chosen.cache_salt)) == (7, 1.5, 32)
    assert (usual.priority, usual.cache_salt, usual.is_resumable) == (0, b"", False)


def test_what_changes_nothing_is_accepted(http: TestClient) -> None:
    """The caller's name for its user, null, and what says nothing."""
    assert post(http, user="u", metadata={}, dimensions=None).status_code == 200


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input", "invalid_value"),
        ({"input": [[]]}, "input", "invalid_value"),
        ({"input": ["a", 7]}, "input", "invalid_value"),
        ({"input": [300]}, "input", "invalid_value"),
        ({"input": [-1]}, "input", "invalid_value"),
        ({"input": ["a"] * 129}, "input", "invalid_value"),
        ({"input": None}, "input", "missing_parameter"),
        ({"input": "a" * (MAX_MODEL_LEN + 1)}, "input", "context_length_exceeded"),
        ({"input": "a" * 100_000}, "input", "context_length_exceeded"),
        ({"input": [[7], [7] * (MAX_MODEL_LEN + 1)]}, "input", "context_length_exceeded"),
        ({"encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ({"dimensions": 1.5}, "dimensions", "invalid_value"),
        ({"priority": 101}, "priority", "invalid_value"),
        ({"deadline_ms": 0}, "deadline_ms", "invalid_value"),
        ({"temperature": 1}, "temperature", "unknown_parameter"),
        ({"stream": False}, "stream", "unknown_parameter"),
        ({"prompt": "a"}, "prompt", "unknown_parameter"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "unsupported_parameter"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refusals(http: TestClient, fake: Any, changes: Any, param: str, code: str) -> None:
    """What can't be is told by name before anything is asked of the worker."""
    error = refusal(post(http, **changes))
    assert (error["param"], error["code"]) == (param, code)
    assert len(error["message"]) < 500 and not fake.asked


def test_another_model(http: TestClient) -> None:
    """One that is not served here."""
    assert refusal(post(http, model="no/such"), 404)["code"] == "model_not_found"


def test_an_input_may_fill_the_context(http: TestClient) -> None:
    """Nothing has to be left for an answer."""
    assert post(http, input="a" * MAX_MODEL_LEN).status_code == 200


@pytest.mark.parametrize(
    ("finish", "status"),
    [
        (Finish("error", code="overloaded", message="full", retry_after_ms=2500), 503),
        (Finish("error", code="deadline_exceeded", message="late"), 504),
        (Finish("error", code="model_output_not_finite", message="NaN"), 500),
    ],
)
def test_failures(http: TestClient, fake: Any, finish: Finish, status: int) -> None:
    """What the worker says of one input is the answer for all, as in other requests."""
    fake.script = lambda *_: [DONE] if fake.streams else [Delta([], "", finish)]
    answer = post(http, input=["a", "b"])
    assert refusal(answer, status)["code"] == finish.code
    assert ("retry-after" in answer.headers) == (status == 503)


def test_no_worker(http: TestClient, fake: Any) -> None:
    """It is said when to come back."""
    fake.trouble = "away"
    answer = post(http)
    assert refusal(answer, 503)["code"] == "worker_unavailable" and answer.headers["retry-after"]


def test_what_is_refused_midway_leaves_nothing(
    http: TestClient, fake: Any, monkeypatch: Any
) -> None:
    """When the second input finds no room the first is cancelled."""
    generate = fake.generate

    def full_after_one(*args: Any) -> Any:
        if fake.streams:
            raise OverloadedError("full", retry_after_s=3)
        return generate(*args)

    monkeypatch.setattr(fake, "generate", full_after_one)
    answer = post(http, input=["a", "b"])
    assert refusal(answer, 503)["code"] == "overloaded" and answer.headers["retry-after"] == "3"
    assert fake.streams[0].is_cancelled


@pytest.mark.anyio
async def test_one_failure_cancels_the_others(api: openai.AsyncOpenAI, fake: Any) -> None:
    """The request fails at once, though the others would go on."""
    fake.gate = asyncio.Semaphore(0)
    failing = [Delta([], "", Finish("error", code="step_failed", message="oh"))]
    fake.script = lambda *_: failing if len(fake.streams) == 1 else [Delta([], ""), DONE]
    async with asyncio.timeout(10):
        with pytest.raises(openai.InternalServerError):
            await api.embeddings.create(model="lift/tiny", input=["a", "b", "c"])
    first, _, third = fake.streams
    assert first.is_cancelled and third.is_cancelled


@pytest.mark.anyio
async def test_hanging_up_cancels(url: str, fake: Any) -> None:
    """Every input's request, and no task is left."""
    fake.gate = asyncio.Semaphore(0)
    fake.script = lambda *_: [Delta([], ""), DONE]
    async with asyncio.timeout(10):
        before = len(asyncio.all_tasks())
        host, port = url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps({"input": ["a", "b"]}).encode()
        head = f"POST {EMBEDDINGS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        while len(fake.streams) < 2:
            await asyncio.sleep(0)
        assert not any(stream.is_cancelled for stream in fake.streams)
        writer.close()
        for stream in fake.streams:
            await stream.ended.wait()
            assert stream.is_cancelled
        await writer.wait_closed()
        while len(asyncio.all_tasks()) > before:
            await asyncio.sleep(0)
        async with httpx2.AsyncClient() as http:
            figures = (await http.get(f"{url}/metrics")).text
    assert 'route="/v1/embeddings",status="499"} 1.0' in figures


@pytest.mark.anyio
async def test_shutdown(url: str, fake: Any) -> None:
    """Who is cut off when the time to shut down is over gets a clear word."""
    fake.gate = asyncio.Semaphore(0)
    fake.script = lambda *_: [Delta([], ""), DONE]
    async with asyncio.timeout(10), httpx2.AsyncClient() as http:
        asking = asyncio.create_task(http.post(url + EMBEDDINGS, json={"input": "a"}))
        await fake.generating.wait()
        fake.stop_server()
        answer = await asking
    assert refusal(answer, 503)["code"] == "shutting_down"
    assert fake.streams[0].is_cancelled


@pytest.mark.anyio
@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}])
async def test_the_official_client(api: openai.AsyncOpenAI, fake: Any, encoding: Any) -> None:
    """It asks for base64 on its own and gives numbers back; both say the same."""
    answer = await api.embeddings.create(model="lift/tiny", input=["AB", "A"], **encoding)
    first, second = (list(one.embedding) for one in answer.data)
    assert (first, second) == (scaled(33, 2, 0, -1), scaled(32, 1, 0, -1))
    assert answer.usage.total_tokens == 3


class TestLimits:
    """Inputs count as what is in flight."""

    @pytest.fixture
    def settings(self, address: str) -> ServeSettings:
        keys = (SecretStr("first-key"), SecretStr("second-key"))
        return ServeSettings(address=address, api_keys=keys, max_requests_per_key=2)

    def test_places(self, http: TestClient, fake: Any) -> None:
        """More than may be in flight for one key are refused by name, and what was held is free
        again; prefixes are shared within a tenant and a salt alone."""
        key = {"Authorization": "Bearer first-key"}
        for inputs, status in ((["a"] * 2, 200), (["a"] * 3, 400), (["a"] * 2, 200)):
            body = {"input": inputs, "cache_salt": "x"}
            answer = http.post(EMBEDDINGS, json=body, headers=key)
            assert answer.status_code == status
            if status == 400:
                assert refusal(answer)["param"] == "input"
        other = {"Authorization": "Bearer second-key"}
        http.post(EMBEDDINGS, json={"input": "a", "cache_salt": "x"}, headers=other)
        *ours, theirs = (options.cache_salt for options in fake.options)
        assert len(set(ours)) == 1 and theirs not in ours


def test_metrics(http: TestClient) -> None:
    """Each input counts as one that ended, and none as one with a first token."""
    post(http, input=["a", "b"])
    figures = http.get("/metrics").text
    assert 'chairlift:request_success_total{finished_reason="length"} 2.0' in figures
    assert "chairlift:e2e_request_latency_seconds_count 2.0" in figures
    assert "chairlift:time_to_first_token_seconds_count 0.0" in figures
    assert 'chairlift:http_requests_total{method="POST",route="/v1/embeddings"' in figures


def test_a_large_answer_is_written_apart(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread, with the same words."""
    whole = post(http, input=["a", "b"]).content
    monkeypatch.setattr("chairlift.frontend.api.embeddings.THREAD_NUMBERS", 7)
    assert post(http, input=["a", "b"]).content == whole


class TestEmbedding:
    """The result, without HTTP."""

    def test_its_length_is_one(self) -> None:
        """Also of numbers whose squares float32 could not hold."""
        for scale in (1.0, 1e-30, 1e30):
            last = Delta(
                [], "", Finish("stop"), embedding=struct.pack("<2f", 3 * scale, -4 * scale)
            )
            assert list(Embedding.of(last, 1).vector) == pytest.approx([0.6, -0.8])

    def test_zeros_stay(self) -> None:
        """They have no direction."""
        last = Delta([], "", Finish("stop"), embedding=bytes(8))
        embedding = Embedding.of(last, 1)
        assert list(embedding.vector) == [0, 0] and embedding.to_bytes() == bytes(8)

    def test_a_failure_is_raised(self) -> None:
        """As other requests' are."""
        with pytest.raises(RequestFailedError, match="oh"):
            Embedding.of(Delta([], "", Finish("error", code="step_failed", message="oh")), 1)

    def test_it_can_only_become_shorter(self) -> None:
        """No dimension is made up."""
        embedding = Embedding.of(Delta([], "", Finish("stop"), embedding=bytes(8)), 1)
        with pytest.raises(InvalidRequestError, match="2 dimensions"):
            embedding.shortened(3)
