"""What a request may say beyond OpenAI's parameters, and what the output has to look like."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from chairlift.frontend.results import Delta
from chairlift.shared.messages import Finish
from chairlift.shared.sampling_params import MAX_GRAMMAR_BYTES, Grammar

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BODIES: dict[str, Any] = {
    COMPLETIONS: {"prompt": "abc"},
    CHAT: {"messages": [{"role": "user", "content": "hello"}]},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
NAMED = {"name": "x", "schema": SCHEMA, "strict": True, "description": "some"}
FORMS: list[tuple[str, Any, str, Any]] = [
    ("response_format", {"type": "json_object"}, "json_schema", {"type": "object"}),
    ("response_format", {"type": "json_schema", "json_schema": NAMED}, "json_schema", SCHEMA),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "x"}},
        "json_schema",
        {"type": "object"},
    ),
    ("guided_json", SCHEMA, "json_schema", SCHEMA),
    ("guided_json", {}, "json_schema", {}),
    ("guided_json", json.dumps(SCHEMA), "json_schema", SCHEMA),
    ("guided_regex", "[ab]+", "regex", "[ab]+"),
    ("guided_choice", ["é", "no"], "choice", ["é", "no"]),
    ("guided_grammar", 'start: "a"', "lark", 'start: "a"'),
    ("structured_outputs", {"json": SCHEMA}, "json_schema", SCHEMA),
    ("structured_outputs", {"regex": "a", "choice": None}, "regex", "a"),
    ("structured_outputs", {"choice": ["a"]}, "choice", ["a"]),
    ("structured_outputs", {"grammar": 'start: "a"'}, "lark", 'start: "a"'),
]


def post(http: TestClient, path: str, **changes: Any) -> Any:
    return http.post(path, json=BODIES[path] | changes)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_grammars(http: TestClient, fake: Any, path: str, form: Any) -> None:
    """However the output's form is spelled, the worker gets one grammar."""
    param, value, kind, expected = form
    assert post(http, path, **{param: value}).status_code == 200
    grammar = fake.asked[0][1].grammar
    is_json = kind in ("json_schema", "choice")
    source = json.loads(grammar.source) if is_json else grammar.source
    assert (grammar.kind, source) == (kind, expected)


@pytest.mark.parametrize("path", BODIES)
def test_text(http: TestClient, fake: Any, path: str) -> None:
    """Text is no form, beside which there may be another."""
    assert post(http, path, response_format={"type": "text"}).status_code == 200
    both = post(http, path, response_format={"type": "text"}, guided_regex="a")
    assert both.status_code == 200
    assert [params.grammar for _, params in fake.asked] == [None, Grammar("regex", "a")]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "text", "json_schema": NAMED}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"response_format": "text"}, "response_format"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": [1]}, "guided_json"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [""]}, "guided_choice"),
        ({"guided_grammar": "a" * (MAX_GRAMMAR_BYTES + 1)}, "guided_grammar"),
        ({"guided_json": {"a": "b" * MAX_GRAMMAR_BYTES}}, "guided_json"),
        ({"guided_regex": "a", "min_tokens": 1}, "min_tokens"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
        ({"guided_regex": "a", "bad_words": ["x"]}, "bad_words"),
    ],
)
@pytest.mark.parametrize("path", BODIES)
def test_refused_grammars(http: TestClient, path: str, changes: Any, param: str) -> None:
    """Two forms, none, too large ones and contradictions are refused by name, in few words."""
    answer = post(http, path, **changes)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert len(answer.content) < 500


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("param", "value"), [("response_format", {"type": "json_object"}), ("guided_regex", "(")]
)
def test_invalid_grammars(
    http: TestClient, fake: Any, param: str, value: Any, stream: bool
) -> None:
    """What the worker can't compile is the caller's fault, and the field is named."""
    finish = Finish("error", code="invalid_grammar", message="no such thing")
    fake.script = lambda *_: [Delta([], "", finish)]
    answer = post(http, CHAT, stream=stream, **{param: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_grammar")
    assert error["type"] == "invalid_request_error" and "no such thing" in error["message"]


@pytest.mark.parametrize("path", BODIES)
def test_passed_on(http: TestClient, fake: Any, path: str) -> None:
    """What the worker heeds reaches it."""
    asked = {"skip_special_tokens": False, "include_stop_str_in_output": True, "priority": 7}
    assert post(http, path, **asked, prompt_logprobs=4).status_code == 200
    assert post(http, path).status_code == 200
    (_, changed), (_, usual) = fake.asked
    assert (changed.skip_special_tokens, changed.include_stop_str_in_output) == (False, True)
    assert (usual.skip_special_tokens, usual.include_stop_str_in_output) == (True, False)
    assert (changed.num_prompt_logprobs, usual.num_prompt_logprobs) == (4, -1)
    assert [options.priority for options in fake.options] == [7, 0]
    assert {options.tenant for options in fake.options} == {b""}
    assert {options.tokenizer for options in fake.options} == {fake.tokenizer.fingerprint}


@pytest.mark.parametrize("path", BODIES)
def test_users_are_tenants(http: TestClient, fake: Any, path: str) -> None:
    """The same user is the same tenant; their names stay here."""
    for user in ("ann", "bob", "ann"):
        assert post(http, path, user=user).status_code == 200
    ann, bob, again = (options.tenant for options in fake.options)
    assert ann == again != bob
    assert len(ann) == len(bob) == 16 and b"ann" not in ann


def test_deadline(http: TestClient, fake: Any, settings: Any) -> None:
    """deadline_ms is the time to live, at most that of the server."""
    for asked in ({"deadline_ms": 1500}, {"deadline_ms": 2**31 - 1}, {}):
        assert post(http, CHAT, **asked).status_code == 200
    most = settings.request_timeout_s
    assert [options.ttl_s for options in fake.options] == [1.5, most, most]


def test_bad_words(http: TestClient, fake: Any) -> None:
    """A word's tokens must not come, at the beginning or after a space."""
    assert post(http, COMPLETIONS, bad_words=["ab", " ab", " "]).status_code == 200
    encode = fake.tokenizer.encode
    expected = {tuple(encode(text)) for text in ("ab", " ab", " ")}
    assert set(fake.asked[0][1].bad_words) == expected
    refused = post(http, COMPLETIONS, bad_words=["x", "ab " * 40])
    error = refused.json()["error"]
    assert error["param"] == "bad_words" and "bad_words[1] has" in error["message"]
