"""Chat templates as Hugging Face models ship them: jinja2, sandboxed and bounded.

Reference: https://huggingface.co/docs/transformers/chat_templating_writing
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2

from .bounded_template import BoundedTemplate, TemplateLimitError
from .errors import InvalidRequestError, ModelError

MAX_REASON = 1000  # characters of what a template says when it refuses
MAX_KWARGS = 32
MAX_KWARG_CHARACTERS = 4096
OURS = frozenset(
    {
        *("add_generation_prompt", "chat_template", "continue_final_message", "conversation"),
        *("documents", "messages", "padding", "raise_exception", "return_dict", "strftime_now"),
        *("tokenize", "tools", "truncation"),
        *("caller", "context", "cycler", "dict", "environment", "joiner", "kwargs", "loop"),
        *("namespace", "range", "self", "super", "varargs"),  # Jinja's
    }
)
CONTINUED = "\ue0f4"  # stands where the final message ends; users can't write it
REASONING = ("reasoning_content", "thinking", "reasoning")  # templates differ in the name

Message = Mapping[str, Any]


class ChatTemplate:
    """Turns messages into the text that the model was trained on."""

    def __init__(
        self,
        source: str | None,
        special_tokens: Mapping[str, str],
        source_with_tools: str | None = None,
    ) -> None:
        """Raises ModelError when a source is no template."""
        self.source = source_with_tools or source or ""  # that tells how tools are called
        self._special_tokens = dict(special_tokens)
        self._template = _Template(source) if source else None
        self._with_tools = _Template(source_with_tools) if source_with_tools else self._template

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ChatTemplate:
        """From tokenizer_config.json; of several named templates those named `default` and, for
        requests with tools, `tool_use`."""
        source = config.get("chat_template")
        with_tools = None
        if isinstance(source, list):
            sources = {one.get("name"): one.get("template") for one in source}
            source, with_tools = sources.get("default"), sources.get("tool_use")
        tokens = {k: v for k, v in config.items() if k.endswith("_token") and isinstance(v, str)}
        return cls(source, tokens, with_tools)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """As transformers' apply_chat_template does.

        `tools` as OpenAI writes them; `template_kwargs` are scalars for the template's own
        switches; with `continue_final_message` the text ends where the final message's does. A
        developer's message is a system message to templates that know no developer. Raises
        InvalidRequestError, with the template's own words when it refuses.
        """
        template = self._with_tools if tools else self._template
        if template is None:
            raise InvalidRequestError(
                "this model has no chat template: use /v1/completions", code="no_chat_template"
            )
        kwargs = template_kwargs or {}
        _check_kwargs(kwargs)
        turns = [_turn(message, template.knows_developer) for message in messages]
        if continue_final_message:
            _leave_open(turns, add_generation_prompt)
        text = template.render(
            {
                **self._special_tokens,
                **kwargs,
                "messages": turns,
                "tools": tools or None,  # templates were tried with both defined
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                "raise_exception": _raise_exception,
                "strftime_now": _strftime_now,
            }
        )
        return _until_left_open(text) if continue_final_message else text


class _Template:
    """One source, compiled."""

    def __init__(self, source: Any) -> None:
        self.knows_developer = "developer" in str(source)
        try:
            self._template = BoundedTemplate(source)
        except Exception as error:  # jinja2's own, but also Python's compiler's, RecursionError too
            message = f"the model's chat template can't be compiled: {error}"
            raise ModelError(message) from None

    def render(self, values: Mapping[str, Any]) -> str:
        try:
            return self._template.render(values)
        except (TemplateLimitError, RecursionError, MemoryError) as error:
            raise InvalidRequestError(
                f"the model's chat template was stopped: {str(error) or 'no memory is left'}",
                param="messages",
                code="chat_template_limit",
            ) from None
        except Exception as error:  # a template is a program, it may raise anything
            raise InvalidRequestError(
                f"the model's chat template refused the messages: {str(error)[:MAX_REASON]}",
                param="messages",
            ) from None


def with_parsed_arguments(messages: Sequence[Message]) -> list[Message]:
    """The arguments of tool calls as objects, which templates print; OpenAI has them as text.

    Raises InvalidRequestError for what is no JSON object.
    """
    return [
        {**message, "tool_calls": [_with_parsed_arguments(call) for call in calls]}
        if (calls := message.get("tool_calls"))
        else message
        for message in messages
    ]


def _with_parsed_arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        message = f"the arguments of the call of {function.get('name')!r} are no JSON object"
        raise InvalidRequestError(message, param="messages")
    return {**call, "function": {**function, "arguments": arguments}}


def _turn(message: Message, knows_developer: bool) -> dict[str, Any]:
    """Without what is null, which many templates would print."""
    turn = {key: value for key, value in message.items() if value is not None}
    if turn.get("role") == "developer" and not knows_developer:
        turn["role"] = "system"
    reasoning = next((turn[name] for name in REASONING if name in turn), None)
    if reasoning is not None:
        turn = {"thinking": reasoning, **turn, "reasoning_content": reasoning}
    return turn


def _check_kwargs(kwargs: Mapping[str, Any]) -> None:
    """Raises InvalidRequestError."""
    problem = f"takes at most {MAX_KWARGS}" if len(kwargs) > MAX_KWARGS else None
    for name, value in kwargs.items():
        if name in OURS or name.endswith("_token") or not name.isidentifier() or name[0] == "_":
            problem = f"can't set {name[:64]!r}: the name is reserved"
        elif not isinstance(value, str | int | float | None):
            problem = f"{name[:64]!r} has to be a text, number, boolean or null"
        elif isinstance(value, str) and len(value) > MAX_KWARG_CHARACTERS:
            problem = f"{name[:64]!r} is longer than {MAX_KWARG_CHARACTERS} characters"
    if problem:
        raise InvalidRequestError(f"chat_template_kwargs {problem}", param="chat_template_kwargs")


def _leave_open(turns: list[dict[str, Any]], add_generation_prompt: bool) -> None:
    param = "continue_final_message"
    if add_generation_prompt:
        message = "a message is continued or a new one begun: set add_generation_prompt to false"
        raise InvalidRequestError(message, param=param)
    if not turns or not isinstance(turns[-1].get("content"), str):
        raise InvalidRequestError("the final message has no text to continue", param=param)
    turns[-1]["content"] += f"{CONTINUED} "  # as long as the space is there nobody trimmed it


def _until_left_open(text: str) -> str:
    before, found, after = text.rpartition(CONTINUED)
    if not found:
        message = "the model's chat template leaves the final message out: it can't be continued"
        raise InvalidRequestError(message, param="continue_final_message")
    return before if after.startswith(" ") else before.rstrip()


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
