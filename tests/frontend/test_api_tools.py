"""Tools as a request names them: what the model is shown, may call, must, and is held to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from chairlift.frontend.api.answer_form import AnswerForm
from chairlift.frontend.results import Delta
from chairlift.shared.messages import Finish
from chairlift.shared.sampling_params import Grammar
from chairlift.shared.settings import ServeSettings
from chairlift.worker.grammar import Vocabulary, compile_grammar
from tests.frontend.conftest import app_over
from tests.frontend.fake_client import FakeClient, make_tokenizer
from tests.frontend.speech import FAMILIES, MAX_MODEL_LEN, say

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hello"}
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
X = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
F: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": X}}
G: dict[str, Any] = {"type": "function", "function": {"name": "g"}}
STRICT_F = {"type": "function", "function": {"name": "f", "parameters": X, "strict": True}}
CALL_F = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
TEXTS = {
    "text": "Hello",
    "f": CALL_F,
    "f with a text": CALL_F.replace("1", '"1"'),
    "g": '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
    "f f": f"{CALL_F}\n{CALL_F}",
    "text f": f"So: {CALL_F}",
    "json": '{"x": 7}',
}
LIST = {"type": "array"}
JSON_X = {"type": "json_schema", "json_schema": {"name": "x", "schema": X}}
NAMED_F = {"type": "function", "function": {"name": "f"}}


@pytest.fixture
def fake() -> FakeClient:
    return FakeClient(max_model_len=MAX_MODEL_LEN)


def ask(http: TestClient, **changes: Any) -> Any:
    return http.post(CHAT, json={"messages": [USER], "tools": [F, G], **changes})


def allowed(*names: str, mode: str = "auto") -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def prompt_of(fake: FakeClient) -> str:
    return fake.tokenizer.text_of(fake.asked[-1][0])


def callable_by(fake: FakeClient) -> tuple[str, ...]:
    return AnswerForm.decode(fake.options[-1].context).tool_names


def test_shown_as_sent(http: TestClient, fake: FakeClient) -> None:
    """The template gets the tools with their keys in the order that they had, null within a schema
    too; a null field is one left out."""
    schema = {"properties": {"a": {"enum": ["é", None], "default": None}}, "type": "object"}
    function = {"parameters": schema, "name": "z", "strict": None, "description": 'Says "é"'}
    assert ask(http, tools=[{"function": function, "type": "function"}]).status_code == 200
    del function["strict"]
    expected = json.dumps([{"function": function, "type": "function"}], ensure_ascii=False)
    assert prompt_of(fake).startswith(expected)


# Which tools may be called, and which texts the worker's grammar lets pass; None: there is none.
CHOICES: list[tuple[dict[str, Any], str, set[str] | None]] = [
    ({}, "fg", None),
    ({"tool_choice": "auto"}, "fg", None),
    ({"tool_choice": None, "parallel_tool_calls": True}, "fg", None),
    ({"tool_choice": "none"}, "", None),
    ({"tool_choice": "none", "parallel_tool_calls": False}, "", None),
    ({"tools": [], "parallel_tool_calls": False}, "", None),
    ({"tool_choice": "required"}, "fg", {"f", "g", "f f"}),
    ({"tool_choice": "required", "parallel_tool_calls": False}, "fg", {"f", "g"}),
    ({"tool_choice": NAMED_F}, "f", {"f"}),
    ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "g", {"g"}),
    (
        {"parallel_tool_calls": False},
        "fg",
        {"text", "json", "f", "f with a text", "g", "text f"},
    ),
    ({"tool_choice": allowed("g")}, "g", {"text", "json", "g"}),
    ({"tool_choice": allowed("f", "g")}, "fg", None),
    ({"tool_choice": allowed("f", mode="required")}, "f", {"f", "f f"}),
    ({"tools": [STRICT_F, G]}, "fg", {"text", "json", "f", "g", "f f", "text f"}),
    ({"response_format": {"type": "text"}}, "fg", None),
    ({"response_format": JSON_X}, "fg", {"json", "f", "f with a text", "g", "f f"}),
    ({"response_format": JSON_X, "tools": [STRICT_F]}, "f", {"json", "f", "f f"}),
    ({"response_format": JSON_X, "tool_choice": "none"}, "", {"json"}),
    ({"response_format": JSON_X, "tool_choice": "required"}, "fg", {"f", "g", "f f"}),
    ({"guided_regex": "H.*o", "tools": [G]}, "g", {"text", "g"}),
    ({"guided_choice": ["Hello", "Bye"], "tool_choice": allowed("g")}, "g", {"text", "g"}),
    ({"guided_grammar": 'start: "Hello"', "parallel_tool_calls": False, "tools": [G]}, "g",
     {"text", "g"}),
    ({"structured_outputs": {"json": X}, "tools": [G]}, "g", {"json", "g"}),
]  # fmt: skip
TOKENIZER = make_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER.backend, frozenset())


def passes(grammar: Grammar, text: str) -> bool:
    """Whether the worker lets it pass as the whole output."""
    matcher = compile_grammar(grammar, VOCABULARY)
    token_ids = TOKENIZER.backend.encode(text).ids
    is_taken = matcher.try_consume_tokens(token_ids) == len(token_ids)
    return is_taken and matcher.is_accepting()


@pytest.mark.parametrize(("changes", "names", "texts"), CHOICES, ids=str)
def test_choices(
    http: TestClient, fake: FakeClient, changes: Any, names: str, texts: set[str] | None
) -> None:
    """What is said of tools and of the output decides together which tools the answer may call, and
    what the worker holds it to, if to anything."""
    answer = ask(http, **changes)
    assert answer.status_code == 200, answer.text
    assert callable_by(fake) == tuple(names)
    assert ("<tool_call>" in prompt_of(fake)) == bool(names)
    grammar = fake.asked[0][1].grammar
    assert (grammar is None) == (texts is None)
    if grammar is not None:
        assert {name for name, text in TEXTS.items() if passes(grammar, text)} == texts


@pytest.mark.parametrize("choice", ["required", NAMED_F, allowed("g", mode="required")], ids=str)
def test_the_same_request_again(http: TestClient, fake: FakeClient, choice: Any) -> None:
    """With a key it is the same answer, and another choice of tools is another request."""
    key = {"Idempotency-Key": "k"}
    body = {"messages": [USER], "tools": [F, G], "tool_choice": choice}
    first, again = (http.post(CHAT, json=body, headers=key) for _ in range(2))
    assert first.status_code == 200 and again.json() == first.json()
    assert fake.num_made == 1
    other = http.post(CHAT, json=body | {"tool_choice": "auto"}, headers=key)
    assert other.status_code == 409


def test_a_call_that_is_not_allowed(http: TestClient, fake: FakeClient) -> None:
    """What only looks like a call is content: of no tool, or of one that may not be called now."""
    say(fake, CALL_F)
    for changes in ({"tools": [G]}, {"tool_choice": "none"}, {"tools": []}):
        (choice,) = ask(http, **changes).json()["choices"]
        assert choice["message"] == {"role": "assistant", "content": CALL_F, "refusal": None}
        assert choice["finish_reason"] == "stop"


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [F, G, F]}, "tools", "same name"),
    ({"tools": [F] * 129}, "tools", "at most 128"),
    ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "'function'"),
    ({"tools": [F, {"type": "function"}]}, "tools[1].function", "required"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", ""),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "x" * 99: 1}}]},
        f"tools[0].function.{'x' * 64}",
        "unknown parameter",
    ),
    (
        {"tools": [F, {"type": "function", "function": {"name": "f", "parameters": LIST}}]},
        "tools[1].function.parameters",
        "type object",
    ),
    ({"tool_choice": {"type": "function", "function": {"name": "h"}}}, "tool_choice", "'h'"),
    ({"tool_choice": allowed("f", "h")}, "tool_choice", "'h'"),
    ({"tool_choice": allowed()}, "tool_choice.allowed_tools.tools", "at least 1"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice.function", "required"),
    ({"tool_choice": {"type": "custom"}}, "tool_choice", "allowed_tools"),
    ({"tool_choice": {"type": ["function"]}}, "tool_choice", "allowed_tools"),
    ({"tool_choice": "any"}, "tool_choice", "'required'"),
    ({"tool_choice": "required", "tools": []}, "tool_choice", "send tools"),
    ({"tool_choice": NAMED_F, "tools": None}, "tool_choice", "send tools"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "boolean"),
    ({"tool_choice": "required", "min_tokens": 5}, "min_tokens", "contradicts tools"),
    (
        {"tool_choice": "required", "response_format": JSON_X, "ignore_eos": True},
        "ignore_eos",
        "contradicts tools",
    ),
    ({"response_format": JSON_X, "bad_words": ["x"]}, "bad_words", "response_format"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "param", "reason"), REFUSED, ids=lambda one: str(one)[:60])
def test_refused(http: TestClient, changes: Any, param: str, reason: str) -> None:
    """What can't be is refused where it stands, in words that say what could be."""
    answer = ask(http, **changes)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and reason in error["message"], error
    assert len(answer.content) < 500


