"""Responses as the official client sees them, over a client without a worker."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from chairlift.frontend.results import Delta
from chairlift.shared.messages import Finish
from chairlift.shared.sampling_params import SamplingParams
from tests.frontend.events import events_of
from tests.frontend.fake_client import TALKATIVE, FakeClient, Script, make_tokenizer

TOKENIZER = make_tokenizer()
RESPONSES = "/v1/responses"
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Of a place.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    "strict": False,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Zug"}}\n</tool_call>'
LOGPROBS: Any = ["message.output_text.logprobs"]


@pytest.fixture
def fake() -> FakeClient:
    return FakeClient(TALKATIVE)


def saying(text: str, reason: Any = "stop") -> Script:
    """The text, some bytes at a time."""

    def speak(_: list[int], __: SamplingParams) -> list[Delta]:
        pieces = [text[start : start + 7] for start in range(0, len(text), 7)]
        deltas = [Delta(TOKENIZER.encode(piece), piece) for piece in pieces]
        return [*deltas, Delta([], "", Finish(reason, num_cached_tokens=3))]

    return speak


def asked_of(fake: FakeClient) -> str:
    """What the template made of the newest request."""
    return TOKENIZER.text_of(fake.asked[-1][0])


@pytest.mark.anyio
async def test_a_response(api: openai.AsyncOpenAI, fake: FakeClient) -> None:
    """It has its text, its status, its usage, and what the request said."""
    answer = await api.responses.create(
        model="lift/tiny",
        input="hello",
        instructions="Be kind.",
        max_output_tokens=3,
        temperature=0.5,
        metadata={"order": "7"},
    )
    assert answer.id.startswith("resp_") and answer.output_text == " 0 1 2"
    assert (answer.status, answer.model) == ("incomplete", "lift/tiny")
    assert answer.incomplete_details and answer.incomplete_details.reason == "max_output_tokens"
    assert (answer.instructions, answer.temperature) == ("Be kind.", 0.5)
    assert answer.metadata == {"order": "7"} and answer.max_output_tokens == 3
    assert answer.usage and answer.usage.output_tokens == 3
    assert answer.usage.input_tokens == len(fake.asked[0][0])
    assert answer.usage.input_tokens_details.cached_tokens == 3
    assert '{"role": "system", "content": "Be kind."}' in asked_of(fake)
    assert fake.asked[0][1].max_tokens == 3


@pytest.mark.anyio
async def test_items_of_every_kind(api: openai.AsyncOpenAI, fake: FakeClient) -> None:
    """Thoughts, a message and calls come as items in their order, whole and streamed alike, and can
    be sent back as they are: as one message again."""
    fake.script = saying(f"<think>hm</think>\nLook: {CALL}\n{CALL}")
    asked: Any = {"model": "lift/tiny", "input": "hello", "tools": [WEATHER], "seed": 7}
    extra = {"seed": asked.pop("seed")}
    answer = await api.responses.create(**asked, extra_body=extra)
    kinds = [item.type for item in answer.output]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    thoughts, _, call, other = answer.output
    assert thoughts.type == "reasoning" and thoughts.content
    assert thoughts.content[0].text == "hm" and answer.output_text == "Look:"
    assert call.type == "function_call" and json.loads(call.arguments) == {"place": "Zug"}
    assert call.name == "weather" and call.status == "completed"
    assert other.type == "function_call" and call.call_id != other.call_id
    assert answer.status == "completed" and answer.usage
    assert answer.usage.output_tokens_details.reasoning_tokens == len("<think>hm</think>")

    async with api.responses.stream(**asked, extra_body=extra) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    same = {"id", "call_id"}
    assert [_less(item, same) for item in final.output] == [
        _less(item, same) for item in answer.output
    ]

    results: Any = [
        {"type": "function_call_output", "call_id": one.call_id, "output": "sunny"}
        for one in (call, other)
    ]
    history: Any = [{"role": "user", "content": "hello"}, *answer.output, *results]
    await api.responses.create(model="lift/tiny", input=history)
    _, said, first, _ = asked_of(fake).split("<|im_end|>")[:4]
    turn = json.loads(said.removeprefix("<|im_start|>"))
    assert (turn["content"], turn["reasoning_content"]) == ("Look:", "hm")
    assert [one["id"] for one in turn["tool_calls"]] == [call.call_id, other.call_id]
    assert json.loads(first.removeprefix("<|im_start|>")) == {
        "role": "tool",
        "content": "sunny",
        "tool_call_id": call.call_id,
    }


def _less(item: BaseModel, names: set[str]) -> dict[str, Any]:
    told = item.model_dump(exclude_none=True)
    return {name: told[name] for name in told.keys() - names - {"parsed_arguments"}} | {
        "content": [
            {key: value for key, value in part.items() if key != "parsed"}
            for part in told.get("content", ())
        ]
    }


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("a", [{"role": "user", "content": "a"}]),
        (
            [{"role": "developer", "content": [{"type": "input_text", "text": "b"}] * 2}],
            [{"role": "system", "content": "bb"}],
        ),
        (
            [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]},
                {"role": "user", "content": "u"},
                {"type": "message", "role": "assistant", "content": "x"},
                {"type": "message", "role": "assistant", "content": "y"},
            ],
            [
                {"role": "assistant", "content": "", "reasoning_content": "s"},
                {"role": "user", "content": "u"},
                {"role": "assistant", "content": "x"},
                {"role": "assistant", "content": "y"},
            ],
        ),
    ],
)
def test_input(http: TestClient, fake: FakeClient, given: Any, told: Any) -> None:
    """Items become the messages that the template is given."""
    assert http.post(RESPONSES, json={"input": given}).status_code == 200
    turns = asked_of(fake).split("<|im_end|>")[:-1]
    shown = [json.loads(turn.removeprefix("<|im_start|>")) for turn in turns]
    assert [_less_thinking(one) for one in shown] == told


def _less_thinking(turn: dict[str, Any]) -> dict[str, Any]:
    """As which templates know the same thoughts by another name."""
    return {name: value for name, value in turn.items() if name != "thinking"}


REFUSED: list[tuple[str, Any, str]] = [
    ("store", True, "store is not supported"),
    ("previous_response_id", "resp_1", "previous_response_id is not supported"),
    ("conversation", "conv_1", "conversation is not supported"),
    ("background", True, "background is not supported"),
    ("prompt", {"id": "p"}, "prompt is not supported"),
    ("truncation", "auto", "truncation is not supported"),
    ("n", 2, "n is not supported"),
    ("messages", [], "unknown parameter messages"),
    ("max_tokens", 5, "unknown parameter max_tokens"),
    ("include", ["file_search_call.results"], "include"),
    ("tools[0].type", [{"type": "web_search"}], "a tool can't be 'web_search' here"),
    ("tool_choice", "required", "there are no tools"),
    ("top_logprobs", 2, "goes with message.output_text.logprobs"),
    ("text.verbosity", {"verbosity": "low"}, "verbosity is not supported"),
    ("text.format.schema", {"format": {"type": "json_schema"}}, "schema is missing"),
    (
        "text.format.name",
        {"format": {"type": "text", "name": "a"}},
        "name goes with the type json_schema",
    ),
    ("reasoning.summary", {"summary": "detailed"}, "summary is not supported"),
    ("metadata", {"a": "b" * 513}, "at most 512 characters"),
    ("resumable", True, "resumable is for streams"),
    ("input[0]", [{"type": "item_reference", "id": "i"}], "can't be 'item_reference'"),
    ("input[1].role", [{"role": "user", "content": "a"}, {"role": "tool"}], "should be 'user'"),
    (
        "input[0].content",
        [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}],
        "content of type 'input_image' is not supported",
    ),
    (
        "input[0].encrypted_content",
        [{"type": "reasoning", "summary": [], "encrypted_content": "e"}],
        "encrypted_content is not supported",
    ),
    (
        "input[0].arguments",
        [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}],
        "have to be a JSON object",
    ),
]


@pytest.mark.parametrize(("param", "value", "reason"), REFUSED)
def test_what_is_refused(
    http: TestClient, fake: FakeClient, param: str, value: Any, reason: str
) -> None:
    """By name, and with the reason: what would need a store, what is another endpoint's, what does
    not go together."""
    body = {"input": "a", re.split(r"[.\[]", param)[0]: value}
    answer = http.post(RESPONSES, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert reason in error["message"]
    assert not fake.asked


def test_too_long(http: TestClient) -> None:
    """The input is at fault, whether it can't fit or doesn't."""
    for length in (100_000, 1000):
        error = http.post(RESPONSES, json={"input": "a" * length}).json()["error"]
        assert (error["param"], error["code"]) == ("input", "context_length_exceeded")


def test_tools_are_shown_and_held_to(http: TestClient, fake: FakeClient) -> None:
    """As chats have them, with the grammar that the choice asks for."""
    other = WEATHER | {"name": "time"}
    body: dict[str, Any] = {"input": "a", "tools": [WEATHER, other]}
    choices: list[tuple[Any, str]] = [
        ({"type": "function", "name": "time"}, '"time"'),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "time"}],
            },
            '"time"',
        ),
        ("required", '"weather"'),
    ]
    for choice, name in choices:
        answer = http.post(RESPONSES, json=body | {"tool_choice": choice}).json()
        assert answer["tool_choice"] == choice and answer["tools"] == body["tools"]
        assert '"function": {' in asked_of(fake)
        grammar = fake.asked[-1][1].grammar
        assert grammar and name in grammar.source.replace("\\", "")
    assert http.post(RESPONSES, json=body | {"tool_choice": "none"}).status_code == 200
    assert "weather" not in asked_of(fake)
    refused = http.post(RESPONSES, json=body | {"include": LOGPROBS}).json()["error"]
    assert refused["param"] == "include"


@pytest.mark.anyio
async def test_parse(api: openai.AsyncOpenAI, fake: FakeClient) -> None:
    """The official client's structured output: a schema goes, an object comes."""

    class Place(BaseModel):
        name: str

    fake.script = saying('{"name": "Zug"}')
    answer = await api.responses.parse(model="lift/tiny", input="where?", text_format=Place)
    assert answer.output_parsed == Place(name="Zug")
    grammar = fake.asked[0][1].grammar
    assert grammar and grammar.kind == "json_schema" and "name" in grammar.source
    assert answer.text and answer.text.format and answer.text.format.type == "json_schema"


