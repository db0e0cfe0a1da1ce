"""Tools, thoughts and formats with the official Python client, against real processes.

The models are random: what an answer has to be shows in its grammar, and a bias on the tokens that
end it keeps it short.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.integration.test_openai_client import async_client_of, client_of
from tests.integration.tool_models import (
    CONSTRAINED,
    HERMES,
    MISTRAL,
    MISTRAL_ARGS,
    NOW_CALL,
    PYTHONIC,
    THINKING,
    Served,
    only,
)

pytestmark = pytest.mark.slow

END = "<|end|>"
USER: dict[str, Any] = {"role": "user", "content": "How warm will it be in Zürich?"}


class Wind(BaseModel):
    knots: Annotated[int, Field(ge=0, le=99)]
    direction: Literal["N", "E", "S", "W"]


class Forecast(BaseModel):
    """What it will be like."""

    city: Literal["Zürich", "東京", 'the "Hook"']
    is_warm: bool
    wind: Wind | None
    degrees: Annotated[list[Literal[-5, 0, 25]], Field(min_length=1, max_length=3)]


class Weather(BaseModel):
    """Tells the weather."""

    city: Literal["Zürich", "東京", 'the "Hook"']
    days: Annotated[int, Field(ge=1, le=14)]
    units: Annotated[list[Literal["°C", "</tool_call>"]], Field(max_length=2)]


class Now(BaseModel):
    zone: Literal["UTC", "CET"]


WEATHER: Any = openai.pydantic_function_tool(Weather, name="weather")
NOW: Any = openai.pydantic_function_tool(Now, name="now")
LATER: dict[str, Any] = {"type": "function", "function": {"name": "later"}}
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (WEATHER, NOW)}
SCHEMAS["later"] = {"type": "object", "maxProperties": 0}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def asked(served: Served, seed: int = 7, **changes: Any) -> dict[str, Any]:
    """A chat that ends soon after it may."""
    fields = {
        "model": served.model.name,
        "messages": [USER],
        "max_tokens": 600,
        "seed": seed,
        "logit_bias": served.bias({END: 6}),
    }
    return fields | changes


def asked_to_call(served: Served, seed: int = 7, **changes: Any) -> dict[str, Any]:
    fields = {"tools": [WEATHER, NOW, LATER], "tool_choice": "required", **changes}
    return asked(served, seed, **fields)


def called(choice: Any) -> list[tuple[str, str]]:
    calls = choice.message.tool_calls or []
    return [(call.function.name, call.function.arguments) for call in calls]


def check_calls(choice: Any, names: Iterable[str] = SCHEMAS) -> None:
    """There are some, and each is of one of these tools, as its schema has it."""
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert choice.message.tool_calls
    for call in choice.message.tool_calls:
        assert call.type == "function" and call.function.name in names
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    ids = [call.id for call in choice.message.tool_calls]
    assert len(set(ids)) == len(ids)


@only(*CONSTRAINED)
def test_a_required_call_conforms(served: Served) -> None:
    """Whatever a random model calls is one of the tools, with arguments as its schema has them."""
    names, counts = set(), set()
    with client_of(served.url) as client:
        for end in (6, -1, -2, -3, -4):  # until it calls more than once
            bias = served.bias({END: end, "</think>": 6})
            request = asked_to_call(served, n=8, max_tokens=2000, logit_bias=bias)
            for choice in client.chat.completions.create(**request).choices:
                check_calls(choice)
                names |= {name for name, _ in called(choice)}
                counts.add(len(called(choice)))
            if len(names) > 1 and len(counts) > 1:
                return
    raise AssertionError(f"always the same: {names}, {counts}")


@only(*CONSTRAINED)
def test_a_named_call_is_the_only_one(served: Served) -> None:
    """With a tool named there is one call, of that tool, as with parallel calls forbidden."""
    one_call: list[dict[str, Any]] = [
        {"tool_choice": named("weather")},
        {"parallel_tool_calls": False},
    ]
    with client_of(served.url) as client:
        for seed in range(4):
            request = asked_to_call(served, seed, logit_bias={}, **one_call[seed % 2])
            (choice,) = client.chat.completions.create(**request).choices
            check_calls(choice, ["weather"] if seed % 2 == 0 else SCHEMAS)
            assert len(called(choice)) == 1


@only(*CONSTRAINED)
def test_streamed_calls_are_the_whole_answers(served: Served) -> None:
    """What the client's helper puts together, or anyone by index, is what comes in one piece; a
    call's id and name come once, before its arguments."""
    request = asked_to_call(served, n=2, logit_bias=served.bias({END: 1}))
    with client_of(served.url) as client:
        whole = client.chat.completions.create(**request)
        with client.chat.completions.stream(**request) as stream:
            kinds = {event.type for event in stream}
            helped = stream.get_final_completion()
        chunks = list(client.chat.completions.create(**request, stream=True))
    assert "tool_calls.function.arguments.done" in kinds
    calls: dict[tuple[int, int], list[str]] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        for delta in choice.delta.tool_calls or ():
            assert delta.function
            place = (choice.index, delta.index)
            if place not in calls:
                assert delta.id and delta.type == "function" and delta.function.name
                calls[place] = [delta.function.name, ""]
            else:
                assert delta.id is None and delta.function.name is None
            calls[place][1] += delta.function.arguments or ""
    for index in range(2):
        check_calls(whole.choices[index])
        assert called(helped.choices[index]) == called(whole.choices[index])
        assembled = [tuple(calls[place]) for place in sorted(calls) if place[0] == index]
        assert assembled == called(whole.choices[index])
        assert helped.choices[index].finish_reason == "tool_calls"
    ids = [call.id for choice in whole.choices for call in choice.message.tool_calls or ()]
    assert len(set(ids)) == len(ids)
    is_short = served.kind in (MISTRAL, MISTRAL_ARGS)
    assert all((len(one) == 9) == is_short for one in ids)


