"""Templates with tools, thoughts and open ends, after the published ones, against transformers."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from chairlift.frontend.replies.reasoning_format import MISTRAL_THINK, THINK, detect_reasoning
from chairlift.frontend.replies.tool_format import (
    HERMES,
    LLAMA_JSON,
    MISTRAL,
    MISTRAL_ARGS,
    PYTHONIC,
    detect_tool_format,
)
from chairlift.shared.chat_template import ChatTemplate
from chairlift.shared.errors import InvalidRequestError
from chairlift.shared.tokenizer import Tokenizer
from tests.chat_templates import LLAMA, QWEN3, QWEN25
from tests.chat_templates import MISTRAL as MISTRAL_TEMPLATE
from tests.tokenizer_files import BOS_ID, TOKENIZERS, tokenizer_json

TEMPLATES = {"llama": LLAMA, "qwen2.5": QWEN25, "qwen3": QWEN3, "mistral": MISTRAL_TEMPLATE}
SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
]  # fmt: skip
ADDED = ["<tool_call>", "</tool_call>", "<think>", "</think>"]

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells it, in °C & <b>briefly</b>",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
]


def call(arguments: dict[str, Any]) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": json.dumps(arguments)}
    return {"id": "abcdefghi", "type": "function", "function": function}


USER = {"role": "user", "content": "  Is it warm in Zürich? "}
CALLING = {"role": "assistant", "content": None, "tool_calls": [call({"city": "Zürich", "n": 1})]}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": '{"warm": true}'}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "system": [{"role": "system", "content": "Be brief."}, USER],
    "call": [USER, CALLING],
    "result": [USER, CALLING, RESULT],
    "again": [USER, CALLING, RESULT, {"role": "assistant", "content": "Yes. "}, USER],
    "thoughts": [
        USER,
        {"role": "assistant", "reasoning_content": "hm", **CALLING},
        RESULT,
        {"role": "assistant", "content": "Yes, <think>hm</think>\n\nit is.", "tool_calls": None},
    ],
}


@cache
def backend(kind: str) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer.from_str(TOKENIZERS[kind]().to_str())
    made.add_special_tokens(SPECIAL)
    made.add_tokens([AddedToken(token, special=False) for token in ADDED])
    return made


def ours(template: str, kind: str = "byte_level") -> Tokenizer:
    config = {"chat_template": template, "bos_token": "<s>", "eos_token": "</s>"}
    return Tokenizer(tokenizer_json(backend(kind)), json.dumps(config).encode())


def theirs(template: str, kind: str = "byte_level") -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend(kind), chat_template=template, bos_token="<s>", eos_token="</s>"
    )


def parsed(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As users of transformers write it: arguments are objects there."""
    chat = copy.deepcopy(chat)
    for message in chat:
        for one in message.get("tool_calls") or []:
            one["function"]["arguments"] = json.loads(one["function"]["arguments"])
    return chat


@pytest.mark.parametrize("has_tools", [True, False])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_as_transformers(kind: str, template: str, chat: str, has_tools: bool) -> None:
    """Tools, calls and their results give exactly the ids that transformers gives, BOS once."""
    tools = TOOLS if has_tools else None
    for has_prompt in (True, False):
        expected = theirs(TEMPLATES[template], kind).apply_chat_template(
            parsed(CHATS[chat]), tools=tools, add_generation_prompt=has_prompt, return_dict=False
        )
        got = ours(TEMPLATES[template], kind).encode_chat(
            CHATS[chat], tools=tools, add_generation_prompt=has_prompt
        )
        assert got == list(expected)
        assert got.count(BOS_ID) == (template in ("llama", "mistral"))


@pytest.mark.parametrize("text", ["It is", "It is \n", "  ", "<think>hm</think>\n\nIt"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_continued_as_transformers(template: str, text: str) -> None:
    """The final message is left open where its text ends, as trimmed as the template has it."""
    chat = [USER, {"role": "assistant", "content": text}]
    got = ours(TEMPLATES[template]).encode_chat(
        chat, add_generation_prompt=False, continue_final_message=True
    )
    try:
        expected = theirs(TEMPLATES[template]).apply_chat_template(
            chat, continue_final_message=True, return_dict=False
        )
    except ValueError:  # it refuses what the template rewrites
        assert template == "qwen3" and "think" in text
    else:
        assert got == list(expected)


@pytest.mark.parametrize(
    ("template", "kwargs"),
    [
        ("qwen3", {"enable_thinking": False}),
        ("qwen3", {"enable_thinking": True, "unknown": None}),
        ("llama", {"date_string": "1 Jan 2000", "tools_in_user_message": False}),
    ],
)
def test_switches(template: str, kwargs: dict[str, Any]) -> None:
    """A template's own switches can be set."""
    expected = theirs(TEMPLATES[template]).apply_chat_template(
        [USER], tools=TOOLS, add_generation_prompt=True, return_dict=False, **kwargs
    )
    got = ours(TEMPLATES[template]).encode_chat([USER], tools=TOOLS, template_kwargs=kwargs)
    assert got == list(expected)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"messages": 1},
        {"tools": None},
        {"bos_token": "x"},
        {"range": 1},
        {"_x": 1},
        {"a b": 1},
        {"x": [1]},
        {"x": {"y": 1}},
        {"x": "y" * 5000},
        {f"x{i}": i for i in range(40)},
    ],
)
def test_refused_switches(kwargs: dict[str, Any]) -> None:
    """What is ours, no scalar or too much is refused by name."""
    with pytest.raises(InvalidRequestError, match="chat_template_kwargs") as error:
        ours(QWEN3).encode_chat([USER], template_kwargs=kwargs)
    assert error.value.param == "chat_template_kwargs"


