"""What an answer's text is taken for, in each format, cut anywhere, well formed or not."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chairlift.frontend.replies.call_ids import CallIds
from chairlift.frontend.replies.chunk import Chunk
from chairlift.frontend.replies.reasoning_format import MISTRAL_THINK, THINK, ReasoningFormat
from chairlift.frontend.replies.reply import Reply
from chairlift.frontend.replies.tool_format import (
    HERMES,
    LLAMA_JSON,
    MISTRAL,
    MISTRAL_ARGS,
    PYTHONIC,
    TOOL_FORMATS,
    ToolFormat,
)

NAMES = ["f", "get_weather", "a.b-c"]
Call = tuple[str, str]


def read(
    text: str,
    tool_format: ToolFormat | None = None,
    reasoning: ReasoningFormat | None = None,
    is_reasoning: bool = False,
) -> Chunk:
    reply = Reply(reasoning, tool_format, NAMES, is_reasoning=is_reasoning)
    return reply.feed(text) + reply.finish()


def calls_of(chunk: Chunk) -> list[Call]:
    return [(call.name or "", call.arguments) for call in chunk.calls]


WEATHER = ("get_weather", '{"city": "Zürich"}')
F = ("f", "{}")
H = '{"name": "get_weather", "arguments": {"city": "Zürich"}}'
P = H.replace("arguments", "parameters")

WELL_FORMED: list[tuple[ToolFormat, str, str, list[Call]]] = [
    (HERMES, f"<tool_call>\n{H}\n</tool_call>", "", [WEATHER]),
    (HERMES, f"\n\n<tool_call>{H}</tool_call>\n", "", [WEATHER]),
    (
        HERMES,
        f'Let me see.\n<tool_call>\n{H}\n</tool_call>\n<tool_call>\n{{"arguments": {{}}, '
        '"name": "f"}\n</tool_call>',
        "Let me see.",
        [WEATHER, F],
    ),
    (HERMES, f"<tool_call>\n{H}", "", [WEATHER]),
    (HERMES, f"<tool_call>\n{H}\n<tool_call>{H}\n</tool_call>", "", [WEATHER, WEATHER]),
    (HERMES, f"<tool_call>\n{H[:-1]}\n</tool_call>", "", [WEATHER]),
    (HERMES, f"<tool_call>[{H}, {H}]</tool_call> done", "done", [WEATHER, WEATHER]),
    (HERMES, f'<tool_call>{H[:-1]}, "id": "x"}}</tool_call>', "", [WEATHER]),
    (
        HERMES,
        "2 < 3, <tool_ is not <tool_call\n ok \n",
        "2 < 3, <tool_ is not <tool_call\n ok \n",
        [],
    ),
    (HERMES, f"{H}", H, []),
    (LLAMA_JSON, P, "", [WEATHER]),
    (LLAMA_JSON, f"\n {H}", "", [WEATHER]),
    (LLAMA_JSON, f"<|python_tag|>{P}; {P}", "", [WEATHER, WEATHER]),
    (LLAMA_JSON, f'{{"type": "function", {P[1:]}\n{P}', "", [WEATHER, WEATHER]),
    (LLAMA_JSON, f"[{P}, {P}]", "", [WEATHER, WEATHER]),
    (LLAMA_JSON, f"I call <|python_tag|>{P}", "I call", [WEATHER]),
    (LLAMA_JSON, f"Like this: {P}", f"Like this: {P}", []),
    (PYTHONIC, '[get_weather(city="Zürich")]', "", [WEATHER]),
    (PYTHONIC, "[get_weather(city='Z\\u00fcrich'), f()]", "", [WEATHER, F]),
    (
        PYTHONIC,
        '<|python_start|>[a.b-c(x=[1, -2.5, (3,)], y={"k": None}, z=true)]<|python_end|>',
        "",
        [("a.b-c", '{"x": [1, -2.5, [3]], "y": {"k": null}, "z": true}')],
    ),
    (PYTHONIC, "[f(s='a)]\\'')] and more", "and more", [("f", '{"s": "a)]\'"}')]),
    (PYTHONIC, "[1] says [f()]", "[1] says [f()]", []),
    (MISTRAL, f"[TOOL_CALLS] [{H}, {H}]", "", [WEATHER, WEATHER]),
    (MISTRAL, f'Sure.[TOOL_CALLS][{H[:-1]}, "id": "123456789"}}]', "Sure.", [WEATHER]),
    (MISTRAL_ARGS, '[TOOL_CALLS]get_weather[ARGS]{"city": "Zürich"}', "", [WEATHER]),
    (
        MISTRAL_ARGS,
        'Two:[TOOL_CALLS]f[CALL_ID]9a[ARGS]{}[TOOL_CALLS]get_weather[ARGS]{"city": "Zürich"}',
        "Two:",
        [F, WEATHER],
    ),
    (MISTRAL_ARGS, f"[TOOL_CALLS] [{H}]", "", [WEATHER]),
]


@pytest.mark.parametrize(("tool_format", "text", "content", "calls"), WELL_FORMED)
def test_calls(tool_format: ToolFormat, text: str, content: str, calls: list[Call]) -> None:
    """Calls as models write them are found, and the text around them is content."""
    chunk = read(text, tool_format)
    assert (chunk.content, calls_of(chunk)) == (content, calls)


TEXTS_LIKE_CALLS: list[tuple[ToolFormat, str]] = [
    (HERMES, "<tool_call>"),
    (HERMES, "<tool_call>\n</tool_call>"),
    (HERMES, "<tool_call>{}</tool_call>"),
    (HERMES, '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f"}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "why": 1, "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "name": "f", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"arguments": {"x": 01}, "name": "f"}</tool_call>'),
    (HERMES, '<tool_call>{"arguments": {"x": 1}, "name": '),
    (HERMES, "<tool_call>f()</tool_call>"),
    (HERMES, "</tool_call> <tool_call <"),
    (LLAMA_JSON, '{"name": "Bob", "parameters": {}}'),
    (LLAMA_JSON, '  {"answer": [1, 2]}\n'),
    (LLAMA_JSON, '[1, {"name": "f"}]'),
    (LLAMA_JSON, "<|python_tag|>print(1)"),
    (PYTHONIC, "[f(1)]"),
    (PYTHONIC, "[f(x=open('y'))]"),
    (PYTHONIC, "[f(x=1, x=2)]"),
    (PYTHONIC, "[f(x={1, 2})]"),
    (PYTHONIC, "[f(x=1e999)]"),
    (PYTHONIC, "[f(x='\\ud800')]"),
    (PYTHONIC, "[f(**{'x': 1})]"),
    (PYTHONIC, f"[f(x={'(' * 3000}{')' * 3000})]"),
    (PYTHONIC, "[f(x='never ends"),
    (PYTHONIC, "[unknown()]"),
    (PYTHONIC, "[link](https://example.org)"),
    (MISTRAL, "[TOOL_CALLS] none"),
    (MISTRAL, "[TOOL_CALLS] []"),
    (MISTRAL_ARGS, "[TOOL_CALLS]unknown[ARGS]{}"),
    (MISTRAL_ARGS, "[TOOL_CALLS]f[ARGS]1"),
    (MISTRAL_ARGS, f"[TOOL_CALLS]{'f' * 1000}[ARGS]{{}}"),
]


@pytest.mark.parametrize(("tool_format", "text"), TEXTS_LIKE_CALLS)
def test_what_is_no_call(tool_format: ToolFormat, text: str) -> None:
    """Text that turns out to be no call is content, letter by letter."""
    chunk = read(text, tool_format)
    assert (chunk.content, chunk.calls) == (text, [])


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('<tool_call>{"name": "f", "arguments": {"x": [1, ', "", [("f", '{"x": [1, ')]),
        ('<tool_call>{"name": "f", "arguments": {"x": tru', "", [("f", '{"x": tru')]),
        (
            '<tool_call>{"name": "f", "arguments": {"x": 1,}} </tool_call>',
            "}} </tool_call>",
            [("f", '{"x": 1,')],
        ),
        (f"<tool_call>{H[:-1]}, 1", ", 1", [WEATHER]),
        (f"<tool_call>[{H}, oops]", ", oops]", [WEATHER]),
    ],
)
def test_a_call_that_breaks(text: str, content: str, calls: list[Call]) -> None:
    """Of a call that was begun nothing is taken back; from where it breaks all is content."""
    chunk = read(text, HERMES)
    assert (chunk.content, calls_of(chunk)) == (content, calls)


@pytest.mark.parametrize(
    ("text", "is_open", "thoughts", "content"),
    [
        ("<think>\nhm, hm\n</think>\n\nYes", False, "hm, hm", "Yes"),
        ("\n<think>a <b> </think", False, "a <b> </think", ""),
        ("hm\n</think>\n\nYes", True, "hm", "Yes"),
        ("hm \n", True, "hm \n", ""),
        ("</think>Yes", True, "", "Yes"),
        ("Yes <think>no</think>", False, "", "Yes <think>no</think>"),
        (" <thin", False, "", " <thin"),
        ("\n Yes", False, "", "\n Yes"),
        ("<think>a</think><think>b</think>", False, "a", "<think>b</think>"),
    ],
)
def test_thoughts(text: str, is_open: bool, thoughts: str, content: str) -> None:
    """What stands between the tags at the beginning is reasoning, the prompt's tag counts too."""
    chunk = read(text, None, THINK, is_open)
    assert (chunk.reasoning, chunk.content) == (thoughts, content)
    if "tool" not in text:
        chunk = read(text, HERMES, THINK, is_open)
        assert (chunk.reasoning, chunk.content) == (thoughts, content)