@only(*CONSTRAINED)
def test_a_conversation_with_results(served: Served) -> None:
    """A message that called is sent back as the client gave it, with the results of its calls; the
    prompt grows by both, and the next answer may say something or call again."""
    messages: list[Any] = [USER]
    is_single = served.kind.takes_one_call
    with client_of(served.url) as client:
        num_prompt_tokens = [0]
        for turn in range(3):
            answer = client.chat.completions.create(
                **asked_to_call(served, turn, messages=messages, parallel_tool_calls=not is_single)
            )
            check_calls(answer.choices[0])
            assert answer.usage
            num_prompt_tokens.append(answer.usage.prompt_tokens)
            messages.append(answer.choices[0].message)
            for call in answer.choices[0].message.tool_calls or ():
                result = {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 25}'}
                messages.append(result)
        request = asked(served, messages=messages, max_tokens=9, logit_bias={})
        request |= {"tools": [WEATHER], "tool_choice": "none"}
        said = client.chat.completions.create(**request)
    assert num_prompt_tokens == sorted(set(num_prompt_tokens))
    assert said.choices[0].message.content and not said.choices[0].message.tool_calls


@only(HERMES)
def test_allowed_tools(served: Served) -> None:
    """Some of the tools can be allowed, to be called or to choose from."""
    allowed: dict[str, Any] = {"mode": "required", "tools": [named("later"), named("now")]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    with client_of(served.url) as client:
        answer = client.chat.completions.create(**asked_to_call(served, n=6, tool_choice=choice))
        for one in answer.choices:
            check_calls(one, ["later", "now"])
        allowed["mode"] = "auto"
        request = asked_to_call(served, tool_choice=choice, max_tokens=9)
        answer = client.chat.completions.create(**request)
    assert not answer.choices[0].message.tool_calls


@only(*CONSTRAINED, PYTHONIC)
def test_auto_without_a_call_is_text(served: Served) -> None:
    """A model that need not call may say what it likes, streamed and whole alike."""
    request = asked_to_call(served, tool_choice="auto", tools=[LATER], max_tokens=40, n=2)
    request["logit_bias"] = served.bias({END: -9})
    with client_of(served.url) as client:
        whole = client.chat.completions.create(**request)
        chunks = list(client.chat.completions.create(**request, stream=True))
    for choice in whole.choices:
        parts = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        text = "".join(one.delta.content or "" for one in parts)
        assert choice.message.content == text != ""
        assert choice.message.tool_calls is None
        assert choice.finish_reason == parts[-1].finish_reason in ("stop", "length")


@only(HERMES)
def test_auto_with_strict_tools(served: Served) -> None:
    """A model that begins a call of its own accord has to go on as the strict schema says; what it
    said before is content."""
    bias = served.bias({"<tool_call>": 9, END: 1})
    request = asked_to_call(served, tool_choice="auto", tools=[WEATHER], logit_bias=bias)
    num_calls = 0
    with client_of(served.url) as client:
        for seed in range(4):
            request["seed"] = seed
            (choice,) = client.chat.completions.create(**request).choices
            for name, arguments in called(choice):
                num_calls += 1
                jsonschema.validate(json.loads(arguments), SCHEMAS[name])
            assert (choice.finish_reason == "tool_calls") == bool(called(choice))
    assert num_calls


@only(PYTHONIC)
def test_a_pythonic_call_is_read(served: Served) -> None:
    """Calls written as Python can't be had by force, but are read where they come."""
    bias = served.bias({NOW_CALL: 100})
    request = asked_to_call(served, tool_choice="auto", tools=[{**LATER, **named("now")}])
    request |= {"logit_bias": bias, "stop": ["]"]}
    with client_of(served.url) as client:
        (choice,) = client.chat.completions.create(**request).choices
        with pytest.raises(openai.BadRequestError) as forced:
            client.chat.completions.create(**asked_to_call(served))
    assert called(choice) == [("now", "{}")] and choice.finish_reason == "tool_calls"
    assert forced.value.param == "tool_choice"


@only(HERMES)
def test_parsed_formats_and_calls(served: Served) -> None:
    """parse() and the stream helper make the models that they were given, of n answers."""
    with client_of(served.url) as client:
        for seed in range(3):
            request = asked(served, seed, response_format=Forecast, n=2)
            parsed = client.chat.completions.parse(**request)
            with client.chat.completions.stream(**request) as stream:
                streamed = stream.get_final_completion()
            for choice, other in zip(parsed.choices, streamed.choices, strict=True):
                assert isinstance(choice.message.parsed, Forecast)
                assert choice.message.parsed == other.message.parsed
                assert choice.finish_reason == "stop"
        request = asked_to_call(served, tools=[WEATHER, NOW], n=2)
        calling = client.chat.completions.parse(**request)
        with client.chat.completions.stream(**request) as stream:
            streamed = stream.get_final_completion()
    for choice, other in zip(calling.choices, streamed.choices, strict=True):
        check_calls(choice)
        arguments = [call.function.parsed_arguments for call in choice.message.tool_calls or ()]
        assert all(isinstance(one, Weather | Now) for one in arguments)
        again = [call.function.parsed_arguments for call in other.message.tool_calls or ()]
        assert arguments == again


@only(HERMES)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the client's, of what it made
def test_tools_beside_a_format(served: Served) -> None:
    """With both, an answer is either calls or what the format says; parse() takes it as it comes,
    and its message can be sent back."""
    kinds = set()
    with client_of(served.url) as client:
        for seed in range(8):
            bias = served.bias({END: 6, "<tool_call>": 3 if seed % 2 else -9})
            request = asked_to_call(served, seed, tools=[WEATHER, NOW], tool_choice="auto")
            request |= {"response_format": Forecast, "logit_bias": bias}
            message = client.chat.completions.parse(**request).choices[0].message
            kinds.add(bool(message.tool_calls))
            if message.tool_calls:
                assert message.parsed is None
            else:
                assert isinstance(message.parsed, Forecast)
            results = [
                {"role": "tool", "tool_call_id": call.id, "content": "25"}
                for call in message.tool_calls or ()
            ]
            client.chat.completions.create(
                **asked(served, messages=[USER, message, *results], max_tokens=1)
            )
    assert kinds == {True, False}


@only(HERMES)
def test_other_constraints(served: Served) -> None:
    """Choices, patterns and grammars, which the client passes on as extras."""
    extras: list[tuple[dict[str, Any], set[str]]] = [
        ({"guided_choice": ["yes", "no way"]}, {"yes", "no way"}),
        ({"guided_regex": "(ab|cd){2}"}, {"abab", "abcd", "cdab", "cdcd"}),
        ({"guided_grammar": 'start: "x" | "yy"'}, {"x", "yy"}),
        ({"structured_outputs": {"choice": ["é", "東"]}}, {"é", "東"}),
        ({"guided_json": {"enum": [1, None]}}, {"1", "null"}),
    ]
    with client_of(served.url) as client:
        for extra, expected in extras:
            answer = client.chat.completions.create(**asked(served), extra_body=extra)
            assert answer.choices[0].message.content in expected
            assert answer.choices[0].finish_reason == "stop"
        answer = client.chat.completions.create(
            **asked(served, response_format={"type": "json_object"}, max_tokens=400)
        )
        if answer.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


@only(HERMES)
def test_what_is_cut_is_told(served: Served) -> None:
    """An answer that runs out of tokens amid a call or a format says `length`, whole and streamed,
    and the client's parse() and helper say so, too."""
    request = asked_to_call(served, max_tokens=18, tools=[WEATHER])
    with client_of(served.url) as client:
        (choice,) = client.chat.completions.create(**request).choices
        *_, last = client.chat.completions.create(**request, stream=True)
        assert choice.finish_reason == last.choices[0].finish_reason == "length"
        with pytest.raises(openai.LengthFinishReasonError):
            client.chat.completions.parse(**request)
        with pytest.raises(openai.LengthFinishReasonError):
            client.chat.completions.parse(**asked(served, response_format=Forecast, max_tokens=5))


def asked_to_think(served: Served, seed: int = 7, **changes: Any) -> dict[str, Any]:
    """With the thoughts begun by the prompt or, with even seeds, by the model."""
    words = {END: 6.0, "</think>": 2.5} | ({} if seed % 2 else {"<think>": 4.5})
    request = asked(served, seed, logit_bias=served.bias(words), **changes)
    if seed % 2:
        request["extra_body"] = {"chat_template_kwargs": {"opens_thoughts": True}}
    return request


@only(THINKING)
def test_thoughts_come_before_the_format(served: Served) -> None:
    """Thoughts are told apart and free; the content validates although they come first, whole,
    parsed and streamed, and the usage says how many tokens they took."""
    num_thoughts = 0
    with client_of(served.url) as client:
        for seed in range(6):
            request = asked_to_think(served, seed, response_format=Forecast)
            answer = client.chat.completions.parse(**request)
            (choice,) = answer.choices
            assert isinstance(choice.message.parsed, Forecast) and choice.finish_reason == "stop"
            thoughts = getattr(choice.message, "reasoning_content", "")
            assert "<think>" not in (choice.message.content or "")
            assert answer.usage and answer.usage.completion_tokens_details
            assert bool(answer.usage.completion_tokens_details.reasoning_tokens) >= bool(thoughts)
            num_thoughts += bool(thoughts)
            with client.chat.completions.stream(**request) as stream:
                deltas = [event.chunk.choices[0].delta for event in stream if event.type == "chunk"]
                assert stream.get_final_completion().choices[0].message.parsed == (
                    choice.message.parsed
                )
            parts = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
            assert "".join(parts) == thoughts
            begun = next(i for i, delta in enumerate(deltas) if delta.content)
            assert not any(parts[begun:])
    assert num_thoughts >= 3


@only(THINKING)
def test_thoughts_come_before_calls(served: Served) -> None:
    """A model may think before it calls; what it thought goes back with its calls as the client
    has it."""
    with client_of(served.url) as client:
        for seed in (1, 3):
            tools = {"tools": [WEATHER, NOW, LATER], "tool_choice": "required"}
            request = asked_to_think(served, seed, **tools)
            (choice,) = client.chat.completions.create(**request).choices
            check_calls(choice)
            assert getattr(choice.message, "reasoning_content", "")
            calls = choice.message.tool_calls or ()
            results = [{"role": "tool", "tool_call_id": one.id, "content": "25"} for one in calls]
            request["messages"] = [USER, choice.message, *results]
            check_calls(client.chat.completions.create(**request).choices[0])


@only(THINKING)
def test_thoughts_that_never_end(served: Served) -> None:
    """An answer that is cut while it thinks has no content, and says so."""
    bias = served.bias({"</think>": -100})
    request = asked_to_think(served, 1) | {"max_tokens": 30, "logit_bias": bias}
    with client_of(served.url) as client:
        answer = client.chat.completions.create(**request)
    assert answer.choices[0].finish_reason == "length" and not answer.choices[0].message.content
    assert answer.usage and answer.usage.completion_tokens_details
    assert answer.usage.completion_tokens_details.reasoning_tokens == 30


CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "now", "arguments": "{"}}
BROKEN = {"role": "assistant", "tool_calls": [CALL]}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tools": None}, "tool_choice"),
    ({"tools": []}, "tool_choice"),
    ({"tool_choice": "always"}, "tool_choice"),
    ({"tool_choice": named("nosuch")}, "tool_choice"),
    ({"tools": [NOW, NOW]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"tools": [named("x") | {"strict": True}]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "array"}}}]},
     "tools"),
    ({"tools": [{"type": "function", "function": {"name": "x", "strict": True, "parameters":
      {"type": "object", "properties": {"x": {"pattern": "(?=a)", "type": "string"}},
       "required": ["x"]}}}]}, "tools"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"min_tokens": 3}, "min_tokens"),
    ({"ignore_eos": True}, "ignore_eos"),
    ({"functions": [{"name": "now"}]}, "functions"),
    ({"messages": [USER, BROKEN]}, "messages"),
    ({"messages": [{"role": "tool", "content": "25"}]}, "messages"),
    ({"messages": [{"role": "user", "tool_calls": [CALL], "content": "x"}]}, "messages"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema":
      {"type": "nosuch"}}}, "tools": None, "tool_choice": None}, "response_format"),
    ({"guided_regex": "(", "tools": None, "tool_choice": None}, "guided_regex"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
]  # fmt: skip


