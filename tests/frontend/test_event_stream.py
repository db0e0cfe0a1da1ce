"""Answers as events, cut anywhere and continued: the whole, each part once."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from chairlift.frontend.api.answer_form import AnswerForm
from chairlift.frontend.api.event_stream import EventStream
from chairlift.frontend.api.narrator import Narrator, narrators
from chairlift.frontend.api.position import ChoicePosition, Position
from chairlift.frontend.api.whole_answer import WholeAnswer
from chairlift.frontend.response_id import Endpoint, ResponseId
from chairlift.frontend.results import Delta
from chairlift.shared.errors import InvalidRequestError, StreamNotFoundError
from chairlift.shared.logprobs import TokenLogprob
from chairlift.shared.messages import MAX_CONTEXT_BYTES, Finish
from tests.frontend.events import Assembled, Event, events_of
from tests.frontend.fake_client import make_tokenizer

PIECES = st.lists(st.text("aé漢🎉 \n", max_size=4), max_size=8)  # the text of each token
TAGGED = st.lists(
    st.sampled_from(
        [
            *("<think>", "hm\n", "</thi", "nk>", "</think>\n", "<tool_call>", "\n", "é", "<"),
            *('{"name": "f", ', '"arguments": {', '"x": 1', "}", "}", "</tool_call>"),
            '<tool_call>{"name": "f", "arguments": {"x": ',
        ]
    ),
    max_size=12,
)
LOGPROBS = st.sampled_from([0.0, -0.5, -1e30, float("nan"), float("-inf")])
TOKENIZER = make_tokenizer()
PROMPT = TOKENIZER.encode("wé")


@dataclass(frozen=True)
class Answer:
    """What the worker made of one request: the pieces of every choice."""

    form: AnswerForm
    pieces: list[list[str]]
    logprobs: list[list[float]]  # as many, and more

    @property
    def response_id(self) -> ResponseId:
        return ResponseId(self.form.endpoint, b"0123456789abcdef")


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    n, num_prompts = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    endpoint: Endpoint = draw(st.sampled_from(["completions", "chat"]))
    is_tagged = endpoint == "chat" and draw(st.booleans())
    each = TAGGED if is_tagged else PIECES
    pieces = draw(st.lists(each, min_size=n * num_prompts, max_size=n * num_prompts))
    form = AnswerForm(
        endpoint=endpoint,
        created=1,
        model="m",
        system_fingerprint="fp",
        num_choices=len(pieces),
        n=n,
        num_prompt_tokens=7,
        has_usage=draw(st.booleans()),
        tells_cached=draw(st.booleans()),
        echo=endpoint == "completions" and draw(st.booleans()),
        num_logprobs=draw(st.integers(-1, 2)),
        returns_token_ids=draw(st.booleans()),
        tool_format="hermes" if is_tagged else "",
        tool_names=("f",) if is_tagged else (),
        reasoning_format="think" if is_tagged else "",
        is_reasoning=is_tagged and draw(st.booleans()),
    )
    few = st.lists(LOGPROBS, min_size=12, max_size=12)
    logprobs = draw(st.lists(few, min_size=len(pieces), max_size=len(pieces)))
    return Answer(form, pieces, logprobs)


def cut(data: st.DataObject, answer: Answer, index: int) -> list[Delta]:
    """Some tokens at a time; the end comes with the last of them or after it."""
    form, pieces, deltas = answer.form, answer.pieces[index], []
    start = 0
    while start < len(pieces):
        end = data.draw(st.integers(start + 1, len(pieces)))
        scores = answer.logprobs[index][start:end] if form.num_logprobs >= 0 else []
        logprobs = [TokenLogprob(score, ((0xE6, score), (7, -2.0))) for score in scores]
        if form.tool_format:  # what is counted as thoughts follows from what tokens spell
            token_ids = TOKENIZER.encode("".join(pieces[start:end]))
            logprobs = [TokenLogprob(-1.0, ())] * (len(token_ids) if form.num_logprobs >= 0 else 0)
        else:
            token_ids = [0xE0 + number for number in range(start, end)]  # no characters alone
        deltas.append(Delta(token_ids, "".join(pieces[start:end]), logprobs=logprobs))
        start = end
    finish = Finish("stop", num_cached_tokens=2)
    last = deltas.pop() if deltas and data.draw(st.booleans()) else Delta([], "")
    deltas.append(replace(last, finish=finish))
    of_prompt = [TokenLogprob(-1.0, ((5, -0.5),))] * (len(PROMPT) - 1)
    return [replace(deltas[0], prompt_logprobs=of_prompt), *deltas[1:]]


def narrators_of(form: AnswerForm) -> list[Narrator]:
    prompts = dict.fromkeys(range(form.num_choices), PROMPT)
    return narrators(form, ResponseId(form.endpoint, bytes(16)), TOKENIZER, prompts)


def write(data: st.DataObject, answer: Answer, after: Position | None) -> list[Event]:
    """One reader's events, the choices' deltas cut and mixed anyhow."""
    stream = EventStream(answer.response_id, answer.form, narrators_of(answer.form), after)
    written = stream.openings()
    coming = {index: cut(data, answer, index) for index in range(len(answer.pieces))}
    for index in [*coming]:
        is_gone = after is not None and after.is_finished(index) and len(coming) > 1
        needs_all = answer.form.tells_cached or answer.form.reasoning_format
        if is_gone and not needs_all and data.draw(st.booleans()):
            del coming[index]
            written += stream.leave_out(index)
    while coming:
        index = data.draw(st.sampled_from(sorted(coming)))
        written += stream.write(index, coming[index].pop(0))
        if not coming[index]:
            del coming[index]
    assert stream.is_complete
    return events_of(written)


@given(st.data())
def test_continued_anywhere_any_number_of_times(data: st.DataObject) -> None:
    """What came up to each cut and what comes after it make the answer: every character, opening,
    end and usage once and in order."""
    answer = data.draw(answers())
    events = write(data, answer, None)
    expected = Assembled(events)
    held: list[Event] = []
    for _ in range(data.draw(st.integers(1, 3))):
        num_taken = data.draw(st.integers(0, len(events)))
        held += events[:num_taken]
        after = Position.parse(held[-1].id) if held else None
        events = write(data, answer, after)
        if held and held[-1].is_done:
            assert [event.data for event in events] == ["[DONE]"]
            held.pop()
    assembled = Assembled(held + events)
    assert assembled.whole == expected.whole
    if answer.form.tool_format:
        return
    echo = "wé" if answer.form.echo else ""
    assert {i: t for i, t in assembled.text.items() if t} == {
        i: text for i, pieces in enumerate(answer.pieces) if (text := echo + "".join(pieces))
    }


@given(st.data())
def test_streamed_as_whole(data: st.DataObject) -> None:
    """A stream's pieces make what the answer in one piece is: texts, tokens, reasons, usage."""
    answer = data.draw(answers())
    streamed = Assembled(write(data, answer, None))
    whole = WholeAnswer(answer.response_id, answer.form, narrators_of(answer.form))
    for index in range(len(answer.pieces)):
        for delta in cut(data, answer, index):
            whole.take(index, delta)
    assert whole.is_complete
    body = json.loads(whole.body())
    beside = [body["prompt_token_ids"]] if "prompt_token_ids" in body else []
    prompts = [one["prompt_token_ids"] for one in body["choices"] if "prompt_token_ids" in one]
    assert prompts + beside == streamed.prompts
    assert not streamed.usages or streamed.usages == [body["usage"]]
    for choice in body["choices"]:
        index = choice["index"]
        message = choice.get("message", {})
        text = choice["text"] if "text" in choice else message["content"] or ""
        assert text == streamed.text.get(index, "")
        assert message.get("reasoning_content", "") == streamed.reasoning.get(index, "")
        assert message.get("tool_calls", []) == streamed.calls.get(index, [])
        assert [choice["finish_reason"]] == streamed.reasons[index]
        assert choice.get("token_ids", []) == streamed.token_ids[index]
        told = {name: column for name, column in (choice["logprobs"] or {}).items() if column}
        streamed_columns = streamed.logprobs.get(index, {})
        assert told == {name: column for name, column in streamed_columns.items() if column}
        if "token_logprobs" in told:
            assert all(one is None or one >= -9999 for one in told["token_logprobs"])