def test_thoughts_before_calls() -> None:
    """A call may follow the thoughts at once, none is looked for within them."""
    chunk = read(f"<think><tool_call>{H}</think>\n{P}", LLAMA_JSON, THINK)
    assert chunk.reasoning == f"<tool_call>{H}" and not chunk.content
    assert calls_of(chunk) == [WEATHER]
    chunk = read(f"[THINK]hm[/THINK][TOOL_CALLS][{H}]", MISTRAL, MISTRAL_THINK)
    assert (chunk.reasoning, calls_of(chunk)) == ("hm", [WEATHER])


def test_without_formats() -> None:
    """Where neither tools nor thoughts are expected nothing is held back or left out."""
    reply = Reply()
    for text in [" \n", "<think>", "{", "[TOOL_CALLS] "]:
        assert reply.feed(text).content == text
    assert not reply.finish()
    no_tools = Reply(None, HERMES, [])
    assert no_tools.feed("<tool_call> ").content == "<tool_call> "


def test_arguments_come_in_fragments() -> None:
    """The name comes with the first brace, the rest of the arguments as the model writes them."""
    reply = Reply(None, HERMES, NAMES)
    ids = CallIds(bytes(16), HERMES)
    parts = ['<tool_call>{"name": "f", ', '"arguments": ', "{", '"x', '": 1', "}", "}</tool_call>"]
    deltas = [reply.feed(part).as_delta(ids) for part in parts]
    first: dict[str, Any] = {"id": ids[0], "type": "function"}
    assert deltas[:2] == [{}, {}]
    assert deltas[2] == {
        "tool_calls": [{"index": 0, **first, "function": {"name": "f", "arguments": "{"}}]
    }
    assert [d.get("tool_calls", [{}])[0].get("function") for d in deltas[3:]] == [
        {"arguments": '"x'},
        {"arguments": '": 1'},
        {"arguments": "}"},
        None,
    ]


