"""Responses as events, cut anywhere and continued: the whole, each part once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from openai.types.responses import Response as OfficialResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from chairlift.frontend.api.answer_form import AnswerForm, what_fits
from chairlift.frontend.api.errors import shutting_down
from chairlift.frontend.api.narrator import Listener
from chairlift.frontend.api.position import Position
from chairlift.frontend.api.response import Response, WholeResponse
from chairlift.frontend.api.response_stream import ResponseStream
from chairlift.frontend.response_id import ResponseId
from chairlift.frontend.results import Delta
from chairlift.shared.errors import InvalidRequestError, RequestFailedError
from chairlift.shared.logprobs import TokenLogprob
from chairlift.shared.messages import MAX_CONTEXT_BYTES, Finish
from tests.frontend.events import Event, events_of
from tests.frontend.fake_client import make_tokenizer

TOKENIZER = make_tokenizer()
RESPONSE_ID = ResponseId("responses", b"0123456789abcdef")
OFFICIAL_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
PLAIN = st.lists(st.sampled_from(["a", "é", "漢🎉", " ", "\n", "bc"]), max_size=8)
TAGGED = st.lists(
    st.sampled_from(
        [
            *("<think>", "hm\n", "</thi", "nk>", "</think>\n", "<tool_call>", "\n", "é", "<"),
            *('{"name": "f", ', '"arguments": {', '"x": 1', "}", "}", "</tool_call>"),
            '<tool_call>{"name": "f", "arguments": {"x": ',
            '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
        ]
    ),
    max_size=12,
)
REPEATED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": 5,
    "metadata": {"a": "b"},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
}


@dataclass(frozen=True)
class Answer:
    """What the worker made of one request."""

    form: AnswerForm
    text: str
    reason: Any = "stop"

    @property
    def response(self) -> Response:
        listener = Listener(0, self.form, RESPONSE_ID, TOKENIZER, [])
        return Response(RESPONSE_ID, self.form, listener, REPEATED)


def form_of(**changes: Any) -> AnswerForm:
    return AnswerForm(
        endpoint="responses",
        created=1,
        model="m",
        system_fingerprint="fp",
        num_choices=1,
        n=1,
        num_prompt_tokens=7,
        **changes,
    )


THINKS = {"reasoning_format": "think"}
CALLS = {"tool_format": "hermes", "tool_names": ("f",)}


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    kind: dict[str, Any] = draw(st.sampled_from([{}, THINKS, CALLS, THINKS | CALLS]))
    if kind.get("reasoning_format"):
        kind = kind | {"is_reasoning": draw(st.booleans())}
    if "tool_names" not in kind:
        kind = kind | {"num_logprobs": draw(st.integers(-1, 2))}
    form = form_of(tells_cached=draw(st.booleans()), **kind)
    text = "".join(draw(TAGGED if form.reasoning_format or form.tool_format else PLAIN))
    return Answer(form, text, draw(st.sampled_from(["stop", "length"])))


def cut(data: st.DataObject, answer: Answer) -> list[Delta]:
    """Some bytes at a time, each a token; a text never ends within a character."""
    spelled, deltas, start = answer.text.encode(), [], 0
    told = 0
    while start < len(spelled):
        end = data.draw(st.integers(start + 1, len(spelled)))
        text = spelled[:end].decode(errors="ignore")
        token_ids = TOKENIZER.encode(answer.text)[start:end]
        logprobs = [TokenLogprob(-float(number), ((7, -2.0),)) for number in range(start, end)]
        has_logprobs = answer.form.num_logprobs >= 0
        deltas.append(Delta(token_ids, text[told:], logprobs=logprobs if has_logprobs else []))
        start, told = end, len(text)
    finish = Finish(answer.reason, num_cached_tokens=2)
    last = deltas.pop() if deltas and data.draw(st.booleans()) else Delta([], "")
    return [*deltas, replace(last, finish=finish)]


def write(data: st.DataObject, answer: Answer, after: Position | None = None) -> list[Event]:
    stream = ResponseStream(answer.response, after)
    written = stream.openings()
    for delta in cut(data, answer):
        written += stream.write(0, delta)
    assert stream.is_complete and not stream.is_behind
    return events_of(written)


def assembled(events: list[Event]) -> list[Any]:
    """Successive deltas as one, without the numbers, which go up by one."""
    told: list[Any] = []
    for number, event in enumerate(events):
        one = event.json
        assert event.name == one["type"] and one.pop("sequence_number") == number
        if "delta" in one and told and told[-1]["type"] == one["type"]:
            told[-1]["delta"] += one["delta"]
            told[-1]["logprobs"] += one.get("logprobs", [])
        else:
            if "delta" in one:
                one.setdefault("logprobs", [])
            told.append(one)
    return told


@given(st.data())
def test_continued_anywhere_any_number_of_times(data: st.DataObject) -> None:
    """What came up to each cut and what comes after it make the stream: every event, character and
    log probability once and in order, and the numbers go on."""
    answer = data.draw(answers())
    events = write(data, answer)
    expected = assembled(events)
    held: list[Event] = []
    for _ in range(data.draw(st.integers(1, 3))):
        held += events[: data.draw(st.integers(0, len(events)))]
        events = write(data, answer, Position.parse(held[-1].id) if held else None)
    assert assembled(held + events) == expected


@given(st.data())
def test_streamed_as_whole(data: st.DataObject) -> None:
    """The last event has what the response in one piece is, and the events before it made that; all
    of it is of the official types."""
    answer = data.draw(answers())
    events = write(data, answer)
    for event in events:
        OFFICIAL_EVENT.validate_python(event.json)
    whole = WholeResponse(answer.response)
    for delta in cut(data, answer):
        whole.take(0, delta)
    assert whole.is_complete
    body = json.loads(whole.body())
    OfficialResponse.model_validate(body)
    assert events[-1].json["response"] == body
    assert events[-1].name == f"response.{body['status']}"
    is_cut = answer.reason == "length"
    assert body["status"] == ("incomplete" if is_cut else "completed")
    check_built(assembled(events), body["output"])
    if not (answer.form.tool_format or answer.form.reasoning_format):
        texts = [part["text"] for item in body["output"] for part in item["content"]]
        assert "".join(texts) == answer.text and len(texts) == bool(answer.text)
        if answer.form.num_logprobs >= 0 and texts:
            told = body["output"][0]["content"][0]["logprobs"]
            assert [one["logprob"] for one in told] == [-float(n) for n in range(len(told))]
            assert len(told) == len(answer.text.encode())


def check_built(events: list[Any], output: list[Any]) -> None:
    """As the official clients build items of events: added, grown, done, one after another."""
    built: list[Any] = []
    for event in events[2:-1]:
        kind = event["type"]
        assert event["output_index"] == len(built) - (kind != "response.output_item.added")
        if kind == "response.output_item.added":
            built.append(event["item"])
        elif kind == "response.content_part.added":
            built[-1]["content"].append(event["part"])
        elif kind == "response.function_call_arguments.delta":
            built[-1]["arguments"] += event["delta"]
        elif "delta" in event:
            built[-1]["content"][0]["text"] += event["delta"]
            if event["logprobs"]:
                built[-1]["content"][0]["logprobs"] += event["logprobs"]
        elif kind == "response.output_item.done":
            assert built[-1] | {"status": event["item"]["status"]} == event["item"]
            built[-1] = event["item"]
        elif kind == "response.content_part.done":
            assert event["part"] == built[-1]["content"][0]
        elif "text" in event:
            assert event["text"] == built[-1]["content"][0]["text"]
        else:
            assert event["arguments"] == built[-1]["arguments"]
    assert built == output


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_what_is_cut_off_is_incomplete(reason: Any) -> None:
    """At the limit the item that was open is incomplete, and a call without its last brace anyway;
    what the next item closed is complete."""
    text = 'hm</think>\nso <tool_call>{"name": "f", "arguments": {"x": 1'
    form = form_of(is_reasoning=True, **THINKS, **CALLS)
    response = Answer(form, text, reason).response
    response.take(Delta(TOKENIZER.encode(text), text, Finish(reason)))
    thoughts, said, call = response.body()["output"]
    assert [thoughts["status"], said["status"], call["status"]] == [
        "completed",
        "completed",
        "incomplete",
    ]
    assert (thoughts["content"][0]["text"], said["content"][0]["text"]) == ("hm", "so")
    assert call["arguments"] == '{"x": 1' and call["call_id"].startswith("call_")
    usage = response.body()["usage"]
    assert usage["output_tokens_details"]["reasoning_tokens"] == len("hm</think>")


def test_thoughts_have_no_log_probabilities() -> None:
    """Only the tokens of what was said are told of."""
    text = "hm</think>so"
    form = form_of(is_reasoning=True, num_logprobs=0, **THINKS)
    response = Answer(form, text).response
    logprobs = [TokenLogprob(-1.0, ())] * len(text)
    response.take(Delta(TOKENIZER.encode(text), text, Finish("stop"), logprobs))
    _, said = response.body()["output"]
    assert [one["token"] for one in said["content"][0]["logprobs"]] == ["s", "o"]


IMPOSSIBLE = [
    "0:30@9",
    "3:12@9",
    "0:12.@9",
    "0:18@9",
    "0:7!@9",
    "0:7@99",
    "0:7",
    "0:7,0:7@3",
    "-@2",
]


@pytest.mark.parametrize("after", IMPOSSIBLE)
def test_a_position_that_never_was(after: str) -> None:
    """A position beyond the response, or of another kind of stream, is refused."""
    with pytest.raises(InvalidRequestError, match="Last-Event-ID"):
        stream = ResponseStream(Answer(form_of(), "").response, Position.parse(after))
        stream.openings()
        for text in ("ab", "cd", "ef"):
            stream.write(0, Delta([1], text))
        stream.write(0, Delta([], "", Finish("stop")))


def test_a_failure_ends_the_response() -> None:
    """With an error event that has our code, and a failed response with what there was."""
    stream = ResponseStream(Answer(form_of(), "").response)
    stream.openings()
    stream.write(0, Delta([1], "ab"))
    error, failed = events_of(stream.fail(RequestFailedError("it broke", code="poisoned"), "r"))
    assert stream.is_complete
    assert error.json == {
        "type": "error",
        "sequence_number": 5,
        "code": "poisoned",
        "message": "it broke",
        "param": None,
    }
    body = failed.json["response"]
    assert failed.name == "response.failed" and body["status"] == "failed"
    assert body["error"] == {"code": "server_error", "message": "it broke"}
    assert body["output"][0]["status"] == "incomplete" and body["usage"] is None
    for event in (error, failed):
        OFFICIAL_EVENT.validate_python(event.json)


@pytest.mark.parametrize(
    "error", [shutting_down(), RequestFailedError("another reads", code="taken_over")]
)
def test_what_ends_for_a_reader_alone_is_no_failure(error: Exception) -> None:
    """The response goes on, so it is not said to have failed."""
    stream = ResponseStream(Answer(form_of(), "").response)
    stream.openings()
    (event,) = events_of(stream.fail(error, "r"))
    assert event.name == "error"


def test_what_does_not_fit_is_left_out_largest_first() -> None:
    """A form has the small things that a response repeats, and of the large ones what fits."""
    tools = [{"type": "function", "name": "f", "description": "é" * 3000}]
    repeated = REPEATED | {"tools": tools, "instructions": "i" * 1000}
    assert what_fits(REPEATED) == REPEATED
    assert what_fits(repeated) == repeated | {"tools": []}
    every = {"tools": tools, "instructions": "i" * 5000, "text": {"a": "b" * 5000}}
    every |= {"metadata": {"a": "b" * 5000}, "tool_choice": {"a": "b" * 5000}}
    kept = what_fits(REPEATED | every)
    assert kept == REPEATED | {"text": None, "metadata": {}}
    assert len(form_of(repeated=kept).encode()) < MAX_CONTEXT_BYTES