def test_too_large_schemas(http: TestClient, fake: FakeClient) -> None:
    """Schemas that the answer is held to have to fit into a grammar; others into the prompt."""
    long = {"type": "object", "description": "é" * 14_000}
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": long}} for i in "ab"]
    assert ask(http, tools=tools[:1], tool_choice="required").status_code == 200
    schemas = {"type": "object", "properties": {f"property_{i}": X for i in range(900)}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schemas, "strict": True}}
    error = ask(http, tools=[tool]).json()["error"]
    assert (error["param"], error["code"]) == ("tools", "grammar_too_large")
    error = ask(http, tools=tools).json()["error"]
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")


def test_what_the_worker_cant_compile(http: TestClient, fake: FakeClient) -> None:
    """A schema that the worker refuses is the tools' fault when the output is theirs alone."""
    finish = Finish("error", code="invalid_grammar", message="no such thing")
    fake.script = lambda *_: [Delta([], "", finish)]
    for changes, param in (
        ({"tools": [STRICT_F]}, "tools"),
        ({"tool_choice": "required", "response_format": JSON_X}, "tools"),
        ({"response_format": JSON_X}, "response_format"),
    ):
        answer = ask(http, **changes)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("tool_format", ["auto", "none", "mistral"])
def test_a_model_without_tools(address: str, tool_format: Any) -> None:
    """Where the template tells of no tools, they are refused until --tool-format says how they are
    called; not so a request that has none to call."""
    fake = FakeClient(PLAIN)
    settings = ServeSettings(address=address, tool_format=tool_format)
    say(fake, '[TOOL_CALLS][{"name": "g", "arguments": {}}]')
    with TestClient(app_over(fake, settings)) as http:
        assert ask(http, tools=[]).status_code == 200
        assert ask(http, tool_choice="none").status_code == 200
        answer = ask(http)
    if tool_format == "mistral":
        assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"
        return
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")
    assert "--tool-format" in error["message"]