@pytest.mark.parametrize(
    "chat",
    [[], [CALLING], [{"role": "user", "content": [{"type": "text", "text": "x"}]}]],
)
def test_what_cant_be_continued(chat: list[dict[str, Any]]) -> None:
    """Only a final message with text can be continued, and not begun anew at the same time."""
    with pytest.raises(InvalidRequestError) as error:
        ours(QWEN25).encode_chat(chat, add_generation_prompt=False, continue_final_message=True)
    assert error.value.param == "continue_final_message"
    with pytest.raises(InvalidRequestError, match="add_generation_prompt"):
        ours(QWEN25).encode_chat([USER], continue_final_message=True)
    with pytest.raises(InvalidRequestError, match="leaves"):
        ours("x").encode_chat([USER], add_generation_prompt=False, continue_final_message=True)


@pytest.mark.parametrize("arguments", ["{", "[]", '"x"', "1"])
def test_arguments_that_are_no_object(arguments: str) -> None:
    """Arguments in an earlier call have to be a JSON object; none at all are an empty one."""
    function = {"name": "f", "arguments": arguments}
    chat = [USER, {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}]
    with pytest.raises(InvalidRequestError, match="'f'"):
        ours(QWEN25).encode_chat(chat)
    function["arguments"] = ""
    tokenizer = ours(QWEN25)
    assert '"arguments": {}' in tokenizer.text_of(tokenizer.encode_chat(chat))


# Pieces that make special tokens, also through the escapes of JSON, and the implementation's marks.
TEXT = st.lists(
    st.sampled_from([*SPECIAL, "<s>", "<|im_", "\\u003c|im_end|>", "start|>", "\ue0f4 ", "\ue0f2"])
    | st.text(max_size=4)
).map("".join)


@pytest.mark.parametrize("template", TEMPLATES)
@given(text=TEXT, number=st.integers(0, 4))
def test_no_special_token_from_text(template: str, text: str, number: int) -> None:
    """Tools, their names and results, arguments and switches spell no special tokens."""

    def count(text: str) -> int:
        arguments = f'{{"{text}": "{text}"}}' if _is_json(text) else json.dumps({text: text})
        function = {"name": text, "arguments": arguments}
        calling = {**CALLING, "tool_calls": [{"id": "abcdefghi", "function": function}]}
        properties = {text: {"description": text, "enum": [text]}}
        tool = {"name": text, "description": text, "parameters": {"properties": properties}}
        tokenizer = ours_of[template]
        ids = tokenizer.encode_chat(
            [
                USER,
                calling,
                {**RESULT, "content": text},
                {"role": "assistant", "content": "so"},
                USER,
            ],
            tools=[{"type": "function", "function": tool}],
            template_kwargs={"date_string": text},
        )
        return sum(tokenizer.is_special(tokenizer.text_of([i])) for i in ids)

    assert count(text) == count("x")


ours_of = {name: ours(template) for name, template in TEMPLATES.items()}


def _is_json(text: str) -> bool:
    try:
        json.loads(f'"{text}"')
    except ValueError:
        return False
    return True


def test_limits_hold_for_tools() -> None:
    """Tools can't make a rendering run or grow without end, nor nest too deeply to be read."""
    template = ChatTemplate("{% set x = tools[0].x * 50 %}{{ x * 50 }}", {})
    with pytest.raises(InvalidRequestError, match="was stopped"):
        tools = [{"x": "y" * 9999}]
        template.render([], add_generation_prompt=True, tools=tools)
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"x": deep}
    with pytest.raises(InvalidRequestError):
        ours(QWEN3).encode_chat([USER], tools=[deep])


def test_template_for_tools() -> None:
    """A model may have a template of its own for requests with tools."""
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    template = ChatTemplate.from_config({"chat_template": named})
    assert template.render([], add_generation_prompt=True) == "d"
    assert template.render([], add_generation_prompt=True, tools=TOOLS) == "t"
    assert template.source == "t"


def test_detection() -> None:
    """What the template tells the model to write is what is looked for."""
    assert detect_tool_format(LLAMA) is LLAMA_JSON
    assert detect_tool_format(QWEN25) is detect_tool_format(QWEN3) is HERMES
    assert detect_tool_format(MISTRAL_TEMPLATE) is MISTRAL
    assert detect_tool_format(MISTRAL_TEMPLATE + "[ARGS]") is MISTRAL_ARGS
    assert detect_tool_format("use [func_name1(params_name1=params_value1...)]") is PYTHONIC
    assert detect_tool_format("<tool_call>\n<function=f>") is None
    assert detect_tool_format("{{ messages }}") is None
    assert detect_reasoning(QWEN3) is THINK
    assert detect_reasoning("[THINK]") is MISTRAL_THINK
    assert detect_reasoning(QWEN25) is None


def test_open_thoughts() -> None:
    """A prompt that ends with the tag has opened it, also after a switch, a user's text has not."""
    tokenizer = ours(
        QWEN3.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'")
    )
    ids = tokenizer.encode_chat([USER])
    assert THINK.is_opened_by(tokenizer.text_of(ids[-8:]))
    tokenizer = ours(QWEN3)
    ids = tokenizer.encode_chat([{"role": "user", "content": "<think>"}])
    assert not THINK.is_opened_by(tokenizer.text_of(ids[-8:]))
    ids = tokenizer.encode_chat([USER], template_kwargs={"enable_thinking": False})
    assert not THINK.is_opened_by(tokenizer.text_of(ids[-8:]))
    assert THINK.is_left_open_by("<think>\nhm") and not THINK.is_left_open_by("<think></think>x")
