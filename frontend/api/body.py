"""Request bodies: read under a size, a time and a depth limit, then held against a schema."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from ...shared.errors import InvalidRequestError
from ...shared.settings import ServeSettings
from .errors import HttpError

MAX_DEPTH = 32
MAX_KEYS = 2048  # of one object
MAX_CONTAINERS = 8192
THREAD_BYTES = 64 << 10  # parsing more than this would hold up other streams
MAX_TOLD_PROBLEMS = 3
MAX_TOLD_NAME = 64
NESTED = {"messages": 1, "tools": 1, "tool_choice": 2}  # where the names begin, after a type's
CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_parameter",
    "unsupported_parameter": "unsupported_parameter",
}

M = TypeVar("M", bound=BaseModel)


async def read_json(request: Request, settings: ServeSettings) -> dict[str, Any]:
    """The JSON object in the body; HttpError 408, 413, 415 or InvalidRequestError."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":  # anything else could come from another site's form
        raise HttpError(415, "send Content-Type: application/json", code="unsupported_media_type")
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            body = await _read(request, settings.max_body_bytes)
    except TimeoutError:
        message = f"the body did not arrive within {settings.body_timeout_s:g} s"
        close = {"Connection": "close"}
        raise HttpError(408, message, code="request_timeout", headers=close) from None
    return await asyncio.to_thread(_parse, body) if len(body) > THREAD_BYTES else _parse(body)


async def _read(request: Request, max_bytes: int) -> bytes:
    """Counts what comes, since Content-Length may be missing or wrong."""
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
    return b"".join(parts)


def _too_large(max_bytes: int) -> HttpError:
    message = f"the body is larger than {max_bytes} bytes"
    return HttpError(413, message, code="body_too_large", headers={"Connection": "close"})


def _parse(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"the body is no JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequestError("the body must be a JSON object", code="invalid_json")
    _check_structure(value)
    return value


def _check_structure(value: dict[str, Any]) -> None:
    """A body of a few megabytes can hold millions of keys and objects, each of which would be
    looked at, and complained of, one by one."""
    level: list[Any] = [value]
    num_containers = 1
    for _ in range(MAX_DEPTH):
        if any(isinstance(node, dict) and len(node) > MAX_KEYS for node in level):
            raise InvalidRequestError(
                f"an object of the body has more than {MAX_KEYS} keys", code="invalid_json"
            )
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        num_containers += len(level)
        if num_containers > MAX_CONTAINERS:
            message = f"the body holds more than {MAX_CONTAINERS} objects and arrays"
            raise InvalidRequestError(message, code="invalid_json")
        if not level:
            return
    message = f"the body is nested deeper than {MAX_DEPTH} levels"
    raise InvalidRequestError(message, code="invalid_json")


def validated(schema: type[M], values: dict[str, Any]) -> M:
    """The values as `schema`; raises InvalidRequestError that names the first bad parameter."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise _named(error) from None


def _named(error: ValidationError) -> InvalidRequestError:
    """One line; what the caller sent is not repeated, for it may be a prompt."""
    problems = error.errors(include_url=False, include_input=False)
    param = _param(_place(problems[0]))
    same = [problem for problem in problems if _param(_place(problem)) == param]
    code = CODES.get(same[0]["type"], "invalid_value")
    if code == "unknown_parameter":
        return InvalidRequestError(_message(same[0]), param=param, code=code)
    told = dict.fromkeys(map(_message, same))
    reasons = ", or ".join(list(told)[:MAX_TOLD_PROBLEMS])
    return InvalidRequestError(f"{param}: {reasons}", param=param, code=code)


def _place(problem: ErrorDetails) -> tuple[int | str, ...]:
    """Of the field, also where the object that has it was at fault."""
    field = problem.get("ctx", {}).get("field")
    return problem["loc"] if field is None else (*problem["loc"], field)


def _message(problem: ErrorDetails) -> str:
    if problem["type"] != "extra_forbidden":
        return problem["msg"].removeprefix("Value error, ")
    *holder, name = problem["loc"]
    told = f"unknown parameter {str(name)[:MAX_TOLD_NAME]}"
    return f"{told} in {_param(tuple(holder))}" if holder else told


def _param(location: tuple[int | str, ...]) -> str:
    """`messages[0].content`, `input[0]`; of parameters that may be of several types the name alone,
    since those add noise to the rest."""
    if not location:
        return "body"
    if location[:2] == ("input", "items"):
        numbers = [part for part in location if isinstance(part, int)]
        return f"input[{numbers[0]}]" if numbers else "input"
    shown = str(location[0])[:MAX_TOLD_NAME]
    for part in location[NESTED.get(shown, len(location)) :]:
        shown += f"[{part}]" if isinstance(part, int) else f".{part[:MAX_TOLD_NAME]}"
        if part == "content":
            break
    return shown