def test_as_message() -> None:
    """A whole answer that does nothing but call has null content."""
    ids = CallIds(b"base", MISTRAL)
    message = read(f"[TOOL_CALLS] [{H}]", MISTRAL).as_message(ids)
    assert message["content"] is None and message["refusal"] is None
    (call,) = message["tool_calls"]
    assert call["function"] == {"name": WEATHER[0], "arguments": WEATHER[1]}
    assert read("", MISTRAL).as_message(ids)["content"] == ""
    assert read("hm</think>x", None, THINK, True).as_message(ids) == {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "reasoning_content": "hm",
    }


def test_ids() -> None:
    """Ids follow from the answer's; Mistral's are as short as its templates want them."""
    ids = CallIds(b"one", HERMES)
    assert ids[0] == CallIds(b"one", HERMES)[0] and ids[0].startswith("call_")
    assert len({ids[0], ids[1], CallIds(b"two", HERMES)[0]}) == 3
    short = CallIds(b"one", MISTRAL)[3]
    assert len(short) == 9 and short.isalnum()


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        (f"<tool_call>{H}</tool_call>", "stop", "tool_calls"),
        (f"<tool_call>{H}</tool_call><tool_call>{H[:30]}", "length", "length"),
        (f"<tool_call>{H[:50]}", "stop", "stop"),
        ("hello", "stop", "stop"),
    ],
)
def test_finish_reason(text: str, reason: Any, expected: str) -> None:
    """A complete call turns `stop` into `tool_calls`; what was cut short stays `length`."""
    reply = Reply(None, HERMES, NAMES)
    reply.feed(text)
    reply.finish()
    assert reply.finish_reason(reason) == expected