@only(HERMES)
@pytest.mark.parametrize(("changes", "param"), REFUSED)
@pytest.mark.parametrize("is_stream", [False, True])
def test_what_is_refused(
    served: Served, changes: dict[str, Any], param: str, is_stream: bool
) -> None:
    """A mistake is a BadRequestError that names the parameter, before any stream begins."""
    request = asked_to_call(served, stream=is_stream)
    with client_of(served.url) as client, pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**request, extra_body=changes)
    assert (refused.value.param or "").split(".")[0].split("[")[0] == param
    assert refused.value.type == "invalid_request_error"


BOMBS: list[dict[str, Any]] = [
    {"guided_json": {"type": "integer", "multipleOf": 99_999_989}},
    {"guided_grammar": "start: a0\n"
     + "".join(f'a{i}: a{i + 1} "x"\n' for i in range(3500)) + 'a3500: "y"'},
]  # fmt: skip


@only(HERMES)
@pytest.mark.parametrize("bomb", BOMBS, ids=["memory", "stack"])
def test_a_grammar_that_would_kill_the_worker(served: Served, bomb: dict[str, Any]) -> None:
    """Is refused, and who else has one is served meanwhile."""
    with client_of(served.url) as client, ThreadPoolExecutor() as threads:
        create = client.chat.completions.create
        refusal = threads.submit(create, **asked(served), extra_body=bomb)
        for seed in range(3):
            extra = {"guided_regex": f"[ab]{{{seed + 3}}}"}
            answer = create(**asked(served, seed), extra_body=extra)
            assert len(answer.choices[0].message.content or "") == seed + 3
        with pytest.raises(openai.BadRequestError, match="simplify it") as refused:
            refusal.result(timeout=60)
    assert [refused.value.param] == list(bomb)


@only(HERMES)
def test_the_async_client_says_the_same(served: Served) -> None:
    """Answers of the async client, side by side, are those of the other one after the other."""

    async def run() -> list[Any]:
        async with async_client_of(served.url) as client:
            whole = [
                client.chat.completions.create(**asked_to_call(served, seed)) for seed in range(4)
            ]
            parsed = [
                client.chat.completions.parse(**asked(served, seed, response_format=Forecast))
                for seed in range(4)
            ]
            answers: list[Any] = await asyncio.gather(*whole, *parsed)
            async with client.chat.completions.stream(**asked_to_call(served, 0)) as stream:
                answers.append(await stream.get_final_completion())
            return answers

    *answers, streamed = asyncio.run(run())
    assert called(streamed.choices[0]) == called(answers[0].choices[0])
    with client_of(served.url) as client:
        for seed in range(4):
            alone = client.chat.completions.create(**asked_to_call(served, seed))
            assert called(alone.choices[0]) == called(answers[seed].choices[0])
            parsed = client.chat.completions.parse(**asked(served, seed, response_format=Forecast))
            assert parsed.choices[0].message.parsed == answers[4 + seed].choices[0].message.parsed
