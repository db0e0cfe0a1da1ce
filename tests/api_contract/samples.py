"""Requests to try a parameter in. Values are made from its schema; one that must mean something is
written here, by the parameter's name or by path and name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from itertools import chain
from typing import Any

from fastapi.testclient import TestClient

from chairlift.frontend.response_id import ResponseId
from tests.api_contract.contract import Contract, Json, Parameter, Path, Spot

CHAT, STREAMS = "/v1/chat/completions", "/v1/streams/{response_id}"
RESPONSES = "/v1/responses"
HELLO = [{"role": "user", "content": "a"}]
WORDS = ("b", "c")
B, C = ({"type": "function", "function": {"name": word}} for word in WORDS)
CALL = {"id": "b", "type": "function", "function": {"name": "b", "arguments": "{}"}}
ITEM = {"type": "function_call", "call_id": "b", "name": "b", "arguments": "{}"}
FLAT_B, FLAT_C = ({"type": "function", "name": word} for word in WORDS)
FORMAT = {"text": {"format": {"type": "json_schema", "name": "a", "schema": {}}}}
FORMAT_FIELDS = ("name", "description", "schema", "strict")
UNSAID: Any = object()

# Bodies that are valid and say no more than they must, for a path or for a parameter there; others
# are made from the required fields.
BODIES: dict[str, Json] = {
    CHAT: {"messages": HELLO},
    RESPONSES: {"input": "a"},
    "/tokenize": {"prompt": "a"},
    "/tokenize add_generation_prompt": {"messages": HELLO},
    "/tokenize messages": {"messages": HELLO},
}
# What else a body must say for a parameter to have its effect.
BESIDE: dict[str, Json] = {
    "messages.reasoning_content": {"messages": [{"role": "assistant", "content": "a"}]},
    "messages.tool_call_id": {"messages": [{"role": "tool", "content": "a"}]},
    "messages.tool_calls": {
        "messages": [{"role": "assistant", "content": "a", "tool_calls": [CALL]}]
    },
    f"{CHAT} parallel_tool_calls": {"tools": [B, C]},
    "queue_updates": {"stream": True},
    "resumable": {"stream": True},
    "response_format.json_schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a"}}
    },
    "stream_options": {"stream": True},
    f"{CHAT} tool_choice": {"tools": [B, C]},
    "tool_choice.allowed_tools": {
        "tool_choice": {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto", "tools": [C]},
        }
    },
    "tool_choice.function": {"tool_choice": C},
    f"{CHAT} top_logprobs": {"logprobs": True},
    f"{RESPONSES} input": {"input": [ITEM]},
    f"{RESPONSES} parallel_tool_calls": {"tools": [FLAT_B, FLAT_C]},
    f"{RESPONSES} tool_choice": {"tools": [FLAT_B, FLAT_C]},
    f"{RESPONSES} top_logprobs": {"include": ["message.output_text.logprobs"]},
    **dict.fromkeys([f"text.format.{one}" for one in FORMAT_FIELDS], FORMAT),
}
VALUES: dict[str, Any] = {
    "Last-Event-ID": "1:2",
    "add_generation_prompt": False,
    "add_special_tokens": False,
    "chat_template_kwargs": {"mood": "b"},
    "last_event_id": "1:2",
    "logit_bias": {"7": 1},
    "messages": [{"role": "user", "content": "b"}],
    "messages.tool_calls": [CALL],
    "messages.tool_calls.function": {"name": "c", "arguments": "{}"},
    "messages.tool_calls.function.arguments": '{"a": 1}',
    "read_only": "true",
    "response_format": {"type": "json_object"},
    "response_format.json_schema": {"name": "a", "schema": {"type": "array"}},
    "structured_outputs": {"regex": "b"},
    "tool_choice": "required",
    "tool_choice.allowed_tools": {"mode": "required", "tools": [B]},
    "tool_choice.allowed_tools.tools": [B],
    "tool_choice.allowed_tools.tools.function": B["function"],
    "tool_choice.function": B["function"],
    "tools": [B],
    "tools.function": C["function"],
    f"{RESPONSES} input.arguments": '{"a": 1}',
    f"{RESPONSES} metadata": {"a": "b"},
    "text": {"format": {"type": "json_object"}},
    "text.format": {"type": "json_object"},
    "text.format.schema": {"type": "array"},
    f"{RESPONSES} tool_choice.tools": [FLAT_C],
    f"{RESPONSES} tools": [FLAT_B],
}
NAMES = {"model": "lift/tiny"}  # there is one; any other is not found


def a_stream(http: TestClient) -> str:
    """One that was read by another."""
    http.post(CHAT, json={"messages": HELLO, "stream": True, "resumable": True})
    return f"/v1/streams/{ResponseId.draw('chat')}"


ADDRESSES: dict[str, Callable[[TestClient], str]] = {
    "/v1/models/{model_id}": lambda _: "/v1/models/lift/tiny",
    STREAMS: a_stream,
}


class MissingSampleError(Exception):
    """A parameter of which nobody said how to try it."""

    def __init__(self, what: object) -> None:
        super().__init__(f"{what}: write a sample for it into tests/api_contract/samples.py")


class Samples:
    """Valid values and the bodies around them."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract

    def address(self, spot: Spot, http: TestClient) -> str:
        path = spot.endpoint.path
        if "{" not in path:
            return path
        if path not in ADDRESSES:
            raise MissingSampleError(path)
        return ADDRESSES[path](http)

    def value(self, spot: Spot, unlike: Any) -> Any:
        """A valid one that is not the other."""
        written = _told(VALUES, spot, UNSAID)
        candidates = self._values(spot.parameter.schema) if written is UNSAID else [written]
        for value in candidates:
            if value != unlike:
                return value
        raise MissingSampleError(spot)

    def body(self, spot: Spot) -> Json:
        """Valid but for what it lacks: the parameter itself, unless that is required."""
        body = self._base(spot)
        if spot.parameter.place != "body":
            return body
        for path, name in spot.holders:
            if not self._is_one(found(body, path), name):
                body = placed(body, path, self._required(self._contract.fields(name)))
        held = found(body, spot.path[:-1])
        if not spot.parameter.is_required:
            held.pop(spot.parameter.name, None)
        return body

    def _base(self, spot: Spot) -> Json:
        fields = [one for one in spot.endpoint.parameters if one.place == "body"]
        path, names = spot.endpoint.path, spot.key.split(".")
        body = deepcopy(BODIES.get(f"{path} {names[0]}", BODIES.get(path)))
        body = body or self._required(fields)
        for length in range(1, len(names) + 1):
            body |= deepcopy(_told(BESIDE, spot, {}, ".".join(names[:length])))
        return body

    def _required(self, fields: Iterable[Parameter]) -> Json:
        return {one.name: self._first(one) for one in fields if one.is_required}

    def _first(self, field: Parameter) -> Any:
        value = next(self._values(field.schema), UNSAID)
        if value is UNSAID:
            raise MissingSampleError(field.name)
        return value

    def _is_one(self, value: Any, name: str) -> bool:
        """Whether it looks like the object with that name, and not like another of a union."""
        schemas = {field.name: field.schema for field in self._contract.fields(name)}
        return isinstance(value, dict) and all(
            key in schemas and one in schemas[key].get("enum", [schemas[key].get("const", one)])
            for key, one in value.items()
        )

    def _values(self, schema: Json) -> Iterator[Any]:
        """Valid ones, as far as the schema tells; never null."""
        kinds = schema.get("anyOf", schema.get("oneOf"))
        if kinds:
            return chain.from_iterable(map(self._values, kinds))
        if "const" in schema or "enum" in schema:
            return iter(schema.get("enum", [schema.get("const")]))
        if "$ref" in schema:
            return self._named_values(schema["$ref"].rsplit("/")[-1])
        if schema.get("type") == "array":
            return ([item] for item in self._values(schema.get("items", {})))
        return iter(_simple_values(schema))

    def _named_values(self, name: str) -> Iterator[Any]:
        fields = self._contract.fields(name)
        if not fields:
            return self._values(self._contract.named(name))
        return iter([{one.name: self._first(one) for one in fields if one.standing == "honoured"}])