def test_null_is_the_default_inside_too(http: TestClient) -> None:
    """Also of a field whose name in Python is another."""
    text = {"format": {"type": "text", "schema": None, "strict": None}}
    assert http.post(RESPONSES, json={"input": "a", "text": text}).status_code == 200


def test_sampling_and_extensions(http: TestClient, fake: FakeClient) -> None:
    """What the other endpoints take for the sampler is taken here too."""
    asked = {"seed": 7, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.5, "stop": ["x"]}
    body = {"input": "a", "priority": 3, "deadline_ms": 2000, **asked}
    effort = {"reasoning": {"effort": "low", "summary": "auto"}}
    kwargs = {"chat_template_kwargs": {"switch": "on"}}
    answer = http.post(RESPONSES, json=body | effort | kwargs).json()
    assert answer["reasoning"] == {"effort": "low", "summary": None}
    params, options = fake.asked[0][1], fake.options[0]
    assert (params.seed, params.top_k, params.stop) == (7, 5, ("x",))
    assert (options.priority, options.ttl_s) == (3, 2.0)
    assert "lowon" in asked_of(fake)


@pytest.mark.anyio
async def test_log_probabilities(api: openai.AsyncOpenAI) -> None:
    """With every token of the message, as many of the likeliest as were asked for."""
    answer = await api.responses.create(
        model="lift/tiny", input="a", include=LOGPROBS, top_logprobs=2, max_output_tokens=3
    )
    (message,) = answer.output
    assert message.type == "message" and message.content[0].type == "output_text"
    told = message.content[0].logprobs
    assert told and [len(one.top_logprobs) for one in told] == [2, 2, 2]


