"""What is refused, and how: never a 5xx for what the caller did."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chairlift.frontend.results import Delta
from chairlift.shared.errors import ContextLengthError, OverloadedError, RequestFailedError
from chairlift.shared.messages import Finish
from tests.frontend.events import events_of

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
NUMERIC_FIELDS = {
    "n": (1, 8),
    "max_tokens": (1, 900),
    "temperature": (0, 2),
    "top_p": (0.01, 1),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0, 1),
    "seed": (-(2**63), 2**63 - 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.01, 2),
    "min_tokens": (0, 2**31 - 1),
    "best_of": (1, 20),
    "max_completion_tokens": (1, 900),
    "logprobs": (0, 5),
    "top_logprobs": (0, 20),
}
EXTREMES = ["-1", "0", str(2**31), str(2**63), str(2**64), "NaN", "Infinity", "-Infinity"]
EXTREMES += ['"1"', "true", "null", "1e308", "1.5", "[]", "{}", "-0.0", "1e-320", "1" * 5000]


def post(http: TestClient, path: str, **changes: Any) -> Any:
    base: dict[str, Any] = {"prompt": "abc"} if path == COMPLETIONS else {"messages": HELLO}
    return http.post(path, json=base | changes)


def error_in(answer: Any) -> dict[str, Any]:
    """The error, after a look at its shape."""
    body = answer.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    assert isinstance(body["error"]["message"], str) and "Traceback" not in answer.text
    return dict(body["error"])


@pytest.mark.parametrize("field", NUMERIC_FIELDS)
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_extreme_numbers(http: TestClient, path: str, field: str) -> None:
    """Any value of a numeric field is served or refused by name, and never breaks anything."""
    low, high = NUMERIC_FIELDS[field]
    base = '"prompt":"abc"' if path == COMPLETIONS else f'"messages":{json.dumps(HELLO)}'
    for value in [*EXTREMES, str(low), str(high), str(high + 1)]:
        content = f'{{{base},"{field}":{value}}}'.encode()
        answer = http.post(path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400), (field, value, answer.text)
        if answer.status_code == 400 and error_in(answer)["code"] != "invalid_json":
            allowed = {field, "prompt", "messages", "max_tokens"}
            assert error_in(answer)["param"] in allowed, (value, answer.text)


def test_limits_are_allowed(http: TestClient) -> None:
    """The ends of every supported range are served."""
    for field, limits in NUMERIC_FIELDS.items():
        if field not in ("best_of", "max_completion_tokens", "logprobs", "top_logprobs"):
            for value in limits:
                assert post(http, COMPLETIONS, **{field: value}).status_code == 200, (field, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suffix", "x"),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content"}),
        ("audio", {}),
        ("web_search_options", {}),
        ("verbosity", "low"),
        ("guided_decoding_backend", "outlines"),
        ("store", True),
        ("service_tier", "flex"),
        ("chat_template", "{{ x }}"),
        ("use_beam_search", 1),
    ],
)
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_unsupported(http: TestClient, path: str, field: str, value: Any) -> None:
    """A parameter that would change the answer and is not ours is refused by name."""
    answer = post(http, path, **{field: value})
    assert answer.status_code == 400
    error = error_in(answer)
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")


def test_neutral_and_harmless(http: TestClient) -> None:
    """What changes nothing is accepted: defaults spelled out, null, labels."""
    neutral = {
        "logprobs": False,
        "top_logprobs": None,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "store": False,
        "service_tier": "auto",
        "user": "me",
        "metadata": {"a": "b"},
        "safety_identifier": "x",
        "prompt_cache_key": "k",
        "parallel_tool_calls": True,
        "n": None,
        "stop": None,
        "seed": None,
        "stream_options": None,
        "logit_bias": None,
    }
    assert post(http, CHAT, **neutral).status_code == 200
    assert post(http, COMPLETIONS, best_of=2, n=2, stop=[], echo=False).status_code == 200


@pytest.mark.parametrize(
    ("path", "changes", "param", "code"),
    [
        (CHAT, {"temprature": 1}, "temprature", "unknown_parameter"),
        (CHAT, {"prompt": "x"}, "prompt", "unknown_parameter"),
        (CHAT, {"nothing": None}, "nothing", "unknown_parameter"),
        (COMPLETIONS, {"prompt": None}, "prompt", "missing_parameter"),
        (COMPLETIONS, {"prompt": ""}, "prompt", "invalid_value"),
        (COMPLETIONS, {"prompt": []}, "prompt", "invalid_value"),
        (COMPLETIONS, {"prompt": [[]]}, "prompt", "invalid_value"),
        (COMPLETIONS, {"prompt": ["a", 1]}, "prompt", "invalid_value"),
        (COMPLETIONS, {"prompt": [1, True]}, "prompt", "invalid_value"),
        (COMPLETIONS, {"prompt": [-1]}, "prompt", "invalid_value"),
        (COMPLETIONS, {"prompt": [258]}, "prompt", "invalid_value"),
        (COMPLETIONS, {"prompt": ["a"] * 129}, "prompt", "invalid_value"),
        (COMPLETIONS, {"n": 2, "best_of": 1}, "best_of", "invalid_value"),
        (COMPLETIONS, {"best_of": 2, "stream": True}, "best_of", "invalid_value"),
        (COMPLETIONS, {"best_of": 20, "prompt": ["a"] * 7}, "n", "invalid_value"),
        (COMPLETIONS, {"max_tokens": 0}, "max_tokens", "invalid_value"),
        (COMPLETIONS, {"logprobs": 6}, "logprobs", "invalid_value"),
        (COMPLETIONS, {"logprobs": True}, "logprobs", "invalid_value"),
        (COMPLETIONS, {"top_logprobs": 1}, "top_logprobs", "unsupported_parameter"),
        (CHAT, {"echo": True}, "echo", "unsupported_parameter"),
        (CHAT, {"logprobs": 1}, "logprobs", "invalid_value"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        (CHAT, {"stream": True, "prompt_logprobs": 0}, "prompt_logprobs", "invalid_value"),
        (CHAT, {"priority": 101}, "priority", "invalid_value"),
        (CHAT, {"deadline_ms": 0}, "deadline_ms", "invalid_value"),
        (CHAT, {"bad_words": [""]}, "bad_words", "invalid_value"),
        (CHAT, {"bad_words": ["a" * 40]}, "bad_words", "invalid_value"),
        (COMPLETIONS, {"stop": ["a"] * 17}, "stop", "invalid_value"),
        (COMPLETIONS, {"stop": [""]}, "stop", "invalid_value"),
        (COMPLETIONS, {"stop": 5}, "stop", "invalid_value"),
        (COMPLETIONS, {"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        (COMPLETIONS, {"logit_bias": {"258": 1}}, "logit_bias", "invalid_value"),
        (COMPLETIONS, {"logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
        (COMPLETIONS, {"stop_token_ids": [258]}, "stop_token_ids", "invalid_value"),
        (COMPLETIONS, {"stream_options": {}}, "stream_options", "invalid_value"),
        (CHAT, {"stream": "true"}, "stream", "invalid_value"),
        (CHAT, {"messages": []}, "messages", "invalid_value"),
        (CHAT, {"messages": "hi"}, "messages", "invalid_value"),
        (CHAT, {"messages": ["hi"]}, "messages[0]", "invalid_value"),
        (CHAT, {"messages": HELLO * 1025}, "messages", "invalid_value"),
        (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_value"),
    ],
)
def test_bad_values(http: TestClient, path: str, changes: Any, param: str, code: str) -> None:
    """A bad value is refused with the name of its parameter."""
    answer = post(http, path, **changes)
    assert answer.status_code == 400
    error = error_in(answer)
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "tool", "content": "x"}, "role 'tool'"),
        ({"role": "robot", "content": "x"}, "role"),
        ({"role": "user"}, "content"),
        ({"role": "user", "content": 5}, "content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "'image_url'"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "'input_audio'"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "tool_calls"),
        ({"role": "user", "content": "x", "colour": "red"}, "colour"),
    ],
)
def test_bad_messages(http: TestClient, message: Any, said: str) -> None:
    """What a message may not hold is said by name and place."""
    answer = post(http, CHAT, messages=[*HELLO, message])
    assert answer.status_code == 400
    error = error_in(answer)
    assert error["param"].startswith("messages[1]") and said in error["message"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_context_length(http: TestClient, path: str) -> None:
    """What can't fit is refused with the numbers."""
    answer = post(http, path, max_tokens=1000)
    error = error_in(answer)
    assert answer.status_code == 400 and error["code"] == "context_length_exceeded"
    assert "1000" in error["message"]
    full = post(http, COMPLETIONS, prompt=[1] * 1000)
    assert full.status_code == 400 and error_in(full)["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff",
        b'{"prompt":"\\ud800"}',
        b'{"prompt":' + b"[" * 33 + b"]" * 33 + b"}",
        b"[" * 100_000,
    ],
)
def test_no_json(http: TestClient, body: bytes) -> None:
    """A body that is no JSON object, or a bomb, is refused as such."""
    answer = http.post(COMPLETIONS, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert error_in(answer)["code"] == "invalid_json"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    st.dictionaries(
        st.sampled_from([*NUMERIC_FIELDS, "prompt", "messages", "stop", "logit_bias", "stream"]),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
    )
)
def test_any_json(http: TestClient, body: dict[str, Any]) -> None:
    """Whatever JSON comes, the answer is a 200 or a 400."""
    for path in (COMPLETIONS, CHAT):
        content = json.dumps(body).encode()
        answer = http.post(path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400), answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", COMPLETIONS, 405),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_paths_and_methods(http: TestClient, method: str, path: str, status: int) -> None:
    """A wrong path or method has the same error body."""
    answer = http.request(method, path)
    assert answer.status_code == status
    assert error_in(answer)["type"] == "invalid_request_error"