@pytest.mark.parametrize(
    ("text", "is_reasoning", "num_thoughts"),
    [
        ("<think>hm</think>\n\nx", False, 17),
        ("hé</think>x", True, 11),
        ("hm", True, 2),
        ("x<think>hm</think>", False, 0),
        ("", True, 0),
    ],
)
def test_thoughts_are_counted(text: str, is_reasoning: bool, num_thoughts: int) -> None:
    """In tokens, here of one byte each, up to the closing tag or the answer's end."""
    form = AnswerForm(
        endpoint="chat",
        created=1,
        model="m",
        system_fingerprint="f",
        num_choices=1,
        n=1,
        num_prompt_tokens=1,
        reasoning_format="think",
        is_reasoning=is_reasoning,
    )
    whole = WholeAnswer(ResponseId("chat", bytes(16)), form, narrators_of(form))
    whole.take(0, Delta(TOKENIZER.encode(text), text, Finish("length")))
    usage = json.loads(whole.body())["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": num_thoughts}


@given(
    st.lists(
        st.none()
        | st.builds(
            ChoicePosition, st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1), st.booleans()
        ),
        min_size=1,
        max_size=128,
    ),
    st.booleans(),
)
def test_a_position_survives_writing(choices: list[ChoicePosition | None], has_usage: bool) -> None:
    """What is written is read back as it was."""
    position = Position(tuple(choices), has_usage)
    assert Position.parse(str(position)) == position


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "1", "1:", ":1", "1:2:3", "-1:2", "1:2,", ",1:2", "1:2!!", "!", "1:2;", "1:2 "),
        *(
            "1:2\n",
            "\u0661:\u0662",
            "1" * 10 + ":1",
            "1:2..",
            "-.",
            "--",
            ",".join(["-"] * 129),
            "[DONE]",
        ),
    ],
)
def test_malformed_positions(text: str) -> None:
    """Anything that no event had for its id is refused, with what to do."""
    with pytest.raises(InvalidRequestError, match="send the id of the last event"):
        Position.parse(text)