def test_events_are_the_official_ones(http: TestClient, fake: FakeClient) -> None:
    """Each has its type's fields, its name and a number; there is no [DONE]."""
    fake.script = saying(f"<think>hm</think>\nLook: {CALL}")
    body = {"input": "a", "stream": True, "tools": [WEATHER]}
    events = events_of(http.post(RESPONSES, json=body).text)
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for number, event in enumerate(events):
        adapter.validate_python(event.json)
        assert event.json["sequence_number"] == number and event.name == event.json["type"]
    assert events[-1].name == "response.completed"
    Response.model_validate(events[-1].json["response"])


@pytest.mark.anyio
async def test_continued_on_another_frontend(url: str, other_url: str) -> None:
    """The rest of the stream, with numbers that go on, whichever event was the last."""
    async with httpx2.AsyncClient() as http:
        body = {"input": "a", "stream": True, "resumable": True, "metadata": {"a": "b"}}
        events = events_of((await http.post(f"{url}{RESPONSES}", json=body)).text)
        response_id = events[0].json["response"]["id"]
        for number, event in enumerate(events):
            headers = {"Last-Event-ID": event.id}
            rest = await http.get(f"{other_url}/v1/streams/{response_id}", headers=headers)
            assert rest.status_code == 200
            told = events_of(rest.text)
            numbers = [one.json["sequence_number"] for one in told]
            assert numbers == list(range(number + 1, number + 1 + len(told)))
            if told:
                assert told[-1].json["response"] == events[-1].json["response"]
        for position in ("0:3", "9:999@3"):
            headers = {"Last-Event-ID": position}
            refused = await http.get(f"{other_url}/v1/streams/{response_id}", headers=headers)
            assert refused.status_code == 400


