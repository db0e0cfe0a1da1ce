"""Answers that call tools: streamed, whole, continued, and sent back with the tools' results."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel

from chairlift.shared.settings import ServeSettings
from tests.frontend.conftest import app_over
from tests.frontend.events import Assembled, events_of
from tests.frontend.fake_client import FakeClient
from tests.frontend.speech import ARGUMENTS, FAMILIES, HERMES_CALL, MAX_MODEL_LEN, say

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "Is it warm in Zürich?"}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "parameters": CITY},
}
ASK: dict[str, Any] = {"messages": [USER], "tools": [WEATHER]}
STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": ARGUMENTS},
}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": '{"warm": true}'}


@pytest.fixture
def fake() -> FakeClient:
    return FakeClient(max_model_len=MAX_MODEL_LEN)


def told(answer: Any) -> list[Any]:
    """The choices of a whole answer, as they may have been streamed as well."""
    assert answer.status_code == 200, answer.text
    return [
        (
            one["message"]["content"] or "",
            one["message"].get("tool_calls", []),
            one["finish_reason"],
        )
        for one in answer.json()["choices"]
    ]


def streamed(text: str) -> list[Any]:
    all_of = Assembled(events_of(text))
    assert all_of.num_done == 1 and not all_of.errors
    return [
        (all_of.text[index], all_of.calls.get(index, []), *all_of.reasons[index])
        for index in sorted(all_of.text)
    ]


def prompt_of(fake: FakeClient) -> str:
    return fake.tokenizer.text_of(fake.asked[-1][0])


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("family", FAMILIES)
def test_calls(address: str, family: str, size: int) -> None:
    """Whichever way a model writes a call, and however it comes, it is told in one: streamed and
    whole alike, with an id that the request's key gives."""
    fake = FAMILIES[family].client()
    say(fake, FAMILIES[family].call, size=size)
    key = {"Idempotency-Key": "k"}
    with TestClient(app_over(fake, ServeSettings(address=address))) as http:
        whole = http.post(CHAT, json=ASK, headers=key)
        ((content, calls, reason),) = told(whole)
        assert whole.json()["choices"][0]["message"]["content"] is None
        assert (content, reason) == ("", "tool_calls")
        ((_, streamed_calls, streamed_reason),) = streamed(http.post(CHAT, json=ASK | STREAM).text)
        assert told(http.post(CHAT, json=ASK, headers=key)) == told(whole)
    assert streamed_reason == "tool_calls"
    for (call,) in (calls, streamed_calls):
        assert call["type"] == "function" and call["function"]["name"] == "weather"
        assert json.loads(call["function"]["arguments"]) == json.loads(ARGUMENTS)
    assert calls[0]["id"] != streamed_calls[0]["id"]
    is_short = family.startswith("mistral")
    assert len(calls[0]["id"]) == 9 if is_short else calls[0]["id"].startswith("call_")


def test_chunks(http: TestClient, fake: FakeClient) -> None:
    """A call's first part has id, type and name, the later ones pieces of the arguments alone, and
    the reason stands in a chunk that is empty otherwise."""
    say(fake, HERMES_CALL, size=8)
    events = events_of(http.post(CHAT, json=ASK | {"stream": True}).text)
    deltas = [event.json["choices"][0]["delta"] for event in events[:-1]]
    opening, first, *others, last = deltas
    assert opening == {"role": "assistant", "content": ""} and last == {}
    (begun,) = first["tool_calls"]
    assert begun.keys() == {"index", "id", "type", "function"} and begun["index"] == 0
    assert begun["function"]["name"] == "weather"
    pieces = [begun["function"]["arguments"]]
    for delta in others:
        (call,) = delta["tool_calls"]
        assert delta.keys() == {"tool_calls"} and call.keys() == {"index", "function"}
        assert call["function"].keys() == {"arguments"}
        pieces.append(call["function"]["arguments"])
    assert len(pieces) > 2 and "".join(pieces) == ARGUMENTS