@given(st.text(max_size=20))
def test_any_text_as_position(text: str) -> None:
    """Whatever comes is a position or is refused."""
    with suppress(InvalidRequestError):
        position = Position.parse(text)
        assert Position.parse(str(position)) == position


def test_a_position_of_another_stream() -> None:
    """The number of choices must be that of the stream."""
    answer = AnswerForm(
        endpoint="chat",
        created=1,
        model="m",
        system_fingerprint="f",
        num_choices=2,
        n=2,
        num_prompt_tokens=1,
    )
    with pytest.raises(InvalidRequestError, match="has 1 choices, not the 2 of this stream"):
        EventStream(
            ResponseId("chat", b"0" * 16), answer, narrators_of(answer), Position.parse("1:1")
        )


IMPOSSIBLE = ["4:6", "3:7", "2:9", "9:1", "9:0", "3:5.", "2:4.", "4:8.", "3:6!", "-!"]


@pytest.mark.parametrize("after", IMPOSSIBLE)
@pytest.mark.parametrize("is_at_once", [True, False])
def test_a_position_that_never_was(after: str, is_at_once: bool) -> None:
    """A position beyond the answer, or beside it, is refused as soon as the answer shows it."""
    pieces = [Delta([1], "ab"), Delta([2], "cd"), Delta([3], "ef")]
    if is_at_once:
        pieces = [Delta([1, 2, 3], "abcdef")]
    response_id = ResponseId("completions", b"0" * 16)
    with pytest.raises(InvalidRequestError, match="never the id of an event of this stream"):
        form = form_of(1, has_usage=True)
        stream = EventStream(response_id, form, narrators_of(form), Position.parse(after))
        for delta in pieces:
            stream.write(0, delta)
        stream.write(0, Delta([], "", Finish("stop")))


def test_behind_its_reader() -> None:
    """Until the answer has come to where the reader is, the position is neither right nor wrong."""
    after = Position.parse("2:4,1:2.,-")
    form = form_of(3)
    stream = EventStream(ResponseId("completions", b"0" * 16), form, narrators_of(form), after)
    assert stream.is_behind
    stream.leave_out(1)
    assert stream.write(0, Delta([1], "ab")) == b"" and stream.is_behind
    assert stream.write(0, Delta([2], "cd")) == b"" and not stream.is_behind
    assert events_of(stream.write(0, Delta([3], "ef")))[0].json["choices"][0]["text"] == "ef"


def form_of(num_choices: int, *, has_usage: bool = False) -> AnswerForm:
    return AnswerForm(
        endpoint="completions",
        created=1,
        model="m",
        system_fingerprint="f",
        num_choices=num_choices,
        n=num_choices,
        num_prompt_tokens=1,
        has_usage=has_usage,
    )


def test_forms() -> None:
    """The largest form fits into a context; what is no form is no HTTP stream."""
    form = AnswerForm(
        endpoint="completions",
        created=2**40,
        model="漢" * 256,
        system_fingerprint="f" * 64,
        num_choices=128,
        n=128,
        num_prompt_tokens=2**40,
        num_best=128,
        has_usage=True,
        body_digest="d" * 64,
        echo=True,
        num_logprobs=20,
        num_prompt_logprobs=20,
        returns_token_ids=True,
        grammar_param="g" * 32,
        tool_format="t" * 32,
        tool_names=tuple(f"{number:064}" for number in range(128)),
        reasoning_format="r" * 32,
    )
    assert len(form.encode()) <= MAX_CONTEXT_BYTES
    assert AnswerForm.decode(form.encode()) == form
    for context in (b"", b"{}", b"null", b"\xff", form.encode().replace(b"created", b"creator")):
        with pytest.raises(StreamNotFoundError):
            AnswerForm.decode(context)


@pytest.mark.parametrize("text", ["", "cmpl-", "chat-" + "0" * 32, "cmpl-" + "0" * 31 + "G"])
def test_response_ids(text: str) -> None:
    """An id is a prefix and 16 bytes; its text leads back, its repr does not show it."""
    with pytest.raises(StreamNotFoundError):
        ResponseId.parse(text)
    response_id = ResponseId.draw("chat")
    assert ResponseId.parse(str(response_id)) == response_id
    assert response_id.base.hex() not in repr(response_id)
    assert response_id.of_choice(0) == response_id.base
    assert len({response_id.of_choice(i) for i in range(128)}) == 128