def test_large_repetitions_stay_with_the_first_stream(http: TestClient) -> None:
    """A continued stream's response has no tools when they are too large to be kept with it."""
    large = WEATHER | {"parameters": {"type": "object", "description": "d" * 300}}
    tools = [large | {"name": f"f{number}"} for number in range(20)]
    body = {
        "input": "a",
        "stream": True,
        "resumable": True,
        "tools": tools,
        "tool_choice": "none",
        "metadata": {"a": "b"},
    }
    events = events_of(http.post(RESPONSES, json=body).text)
    first, last = events[0].json["response"], events[-1].json["response"]
    assert first["tools"] == last["tools"] == tools
    rest = http.get(f"/v1/streams/{first['id']}", headers={"Last-Event-ID": events[3].id})
    told = events_of(rest.text)[-1].json["response"]
    assert told == last | {"tools": []}


def failing(code: str) -> Callable[[list[int], SamplingParams], list[Delta]]:
    def fail(_: list[int], __: SamplingParams) -> list[Delta]:
        return [Delta([1], "a"), Delta([], "", Finish("error", code=code, message="it broke"))]

    return fail


@pytest.mark.anyio
async def test_a_failure(api: openai.AsyncOpenAI, fake: FakeClient) -> None:
    """Whole it is a status; in a stream an error event with our code, then the failed response."""
    fake.script = failing("worker_crashed_on_request")
    with pytest.raises(openai.InternalServerError) as failed:
        await api.responses.create(model="lift/tiny", input="a")
    assert failed.value.code == "worker_crashed_on_request"
    fake.gate = None
    stream = await api.responses.create(model="lift/tiny", input="a", stream=True)
    *_, error, last = [event async for event in stream]
    assert error.type == "error" and error.code == "worker_crashed_on_request"
    assert last.type == "response.failed" and last.response.error
    assert last.response.error.message == "it broke"


def test_a_key_makes_two_requests_one(http: TestClient, fake: FakeClient) -> None:
    """Asked again it is the same response, which no other endpoint's request can join."""
    key = {"Idempotency-Key": "k"}
    body = {"input": "a", "metadata": {"a": "b"}}
    first, second = (http.post(RESPONSES, json=body, headers=key).json() for _ in range(2))
    assert first["id"] == second["id"] and first["output"] == second["output"]
    other = http.post(RESPONSES, json=body | {"metadata": {}}, headers=key)
    assert other.status_code == 409 and fake.num_made <= 2