@pytest.mark.parametrize("body", [{}, STREAM], ids=["whole", "stream"])
def test_choices(http: TestClient, fake: FakeClient, body: Any) -> None:
    """Each choice has calls and ids of its own; text stands beside them; an answer cut amid a call
    ends with `length`, and what came of the call is there."""
    two = f"Wait.\n{HERMES_CALL}\n{HERMES_CALL}"
    say(fake, two, HERMES_CALL[:60], "None.")
    answer = http.post(CHAT, json=ASK | {"n": 3} | body)
    choices = streamed(answer.text) if body else told(answer)
    texts, calls, reasons = zip(*choices, strict=True)
    assert texts == ("Wait.", "", "None.") and reasons == ("tool_calls", "stop", "stop")
    assert [len(some) for some in calls] == [2, 1, 0]
    ids = [call["id"] for some in calls for call in some]
    assert len(set(ids)) == 3
    assert ARGUMENTS.startswith(calls[1][0]["function"]["arguments"])
    say(fake, HERMES_CALL[:60], reason="length")
    answer = http.post(CHAT, json=ASK | body)
    ((_, _, reason),) = streamed(answer.text) if body else told(answer)
    assert reason == "length"


def test_tokens_beside_calls(http: TestClient, fake: FakeClient) -> None:
    """Log probabilities and ids of a call's tokens are told, the tags' too, streamed and whole."""
    say(fake, HERMES_CALL, size=3)
    asked = ASK | {"logprobs": True, "top_logprobs": 1, "return_token_ids": True}
    (choice,) = http.post(CHAT, json=asked).json()["choices"]
    token_ids = fake.tokenizer.encode(HERMES_CALL)
    assert choice["token_ids"] == token_ids
    assert len(choice["logprobs"]["content"]) == len(token_ids)
    spelled = b"".join(bytes(one["bytes"]) for one in choice["logprobs"]["content"])
    assert spelled.decode() == HERMES_CALL
    all_of = Assembled(events_of(http.post(CHAT, json=asked | STREAM).text))
    assert all_of.token_ids == {0: token_ids}
    assert all_of.logprobs[0]["content"] == choice["logprobs"]["content"]
    assert all_of.calls[0][0]["function"]["arguments"] == ARGUMENTS


@pytest.mark.anyio
async def test_continued_by_another_frontend(url: str, other_url: str, fake: FakeClient) -> None:
    """After any event, amid a call's arguments too, another frontend gives what follows it: with
    the same ids, each piece once."""
    say(fake, f"So:\n{HERMES_CALL}\n{HERMES_CALL}", HERMES_CALL)
    body = ASK | STREAM | {"n": 2, "logprobs": True}
    async with asyncio.timeout(60), httpx2.AsyncClient() as http:
        events = events_of((await http.post(url + CHAT, json=body)).text)
        expected = Assembled(events).whole
        where = f"{other_url}/v1/streams/{events[0].json['id']}"
        for number, event in enumerate(events[:-1]):
            rest = await http.get(where, headers={"Last-Event-ID": event.id})
            assert rest.status_code == 200, rest.text
            assert Assembled(events[: number + 1] + events_of(rest.text)).whole == expected


class Sight(BaseModel):
    x: int


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["create", "parse", "stream"])
async def test_sent_back(api: openai.AsyncOpenAI, fake: FakeClient, way: str) -> None:
    """What the official client makes of an answer can be sent back as it is, and the template sees
    the calls, with the tools' results."""
    text = "" if way == "parse" else "Wait."
    say(fake, f"{text}\n{HERMES_CALL}")
    user: Any = [USER]
    tool: Any = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    if way == "create":
        answer: Any = await api.chat.completions.create(
            model="lift/tiny", messages=user, tools=[tool]
        )
    elif way == "parse":
        answer = await api.chat.completions.parse(
            model="lift/tiny", messages=user, tools=[tool], response_format=Sight
        )
    else:
        async with api.chat.completions.stream(
            model="lift/tiny", messages=user, tools=[tool]
        ) as stream:
            answer = await stream.get_final_completion()
    message = answer.choices[0].message.model_dump()
    (call,) = message["tool_calls"]
    if way == "parse":
        assert call["function"]["parsed_arguments"] and "parsed" in message
    result = {
        "role": "tool",
        "tool_call_id": call["id"],
        "content": [{"type": "text", "text": "7"}],
    }
    again: Any = [{"role": "developer", "content": "Be brief"}, *user, message, result]
    say(fake, "Yes.")
    answer = await api.chat.completions.create(model="lift/tiny", messages=again, tools=[tool])
    assert answer.choices[0].message.content == "Yes."
    prompt = prompt_of(fake)
    assert prompt.count("<|im_start|>system\n") == 1 and f"assistant\n{text}[{{" in prompt
    assert json.dumps(json.loads(ARGUMENTS), ensure_ascii=False) in prompt
    assert f"<|im_start|>tool\n{call['id']}7" in prompt