def test_content_type(http: TestClient) -> None:
    """A body that is not declared as JSON is refused, as another site's form could send it."""
    answer = http.post(COMPLETIONS, content=b'{"prompt":"a"}')
    assert answer.status_code == 415
    assert error_in(answer)["code"] == "unsupported_media_type"


def test_unknown_model(http: TestClient) -> None:
    """Another model's name is a 404."""
    answer = post(http, CHAT, model="gpt-x")
    assert answer.status_code == 404 and error_in(answer)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("overloaded", 503, "overloaded"),
        ("context_length_exceeded", 400, "context_length_exceeded"),
        ("invalid_request", 400, "invalid_value"),
        ("step_failed", 500, "step_failed"),
        ("worker_crashed_on_request", 500, "worker_crashed_on_request"),
        ("deadline_exceeded", 504, "deadline_exceeded"),
        ("invalid_grammar", 400, "invalid_grammar"),
    ],
)
def test_refused_by_the_worker(
    http: TestClient, fake: Any, code: str, status: int, told: str
) -> None:
    """A refusal as first news becomes a status, streaming or not."""
    finish = Finish("error", code=code, message="no", retry_after_ms=1500)
    fake.script = lambda *_: [Delta([], "", finish)]
    for stream in (False, True):
        answer = post(http, CHAT, stream=stream)
        assert answer.status_code == status
        assert error_in(answer)["code"] == told
        if code == "overloaded":
            assert answer.headers["retry-after"] == "2"
            assert answer.headers["retry-after-ms"] == "1500"
        if status == 504:  # it would take as long again
            assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OverloadedError("full", retry_after_s=1), 503),
        (ContextLengthError("long"), 400),
        (RequestFailedError("oh", code="x"), 500),
        (ZeroDivisionError("a secret"), 500),
    ],
)
def test_refused_by_the_client(http: TestClient, fake: Any, error: Exception, status: int) -> None:
    """What the engine's client raises becomes a status; the unforeseen shows but a request id."""

    def raise_error(*_: Any) -> list[Delta]:
        raise error

    fake.script = raise_error
    answer = http.post(CHAT, json={"messages": HELLO}, headers={"x-request-id": "mine-1"})
    assert answer.status_code == status
    assert answer.headers["x-request-id"] == "mine-1"
    if isinstance(error, ZeroDivisionError):
        assert "secret" not in answer.text and "mine-1" in error_in(answer)["message"]


