"""Responses with the official Python client: real processes, and a model that calls tools."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai.types.responses import Response, ResponseTextDeltaEvent
from pydantic import BaseModel

from tests.integration.test_openai_client import async_client_of, client_of, serving
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{% for tool in tools or () %}{{ tool.function.name }}<tool_call></tool_call>{% endfor %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"place": {"enum": ["Zug", "Chur"]}},
        "required": ["place"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As every test's, but its template knows tools."""
    folder = make_tiny_model(tmp_path_factory.mktemp("tools"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def url(worker: subprocess.Popen[bytes], worker_address: str) -> Iterator[str]:
    with serving(worker_address) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with client_of(url) as one:
        yield one


def asked_of(model: Path, **changes: Any) -> dict[str, Any]:
    """The same tokens every time."""
    extra = {"seed": 7} | changes.pop("extra", {})
    return {"model": model.name, "input": "abc", "extra_body": extra} | changes


LONG = {"ignore_eos": True}


def test_whole_and_streamed_are_one(url: str, client: openai.OpenAI, tiny_model: Path) -> None:
    """From either client, by iteration and by the stream helper, a response is the same."""
    asked = asked_of(tiny_model, max_output_tokens=12, extra=LONG, metadata={"a": "b"})
    whole = client.responses.create(**asked)
    assert whole.status == "incomplete" and whole.usage and whole.usage.output_tokens == 12
    events = list(client.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    said = "".join(event.delta for event in events if isinstance(event, ResponseTextDeltaEvent))
    last = events[-1]
    assert last.type == "response.incomplete" and last.response.metadata == {"a": "b"}
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created" and kinds[-1] == "response.incomplete"

    async def run() -> Response:
        async with async_client_of(url) as other:
            return await other.responses.create(**asked)

    texts = {said, whole.output_text, last.response.output_text, asyncio.run(run()).output_text}
    assert len(texts) == 1 and said


def test_a_required_call(client: openai.OpenAI, tiny_model: Path) -> None:
    """The one tool is called with arguments of its schema; what came of it goes back."""
    asked = asked_of(tiny_model, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    answer = client.responses.create(**asked)
    (call,) = answer.output
    assert call.type == "function_call" and (call.name, call.status) == ("weather", "completed")
    assert json.loads(call.arguments)["place"] in ("Zug", "Chur")
    assert answer.status == "completed" and answer.tool_choice == "required"

    with client.responses.stream(**asked) as stream:
        grown = [e for e in stream if e.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    assert final.output[0].type == "function_call"
    assert final.output[0].arguments == call.arguments == grown[-1].snapshot

    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    history: Any = [{"role": "user", "content": "abc"}, *answer.output, result]
    second = client.responses.create(**asked_of(tiny_model, input=history, max_output_tokens=4))
    assert second.usage and answer.usage
    assert second.usage.input_tokens > answer.usage.input_tokens / 2


def test_parse(client: openai.OpenAI, tiny_model: Path) -> None:
    """A pydantic model goes as the schema, and one comes back; from a stream, too."""

    class Weather(BaseModel):
        place: Literal["Zug", "Chur"]
        is_sunny: bool

    asked = asked_of(tiny_model, text_format=Weather)
    answer = client.responses.parse(**asked)
    assert answer.output_parsed and answer.output_parsed.place in ("Zug", "Chur")
    with client.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_parsed == answer.output_parsed


def test_log_probabilities(client: openai.OpenAI, tiny_model: Path) -> None:
    """They come with the message's tokens, as many as there are."""
    asked = asked_of(tiny_model, max_output_tokens=6, extra=LONG, top_logprobs=2)
    answer = client.responses.create(**asked, include=["message.output_text.logprobs"])
    (message,) = answer.output
    assert message.type == "message" and message.content[0].type == "output_text"
    told = message.content[0].logprobs
    assert told and len(told) == 6 and all(len(one.top_logprobs) == 2 for one in told)


def test_errors(client: openai.OpenAI, tiny_model: Path) -> None:
    """What would need a store is refused by name; what does not fit is the input's fault; a schema
    that can't be held to is the text's."""
    with pytest.raises(openai.BadRequestError) as stored:
        client.responses.create(**asked_of(tiny_model, store=True))
    assert (stored.value.param, stored.value.code) == ("store", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError) as long:
        client.responses.create(**asked_of(tiny_model, input="abc " * 2000))
    assert (long.value.param, long.value.code) == ("input", "context_length_exceeded")
    schema = {"type": "json_schema", "name": "a", "schema": {"type": "nosuch"}}
    with pytest.raises(openai.BadRequestError) as wrong:
        client.responses.create(**asked_of(tiny_model, text={"format": schema}))
    assert (wrong.value.param, wrong.value.code) == ("text", "invalid_grammar")


def test_a_stream_that_fails(client: openai.OpenAI, tiny_model: Path) -> None:
    """After its beginning it ends with the error, and with the failed response."""
    extra = LONG | {"deadline_ms": 150}
    asked = asked_of(tiny_model, max_output_tokens=480, extra=extra)
    try:
        *_, error, last = list(client.responses.create(**asked, stream=True))
    except openai.InternalServerError as early:  # on a busy machine nothing had begun
        assert early.code == "deadline_exceeded"
        return
    assert error.type == "error" and error.code == "deadline_exceeded"
    assert last.type == "response.failed" and last.response.status == "failed"
    assert last.response.error and last.response.error.code == "server_error"