@pytest.mark.parametrize(("tool_format", "status"), [("mistral_args", 200), ("none", 400)])
def test_the_settings_format_counts(address: str, tool_format: Any, status: int) -> None:
    """`--tool-format` goes before what the template tells, and `none` switches tools off."""
    fake = FAMILIES["hermes"].client()
    settings = ServeSettings(address=address, tool_format=tool_format)
    with TestClient(app_over(fake, settings)) as http:
        assert ask(http, tool_choice="auto").status_code == status
    formats = [AnswerForm.decode(options.context).tool_format for options in fake.options]
    assert formats == [tool_format] * (status == 200)


@pytest.mark.parametrize("changes", [{}, {"response_format": JSON_X}])
def test_calls_in_python_cant_be_constrained(address: str, changes: Any) -> None:
    """A model that writes its calls as Python may call, but be held to nothing."""
    fake = FAMILIES["pythonic"].client()
    with TestClient(app_over(fake, ServeSettings(address=address))) as http:
        assert ask(http).status_code == 200
        for held in ({"tool_choice": "required"}, {"parallel_tool_calls": False}):
            answer = ask(http, **held, **changes)
            assert answer.status_code == 400
            assert "Python" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("family", "is_skipped"), [("hermes", True), ("mistral", False)])
def test_tags_that_are_special_tokens(address: str, family: str, is_skipped: bool) -> None:
    """The worker leaves them in the text where calls begin with them, and only then."""
    fake = FAMILIES[family].client()
    with TestClient(app_over(fake, ServeSettings(address=address))) as http:
        for changes in ({}, {"tool_choice": "none"}, {"tools": []}, {"skip_special_tokens": False}):
            assert ask(http, **changes).status_code == 200
    skipped = [params.skip_special_tokens for _, params in fake.asked]
    assert skipped == [is_skipped, True, True, False]