def _simple_values(schema: Json) -> list[Any]:
    match schema.get("type"):
        case "boolean":
            return [True, False]
        case "integer":
            least = schema.get("minimum", 0)
            return [n for n in (least + 1, least + 2, least) if n <= schema.get("maximum", n)]
        case "number":
            least = schema.get("minimum", schema.get("exclusiveMinimum", 0))
            width = schema.get("maximum", least + 1) - least
            return [least + width / 4, least + width / 2]
        case "string" if schema.get("minLength", 0) <= 1:
            return [word for word in WORDS if re.search(schema.get("pattern", ""), word)]
        case "object" if schema.get("additionalProperties", True) is True:
            return [] if "patternProperties" in schema else [{}]
    return []


def _told(table: dict[str, Any], spot: Spot, otherwise: Any, key: str = "") -> Any:
    """What is said for the endpoint's own, or for all of the name."""
    name = key or spot.key
    return table.get(f"{spot.endpoint.path} {name}", table.get(name, otherwise))


def found(body: Any, path: Path) -> Any:
    """What stands there, or None."""
    for step in path:
        try:
            body = body[step]
        except (LookupError, TypeError):
            return None
    return body


def placed(body: Json, path: Path, value: Any) -> Json:
    """A copy with the value there, lists made on the way."""
    whole: list[Any] = [deepcopy(body)]
    node: Any = whole
    for step, following in zip((0, *path), path, strict=False):
        if following == 0 and not (isinstance(node[step], list) and node[step]):
            node[step] = [None]
        node = node[step]
        if isinstance(following, str):
            node.setdefault(following, None)
    node[path[-1]] = value
    copy: Json = whole[0]
    return copy