FRAGMENTS = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", "[THINK]", "[/THINK]", "[TOOL_CALLS]",
    "[ARGS]", "[CALL_ID]", "<|python_tag|>", "<|python_start|>", "<|python_end|>",
    H, P, f"[{H}, ", '{"name": "f", "arguments": ', '{"arguments": ', ', "name": "f"}', '"id": "x"',
    "f", "f(", "[f(x=", "get_weather(city='x')", "'", '"', "\\", "\\u00e9", "{", "}", "[", "]", "(",
    ")", ",", ";", ":", "-1.5e+3", "01", "true", "null", " ", "\n", "<", "word", "é", "🚡",
]  # fmt: skip
ANSWERS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=14).map("".join)
SETTINGS = [
    (tool_format, reasoning, is_reasoning)
    for tool_format in [None, *TOOL_FORMATS.values()]
    for reasoning in [None, THINK, MISTRAL_THINK]
    for is_reasoning in ([False, True] if reasoning else [False])
]


@given(
    setting=st.sampled_from(SETTINGS),
    answer=ANSWERS,
    whole=st.sampled_from(["", *(text for _, text, _, _ in WELL_FORMED)]),
    positions=st.lists(st.floats(0, 1), max_size=6),
)
@example(setting=(HERMES, THINK, False), answer="", whole=f" <think> {H}", positions=[0.3])
def test_cuts_change_nothing(setting: Any, answer: str, whole: str, positions: list[float]) -> None:
    """Between any two places of a text comes what comes letter by letter."""
    tool_format, reasoning, is_reasoning = setting
    text = whole + answer

    def fresh() -> Reply:
        return Reply(reasoning, tool_format, NAMES, is_reasoning=is_reasoning)

    by_letter = fresh()
    letters = [by_letter.feed(letter) for letter in text]
    last = by_letter.finish()
    cuts = sorted({0, len(text), *(round(p * len(text)) for p in positions)})
    reply = fresh()
    for begin, end in pairwise(cuts):
        chunk = reply.feed(text[begin:end])
        expected = sum(letters[begin:end], Chunk())
        assert chunk == expected
    assert reply.finish() == last
    assert reply.finish_reason("stop") == by_letter.finish_reason("stop")


@given(setting=st.sampled_from(SETTINGS), answer=ANSWERS)
def test_nothing_is_lost(setting: Any, answer: str) -> None:
    """Without a call all of the text comes out, but for the tags of thoughts and space at them."""
    _, reasoning, _ = setting
    chunk = read(answer, *setting)
    if chunk.calls:
        return
    if reasoning is None:
        assert chunk.content == answer
    else:
        assert _letters(chunk.reasoning + chunk.content, reasoning) == _letters(answer, reasoning)


def _letters(text: str, reasoning: ReasoningFormat) -> str:
    for tag in reasoning.tags:
        text = text.replace(tag, "")
    return "".join(text.split())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=4)


@given(
    objects=st.lists(OBJECTS, min_size=1, max_size=3),
    indent=st.sampled_from([None, 2]),
    ensure_ascii=st.booleans(),
)
def test_any_json_arguments(objects: list[Any], indent: Any, ensure_ascii: bool) -> None:
    """Arguments come out as the JSON they are, whatever JSON that is."""
    texts = [json.dumps(one, indent=indent, ensure_ascii=ensure_ascii) for one in objects]
    written = [f'{{"name": "f", "arguments": {text}}}' for text in texts]
    answers = {
        HERMES: "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in written),
        LLAMA_JSON: "; ".join(written),
        MISTRAL: f"[TOOL_CALLS] [{', '.join(written)}]",
        MISTRAL_ARGS: "".join(f"[TOOL_CALLS]f[ARGS]{text}" for text in texts),
    }
    for tool_format, answer in answers.items():
        chunk = read(answer, tool_format)
        assert [call.arguments for call in chunk.calls] == texts and not chunk.content


@given(arguments=st.dictionaries(st.sampled_from(["a", "b", "c_1"]), VALUES))
def test_any_python_arguments(arguments: dict[str, Any]) -> None:
    """Literals that Python prints are read back."""
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    (call,) = read(f"[f({written})]", PYTHONIC).calls
    assert json.loads(call.arguments) == arguments
