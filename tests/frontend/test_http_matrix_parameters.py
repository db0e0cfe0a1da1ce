"""Every number that a request may hold, at its limits and beyond."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from chairlift.frontend.api.chat import ChatRequest
from chairlift.frontend.api.completions import CompletionRequest

JSON = {"content-type": "application/json"}
# fmt: off
SENT = (
    "-1", "0", "1", "0.5", "-0.0", "-9223372036854775809", "2147483647", "2147483648",
    "9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616",
    "1" + "0" * 400, "1e308", "-1e308", "1e-320", "1e309", "NaN", "Infinity", "-Infinity",
    '"1"', '"NaN"', "true", "null", "[]", "[1]", "{}", '""',
)
# fmt: on
ROUTES: dict[str, tuple[Any, dict[str, Any]]] = {
    "/v1/completions": (CompletionRequest, {"prompt": "a"}),
    "/v1/chat/completions": (
        ChatRequest,
        {"messages": [{"role": "user", "content": "a"}]},
    ),
}
INSIDE = {
    "/v1/completions": (
        '{"prompt": [@]}',
        '{"prompt": [[@]]}',
        '{"prompt": "a", "stop_token_ids": [@]}',
        '{"prompt": "a", "bad_words": [@]}',
        '{"prompt": "a", "echo": true, "logprobs": 1, "max_tokens": @}',
        '{"prompt": "a", "guided_json": {"const": @}}',
        '{"prompt": "a", "guided_choice": [@]}',
        '{"prompt": "a", "structured_outputs": {"json": @}}',
        '{"prompt": "a", "logit_bias": {"7": @}}',
        '{"prompt": "a", "logit_bias": {"@": 1}}',
        '{"prompt": "a", "stream": true, "stream_options": {"include_usage": @}}',
    ),
    "/v1/chat/completions": (
        '{"messages": [{"role": "user", "content": @}]}',
        '{"messages": [{"role": "user", "content": "a", "name": @}]}',
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": @}]}]}',
        '{"messages": @}',
        '{"messages": [{"role": "user", "content": "a"}], "response_format": '
        '{"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": @}}}}',
        '{"messages": [{"role": "user", "content": "a"}], "response_format": @}',
        '{"messages": [{"role": "user", "content": "a"}], "logprobs": true, "top_logprobs": @}',
    ),
}


def numbers_of(path: str) -> dict[str, list[str]]:
    """The limits of each numeric parameter, and just beyond, by the documentation's own word."""
    found = {}
    for name, property in ROUTES[path][0].model_json_schema()["properties"].items():
        kinds = [kind for kind in property.get("anyOf", [property]) if "type" in kind]
        for kind in kinds:
            if kind["type"] in ("integer", "number"):
                step = 1 if kind["type"] == "integer" else 1e-9
                limits = [
                    (kind[key], sign)
                    for key, sign in (
                        *(("minimum", -1), ("exclusiveMinimum", -1)),
                        *(("maximum", 1), ("exclusiveMaximum", 1)),
                    )
                    if key in kind
                ]
                around = [
                    json.dumps(v) for limit, sign in limits for v in (limit, limit + sign * step)
                ]
                found[name] = [*around, *SENT]
    return found


def bodies(path: str) -> Iterator[str]:
    base = json.dumps(ROUTES[path][1])[:-1]
    for name, values in numbers_of(path).items():
        yield from (f'{base}, "{name}": {value}}}' for value in values)
    for template in INSIDE[path]:
        yield from (template.replace("@", value) for value in SENT)


@pytest.mark.parametrize("path", ROUTES)
def test_extremes(http: TestClient, path: str) -> None:
    """Each is taken or refused as the caller's fault, by name, and the next one is served."""
    numbers = numbers_of(path)
    assert {"n", "temperature", "max_tokens", "seed", "top_k", "repetition_penalty"} <= set(numbers)
    taken = 0
    for body in bodies(path):
        taken += is_taken(http, path, body)
    assert taken > 50
    assert is_taken(http, path, json.dumps(ROUTES[path][1]))


def test_pairs(http: TestClient) -> None:
    """Nor do two of them together reach what one alone does not."""
    chance = random.Random(7)
    for path, (_, base) in ROUTES.items():
        numbers = numbers_of(path)
        for _ in range(150):
            several = ", ".join(
                f'"{name}": {chance.choice(numbers[name])}'
                for name in chance.sample(sorted(numbers), chance.randint(2, 5))
            )
            is_taken(http, path, f"{json.dumps(base)[:-1]}, {several}}}")


def is_taken(http: TestClient, path: str, body: str) -> bool:
    answer = http.post(path, content=body, headers=JSON)
    assert answer.status_code in (200, 400), (body, answer.text[:500])
    if answer.status_code == 400:
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error" and error["message"], body
        assert len(answer.content) < 1000, body
    return answer.status_code == 200