def test_failure_within_a_stream(http: TestClient, fake: Any) -> None:
    """After the stream has begun a failure is its last event, which the official client raises."""
    fake.script = lambda *_: [
        Delta([1], "a"),
        Delta([2], "b", Finish("error", code="step_failed", message="oh")),
    ]
    answer = post(http, COMPLETIONS, stream=True)
    assert answer.status_code == 200
    *events, last = events_of(answer.text)
    assert [event.json["choices"][0]["text"] for event in events] == ["a", "b"]
    assert last.json["error"]["code"] == "step_failed"


@pytest.mark.anyio
async def test_official_client_sees_the_failure(api: openai.AsyncOpenAI, fake: Any) -> None:
    """The official client raises APIError on the error event, and BadRequestError on a 400."""
    fake.script = lambda *_: [
        Delta([1], "a"),
        Delta([], "", Finish("error", code="step_failed", message="oh")),
    ]
    stream = await api.completions.create(model="lift/tiny", prompt="a", stream=True)
    with pytest.raises(openai.APIError, match="oh"):
        async for _ in stream:
            pass
    with pytest.raises(openai.BadRequestError) as error:
        await api.completions.create(model="lift/tiny", prompt="a", temperature=3)
    assert error.value.param == "temperature"


def test_stream_that_breaks_off(http: TestClient, fake: Any) -> None:
    """A stream without an end is a failure, never a silent half answer."""
    fake.script = lambda *_: [Delta([1], "a")]
    assert post(http, COMPLETIONS).status_code == 500


def test_insane_request_id(http: TestClient) -> None:
    """A client's request id that could break a log line is replaced."""
    answer = http.get("/health", headers={"x-request-id": "a b\tc" + "d" * 200})
    assert answer.headers["x-request-id"].startswith("req-")


def test_documented(http: TestClient) -> None:
    """The OpenAPI document has both request bodies, and no answer that is never given."""
    document = http.get("/openapi.json").json()
    for path, name in ((COMPLETIONS, "CompletionRequest"), (CHAT, "ChatRequest")):
        operation = document["paths"][path]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{name}"}
        assert "temperature" in document["components"]["schemas"][name]["properties"]
        assert "422" not in operation["responses"]
        assert {"cache_salt", "resumable"} <= set(
            document["components"]["schemas"][name]["properties"]
        )
        assert [one["name"] for one in operation["parameters"]] == [
            "Idempotency-Key",
            "X-Chairlift-Receipt",
        ]
    operation = document["paths"]["/v1/streams/{response_id}"]["get"]
    names = {one["name"]: one["in"] for one in operation["parameters"]}
    assert names == {
        "response_id": "path",
        "Last-Event-ID": "header",
        "last_event_id": "query",
        "read_only": "query",
    }
    assert "text/event-stream" in operation["responses"]["200"]["content"]
    assert http.get("/docs").status_code == 200