@pytest.mark.parametrize(
    "extra",
    [
        {"refusal": None, "annotations": None, "audio": None, "function_call": None},
        {"refusal": None, "annotations": [], "parsed": {"x": 1}, "id": "m"},
        {"reasoning_content": "hm", "content": "So"},
        {"reasoning_content": None, "content": ""},
        {"tool_calls": [{**CALL, "index": 0, "function": {**CALL["function"], "index": 1}}]},  # type: ignore[dict-item]  # a dict's values are objects to it
    ],
)
def test_what_an_answer_may_have(http: TestClient, fake: FakeClient, extra: Any) -> None:
    """Fields that say nothing in an earlier answer are no reason to refuse it."""
    answer = http.post(CHAT, json=ASK | {"messages": [USER, CALLING | extra, RESULT]})
    assert answer.status_code == 200, answer.text
    thoughts = extra.get("reasoning_content") or ""
    assert f"assistant\n{thoughts}{extra.get('content') or ''}[{{" in prompt_of(fake)


def called(**function: Any) -> dict[str, Any]:
    """A message, of which a call differs."""
    return {**CALLING, "tool_calls": [CALL, {**CALL, "function": {"name": "f", **function}}]}


FUNCTION = "messages[1].tool_calls[1].function"
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({**USER, "tool_calls": [CALL]}, "messages[1].tool_calls", "'assistant'"),
    ({**USER, "reasoning_content": "hm"}, "messages[1].reasoning_content", "'assistant'"),
    ({**USER, "tool_call_id": "c"}, "messages[1].tool_call_id", "role 'tool'"),
    ({"role": "tool", "content": "x"}, "messages[1].tool_call_id", "role 'tool'"),
    ({**RESULT, "content": None}, "messages[1].content", "is missing"),
    ({"role": "assistant"}, "messages[1].content", "is missing"),
    ({**CALLING, "tool_calls": []}, "messages[1].content", "is missing"),
    ({**CALLING, "refusal": "no"}, "messages[1].refusal", "not supported"),
    ({**CALLING, "function_call": {}}, "messages[1].function_call", "not supported"),
    ({**CALLING, "x": 1}, "messages[1].x", "unknown parameter"),
    ({"role": "function", "content": "x"}, "messages[1].role", "use tools"),
    ({**CALLING, "tool_calls": [{"type": "custom"}]}, "messages[1].tool_calls[0].id", "required"),
    (called(), f"{FUNCTION}.arguments", "required"),
    (called(arguments={}), f"{FUNCTION}.arguments", "string"),
    (called(arguments="{"), f"{FUNCTION}.arguments", "JSON object"),
    (called(arguments="[]"), f"{FUNCTION}.arguments", "JSON object"),
    (called(arguments='{"a":' * 5000), f"{FUNCTION}.arguments", "JSON object"),
    (called(arguments="{}", x=1), f"{FUNCTION}.x", "unknown parameter"),
]


@pytest.mark.parametrize(("message", "param", "reason"), BAD, ids=lambda one: str(one)[:60])
def test_bad_messages(http: TestClient, message: Any, param: str, reason: str) -> None:
    """What a message may not say is told where it stands, and not repeated."""
    answer = http.post(CHAT, json={"messages": [USER, message]})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param and reason in error["message"], error
    assert len(answer.content) < 500


@pytest.mark.parametrize(
    "arguments", ["", '{"a": "\\ud83d"}', '{"a": 1e999}', '{"a": ' + "9" * 99 + "}"]
)
def test_odd_arguments(http: TestClient, arguments: str) -> None:
    """Whatever a model may have written as arguments can be sent back: half a character, none."""
    answer = http.post(CHAT, json={"messages": [USER, called(arguments=arguments)]})
    assert answer.status_code == 200, answer.text
