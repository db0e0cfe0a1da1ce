"""Bodies, paths and headers that a machine made up, near to what is valid and far from it."""

from __future__ import annotations

import json
import resource
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chairlift.frontend.api.chat import ChatRequest
from chairlift.frontend.api.completions import CompletionRequest
from chairlift.frontend.api.embeddings import EmbeddingRequest
from chairlift.frontend.api.parameters import NEUTRAL
from chairlift.frontend.api.tokenize import DetokenizeRequest, TokenizeRequest

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
EMBEDDINGS, TOKENIZE, DETOKENIZE = "/v1/embeddings", "/tokenize", "/detokenize"
REQUESTS: dict[str, Any] = {
    COMPLETIONS: CompletionRequest,
    CHAT: ChatRequest,
    EMBEDDINGS: EmbeddingRequest,
    TOKENIZE: TokenizeRequest,
    DETOKENIZE: DetokenizeRequest,
}
VALID: dict[str, dict[str, Any]] = {
    COMPLETIONS: {
        "model": "lift/tiny",
        "prompt": "the lift",
        "max_tokens": 9,
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["x", "yy"],
        "logit_bias": {"7": -2.5},
        "stop_token_ids": [3, 5],
        "seed": 7,
    },
    CHAT: {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}], "name": "zoe"},
            {"role": "assistant", "content": "Hi", "tool_calls": []},
            {"role": "user", "content": "And now?"},
        ],
        "max_completion_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "frequency_penalty": 1,
        "metadata": {"a": "b"},
    },
    EMBEDDINGS: {"input": ["the lift", "goes up"], "dimensions": 3, "pooling": "mean"},
    TOKENIZE: {"messages": [{"role": "user", "content": "Hello"}], "return_token_strs": True},
    DETOKENIZE: {"model": "lift/tiny", "tokens": [1, 2, 3]},
}
ODD_TEXT = ("", "\0", "\ud800", "\uffff", "🚡" * 40, "<|im_start|>system", "a" * 5000, "NaN", "-1")
ODD_NUMBERS = (-1, 0, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 1e308, 5e-324, -0.0, float("nan"))

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(ODD_TEXT),
    st.sampled_from(ODD_NUMBERS),
)
anything = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=12,
)


@st.composite
def bodies(draw: st.DrawFn, path: str) -> Any:
    """A valid one with a few places changed, removed or added, at any depth."""
    body = json.loads(json.dumps(VALID[path]))
    names = st.sampled_from(sorted({*REQUESTS[path].model_fields, *NEUTRAL})) | st.text(max_size=9)
    for _ in range(draw(st.integers(0, 4))):
        place: Any = body
        while isinstance(place, dict | list) and place:
            key = draw(
                st.sampled_from(list(place) if isinstance(place, dict) else range(len(place)))
            )
            change = draw(st.sampled_from(("deeper", "deeper", "replace", "remove", "add")))
            if change == "deeper":
                place = place[key]
                continue
            if change == "remove":
                del place[key]
            elif change == "add" and isinstance(place, dict):
                place[draw(names)] = draw(anything)
            else:
                place[key] = draw(anything)
            break
    return body


def as_sent(body: Any) -> bytes:
    """NaN and lone surrogates included, which are no JSON, or no text."""
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")


def check(http: TestClient, path: str, sent: bytes) -> None:
    answer = http.post(path, content=sent, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404), answer.text[:500]
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"] and len(answer.content) < 2000
    elif answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text
    else:
        assert answer.json().keys() & {"choices", "data", "tokens", "prompt"}


ONE_CLIENT = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("path", VALID)
def test_bodies_near_to_valid(http: TestClient, path: str) -> None:
    """They are served or refused by name, never a failure of ours, and others are served after."""

    @given(bodies(path))
    @ONE_CLIENT
    def run(body: Any) -> None:
        check(http, path, as_sent(body))

    before = peak_mib()
    run()
    check(http, path, as_sent(VALID[path]))
    assert peak_mib() - before < 100


def test_bodies_of_any_kind(http: TestClient) -> None:
    """Values that are no request, and bytes that are no JSON."""

    @given(st.sampled_from(sorted(VALID)), anything.map(as_sent) | st.binary(max_size=60))
    @ONE_CLIENT
    def run(path: str, sent: bytes) -> None:
        check(http, path, sent)

    run()


@pytest.mark.parametrize(
    "sent",
    [
        b"[" * 10_000 + b"]" * 10_000,
        b'{"prompt":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"messages": [{"role": "user", "content": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_002,
        b'{"prompt": "' + b"\\u0000" * 100_000 + b'"}',
        b'{"prompt": ' + b"1" * 1_000_000 + b"}",
        b'{"prompt": "a", "prompt": "b", ' + b'"n": 1, ' * 100_000 + b'"n": 2}',
        b"\xff\xfe{\0}\0",
        b"\xef\xbb\xbf{}",
        b"[" * 4_000_000,
        b" " * 4_000_000,
    ],
    ids=lambda sent: repr(sent[:20]),
)
def test_costly_json(http: TestClient, sent: bytes) -> None:
    """Depth, length and repetition are refused without much ado."""
    before = peak_mib()
    for path in VALID:
        check(http, path, sent)
    assert peak_mib() - before < 100


def test_reading_routes(http: TestClient) -> None:
    """Any path, query, method and header is answered in the API's shape."""
    paths = (
        "/",
        "/health",
        "/metrics",
        "/v1/models",
        "/v1/models/",
        "/v1/streams/",
        "/docs",
        "/v1/",
    )
    words = st.text(st.characters(codec="utf-8"), max_size=30)
    header = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40)
    names = ("last-event-id", "x-request-id", "authorization", "accept", "range", "content-length")

    @given(
        st.sampled_from(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE")),
        st.sampled_from(paths),
        words,
        st.dictionaries(st.sampled_from(("last_event_id", "read_only", "x")) | words, words),
        st.dictionaries(st.sampled_from(names[:-1]), header),
    )
    @ONE_CLIENT
    def run(
        method: str, path: str, rest: str, query: dict[str, str], headers: dict[str, str]
    ) -> None:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        answer = http.request(method, path + quote(rest), params=query, headers=raw)
        assert answer.status_code < 500
        if answer.status_code >= 400 and method != "HEAD":
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

    run()
    check(http, COMPLETIONS, as_sent(VALID[COMPLETIONS]))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
