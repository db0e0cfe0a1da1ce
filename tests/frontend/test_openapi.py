"""The OpenAPI document and the server agree: requests made up from it, answers held against it."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from chairlift.frontend.results import Delta
from chairlift.shared.messages import Finish
from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import ServeSettings
from tests.frontend.conftest import app_over
from tests.frontend.events import events_of
from tests.frontend.fake_client import FakeClient, count_up
from tests.frontend.speech import FAMILIES, say

Json = dict[str, Any]

COMPLETIONS, CHAT, STREAM = "/v1/completions", "/v1/chat/completions", "/v1/streams/{response_id}"
EMBEDDINGS, TOKENIZE, DETOKENIZE = "/v1/embeddings", "/tokenize", "/detokenize"
MODEL = "/v1/models/{model_id}"
JSON = "application/json"
HELLO = [{"role": "user", "content": "hello"}]
RESPONSES = "/v1/responses"
GENERATING = (COMPLETIONS, CHAT, RESPONSES)
CHOOSING = (COMPLETIONS, CHAT)
VALID: dict[str, Json] = {
    COMPLETIONS: {"prompt": "abc"},
    CHAT: {"messages": HELLO},
    RESPONSES: {"input": "abc"},
    EMBEDDINGS: {"input": "abc"},
    TOKENIZE: {"prompt": "abc"},
    DETOKENIZE: {"tokens": [65]},
}
LOOKED_AT = ("/v1/models", "/health", "/ready", "/version", "/metrics")
FAILING_SEED = 13
CONFORMS: list[Any] = [
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
MADE_UP: list[Any] = [not_a_server_error, negative_data_rejection, *CONFORMS]
BOUNDED = settings(
    max_examples=120,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking such cases takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def fail_sometimes(prompt: list[int], params: SamplingParams) -> list[Delta]:
    """With one seed, after the first token."""
    if params.seed != FAILING_SEED:
        return count_up(prompt, params)
    finish = Finish("error", code="worker_crashed_on_request", message="the worker crashed")
    return [Delta([1], "a"), Delta([], "", finish)]


@pytest.fixture(scope="module")
def server() -> FakeClient:
    """What stands behind the app."""
    fake = FakeClient()
    fake.script = fail_sometimes
    return fake


@pytest.fixture(scope="module")
def document(server: FakeClient, tmp_path_factory: pytest.TempPathFactory) -> BaseSchema:
    """As the app serves it, with the app behind it."""
    return document_of(server, address=f"ipc://{tmp_path_factory.mktemp('a')}")


def document_of(fake: FakeClient, **chosen: Any) -> BaseSchema:
    app = app_over(fake, ServeSettings(**chosen))
    key = {"Authorization": "Bearer sk-known"}  # to read it, not to ask
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers=key)


def operation(document: BaseSchema, path: str) -> APIOperation[Any, Any, Any, Any]:
    return document[path]["POST" if path in VALID else "GET"]


def said_in_our_shape(answer: Response) -> None:
    """What is no success is an error as the API tells it."""
    if answer.status_code >= 400:
        assert set(answer.json()) == {"error"}
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"] and error["type"] and error["code"], error


def streamed(case: Case) -> Case:
    """The same, as a stream."""
    if isinstance(case.body, dict):
        case.body["stream"] = True
    return case


def test_the_document_is_one(document: BaseSchema) -> None:
    """It is valid OpenAPI, and tells how every route answers."""
    document.validate()
    raw = document.raw_schema
    assert {*VALID, STREAM, MODEL, *LOOKED_AT} <= raw["paths"].keys()
    for path, operations in raw["paths"].items():
        for one in operations.values():
            kinds = one["responses"]["200"]["content"].values()
            assert kinds and all(kind["schema"] for kind in kinds), path
            assert "422" not in one["responses"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("path", [*VALID, STREAM])
def test_made_up_requests(document: BaseSchema, path: str, mode: GenerationMode) -> None:
    """Whatever the document allows is served or refused in our words, whatever it does not allow is
    refused, and no answer is one that it does not tell of."""
    asked = operation(document, path).as_strategy(generation_mode=mode)
    if path in GENERATING and mode == GenerationMode.POSITIVE:
        asked |= asked.map(streamed)

    @BOUNDED
    @given(asked)
    def run(case: Case) -> None:
        answer = case.call()
        said_in_our_shape(answer)
        case.validate_response(answer, checks=MADE_UP)

    run()


STREAMED_USAGE: Json = {"stream": True, "stream_options": {"include_usage": True}}
EXTRAS: list[Json] = [
    {},
    {"n": 2, "max_tokens": 2},
    {"stream": True},
    {**STREAMED_USAGE, "n": 2, "max_tokens": 2},
    {"stream": True, "seed": FAILING_SEED},
    {"user": "somebody", "temperature": None, "store": False, "suffix": "", "metadata": {"a": "b"}},
]


LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
RESPONSE_EXTRAS: list[Json] = [
    {},
    LOGPROBS,
    {"stream": True, "max_output_tokens": 2},
    {"stream": True, **LOGPROBS},
    {"stream": True, "seed": FAILING_SEED},
    {"instructions": "be kind", "metadata": {"a": "b"}, "previous_response_id": None, "n": 1},
]


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("path", CHOOSING)
def test_answers(document: BaseSchema, path: str, extra: Json) -> None:
    """Answers and the events of streams, failed ones too, are as the document tells."""
    case = operation(document, path).Case(body={**VALID[path], **extra}, media_type=JSON)
    answer = case.call_and_validate(checks=[not_a_server_error, *CONFORMS])
    assert answer.status_code == 200
    if "stream" in extra:
        (*events, last) = events_of(answer.content)
        assert events and last.is_done != ("seed" in extra)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (EMBEDDINGS, {"input": "abc"}),
        (EMBEDDINGS, {"input": [[65, 66], [67]], "encoding_format": "base64", "dimensions": 2}),
        (EMBEDDINGS, {"input": ["a", "b"], "pooling": "mean", "user": "somebody"}),
        (TOKENIZE, {"prompt": "abc", "return_token_strs": True}),
        (TOKENIZE, {"messages": HELLO, "add_generation_prompt": False}),
        (DETOKENIZE, {"tokens": [65, 66]}),
    ],
)
def test_answers_that_are_no_streams(document: BaseSchema, path: str, body: Json) -> None:
    """Vectors, tokens and texts are as the document tells."""
    case = operation(document, path).Case(body=body, media_type=JSON)
    answer = case.call_and_validate(checks=[not_a_server_error, *CONFORMS])
    assert answer.status_code == 200


@pytest.mark.parametrize("extra", [{}, {"stream": True}, STREAMED_USAGE], ids=str)
def test_thoughts_and_calls(address: str, extra: Json) -> None:
    """Of a model that thinks and calls tools, too."""
    family = FAMILIES["hermes thinking"]
    fake = family.client()
    say(fake, family.call)
    tool = {"type": "function", "function": {"name": "weather"}}
    case = operation(document_of(fake, address=address), CHAT).Case(
        body={**VALID[CHAT], "tools": [tool], "logprobs": True, **extra}, media_type=JSON
    )
    answer = case.call_and_validate(checks=[not_a_server_error, *CONFORMS])
    for told in ("reasoning_content", "tool_calls", "arguments"):
        assert told in answer.text


@pytest.mark.parametrize("extra", RESPONSE_EXTRAS, ids=str)
def test_responses(document: BaseSchema, extra: Json) -> None:
    """So are responses and their events, of which the first and the last tell the response."""
    case = operation(document, RESPONSES).Case(body={"input": "abc", **extra}, media_type=JSON)
    answer = case.call_and_validate(checks=[not_a_server_error, *CONFORMS])
    assert answer.status_code == 200
    if "stream" in extra:
        first, *_, last = events_of(answer.content)
        assert first.json["response"]["id"] == last.json["response"]["id"]


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_a_stream_goes_on(document: BaseSchema, path: str) -> None:
    """The rest of a stream has the events that the document tells of."""
    body = {**VALID[path], "stream": True, "resumable": True}
    first = operation(document, path).Case(body=body, media_type=JSON).call()
    opening, _, position, *_ = events_of(first.content)
    told = opening.json.get("response", opening.json)
    rest = operation(document, STREAM).Case(
        path_parameters={"response_id": told["id"]}, headers={"Last-Event-ID": position.id}
    )
    answer = rest.call_and_validate(checks=[not_a_server_error, *CONFORMS])
    assert answer.status_code == 200 and len(events_of(answer.content)) > 1


@pytest.mark.parametrize("path", [*LOOKED_AT, MODEL])
def test_what_is_there_to_look_at(document: BaseSchema, path: str) -> None:
    """The models, the health and the figures are as the document tells."""
    name = {"model_id": "lift/tiny"} if path == MODEL else {}
    case = operation(document, path).Case(path_parameters=name)
    answer = case.call_and_validate(checks=[not_a_server_error, *CONFORMS])
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("status", "changes", "chosen"),
    [
        (400, {"body": {"prompt": "abc", "temperature": 3}}, {}),
        (401, {}, {"api_keys": "sk-known"}),
        (404, {"body": {"prompt": "abc", "model": "no/such"}}, {}),
        (413, {"body": {"prompt": "a" * 1000}}, {"max_body_bytes": 500}),
        (415, {"headers": {"Content-Type": "text/plain"}}, {}),
        (503, {}, {}),
    ],
)
def test_refusals(status: int, changes: Json, chosen: Json, address: str) -> None:
    """What is refused is told as the document says, headers included."""
    fake = FakeClient()
    if status == 503:
        fake.worker = None
    case = operation(document_of(fake, address=address, **chosen), COMPLETIONS).Case(
        **{"body": VALID[COMPLETIONS], "media_type": JSON, **changes}
    )
    answer = case.call()
    assert answer.status_code == status
    said_in_our_shape(answer)
    case.validate_response(answer, checks=CONFORMS)
