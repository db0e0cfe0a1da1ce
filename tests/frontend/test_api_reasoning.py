"""Chats that think before they speak, switches for the chat template, and messages continued."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient

from chairlift.frontend.api.answer_form import AnswerForm
from chairlift.shared.sampling_params import Grammar
from chairlift.shared.settings import ServeSettings
from chairlift.worker.grammar import Vocabulary, compile_grammar
from tests.chat_templates import QWEN3, QWEN25
from tests.frontend.conftest import app_over
from tests.frontend.events import Assembled, events_of
from tests.frontend.fake_client import FakeClient, make_tokenizer
from tests.frontend.speech import HERMES_CALL, MAX_MODEL_LEN, say

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hello"}
STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
OPENING = QWEN3.replace("'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}")
ALWAYS = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"
EFFORTS = "{{ reasoning_effort }}" + ALWAYS
MISTRAL_THINKING = "{% for m in messages %}{{ m.content }}{% endfor %}{# [THINK] #}"
NOW = {"type": "function", "function": {"name": "now"}}
JSON_X = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["x"]}}}


@pytest.fixture
def fake() -> FakeClient:
    return FakeClient(QWEN3, max_model_len=MAX_MODEL_LEN)


def client_of(template: str, address: str, tags: tuple[str, ...] = ()) -> TestClient:
    fake = FakeClient(template, tags, MAX_MODEL_LEN)
    client = TestClient(app_over(fake, ServeSettings(address=address)))
    client.app_state["fake"] = fake
    return client


def fake_of(http: TestClient) -> FakeClient:
    fake: FakeClient = http.app_state["fake"]
    return fake


def ask(http: TestClient, **changes: Any) -> Any:
    return http.post(CHAT, json={"messages": [USER], **changes})


def prompt_of(fake: FakeClient) -> str:
    return fake.tokenizer.text_of(fake.asked[-1][0])


def told(answer: Any) -> tuple[str, str, int]:
    """Thoughts, content, and how many tokens were thoughts."""
    assert answer.status_code == 200, answer.text
    if "event-stream" in answer.headers["content-type"]:
        all_of = Assembled(events_of(answer.text))
        (usage,) = all_of.usages
        details = usage["completion_tokens_details"]
        return all_of.reasoning[0], all_of.text[0], details["reasoning_tokens"]
    body = answer.json()
    message, details = body["choices"][0]["message"], body["usage"]["completion_tokens_details"]
    return message.get("reasoning_content", ""), message["content"], details["reasoning_tokens"]


@pytest.mark.parametrize("body", [{}, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("template", "said", "expected"),
    [
        (QWEN3, "<think>\nhm é\n</think>\n\nYes.", ("hm é", "Yes.", 22)),
        (QWEN3, "Yes, <think>.", ("", "Yes, <think>.", 0)),
        (QWEN3, "<think>\nhm", ("hm", "", 10)),
        (QWEN3, "<think>\n\n</think>\n\nYes.", ("", "Yes.", 17)),
        (OPENING, "hm\n</think>\n\nYes.", ("hm", "Yes.", 11)),
        (OPENING, "hm", ("hm", "", 2)),
        (ALWAYS, "hm</think>Yes.", ("hm", "Yes.", 10)),
        (MISTRAL_THINKING, "[THINK]hm[/THINK]Yes.", ("hm", "Yes.", 17)),
    ],
)
def test_thoughts(address: str, template: str, said: str, expected: Any, body: Any) -> None:
    """What is thought is told apart from what is said and counted, whether the prompt opens the
    thoughts or the model does."""
    with client_of(template, address) as http:
        for size in (1, 6, 100):
            say(fake_of(http), said, size=size)
            assert told(ask(http, **body)) == expected


def test_a_model_that_does_not_think(address: str) -> None:
    """Without such a template tags are text, and no thoughts are counted."""
    with client_of(QWEN25, address) as http:
        say(fake_of(http), "<think>hm</think>Yes.")
        answer = ask(http).json()
    assert answer["choices"][0]["message"]["content"] == "<think>hm</think>Yes."
    assert "completion_tokens_details" not in answer["usage"]


@pytest.mark.parametrize(
    ("template", "effort", "kwargs", "end"),
    [
        (QWEN3, None, {}, "assistant\n"),
        (QWEN3, "none", {}, "assistant\n<think>\n\n</think>\n\n"),
        (QWEN3, None, {"enable_thinking": False}, "assistant\n<think>\n\n</think>\n\n"),
        (QWEN3, "none", {"enable_thinking": True}, "assistant\n"),
        (QWEN25, "none", {}, "assistant\n"),
        (EFFORTS, "xhigh", {}, "hello<think>"),
        (EFFORTS, "none", {}, "hello<think>"),
        (EFFORTS, "low", {"reasoning_effort": "maximal"}, "hello<think>"),
    ],
)
def test_efforts(address: str, template: str, effort: str | None, kwargs: Any, end: str) -> None:
    """An effort is the template's to ask for; `none` is also its enable_thinking, and its own
    switches go before."""
    with client_of(template, address) as http:
        answer = ask(http, reasoning_effort=effort, chat_template_kwargs=kwargs)
        assert answer.status_code == 200, answer.text
        prompt = prompt_of(fake_of(http))
    assert prompt.endswith(end)
    if template == EFFORTS:
        assert prompt == kwargs.get("reasoning_effort", effort) + end


@pytest.mark.parametrize(
    ("template", "effort"),
    [(QWEN3, "low"), (QWEN3, "minimal"), (QWEN25, "high"), (ALWAYS, "none"), (ALWAYS, "medium")],
)
def test_efforts_that_cant_be(address: str, template: str, effort: str) -> None:
    """An effort that the template has no word for is refused, `none` where it always thinks too."""
    with client_of(template, address) as http:
        error = ask(http, reasoning_effort=effort).json()["error"]
    assert (error["param"], error["code"]) == ("reasoning_effort", "unsupported_parameter")


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"messages": "x"}, "'messages'"),
        ({"tools": None}, "'tools'"),
        ({"add_generation_prompt": False}, "'add_generation_prompt'"),
        ({"bos_token": "x"}, "'bos_token'"),
        ({"_x": 1}, "'_x'"),
        ({"x": [1]}, "valid string"),
        ({"x": {"y": 1}}, "valid string"),
        ({"x": "y" * 5000}, "4096"),
        ({f"x{i}": i for i in range(33)}, "at most 32"),
        ([], "dictionary"),
    ],
    ids=lambda one: str(one)[:40],
)
def test_refused_switches(http: TestClient, kwargs: Any, reason: str) -> None:
    """Reserved names, values that are no scalars and too much are refused by name."""
    answer = ask(http, chat_template_kwargs=kwargs)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "chat_template_kwargs" and reason in error["message"], error


@pytest.mark.parametrize(
    ("text", "said", "expected"),
    [
        ("It is", " warm.", ("", " warm.", 0)),
        ("", "<think>hm</think>Yes.", ("hm", "Yes.", 17)),
        ("<think>\nhm", " hm\n</think>\n\nYes.", ("hm", "Yes.", 12)),
        ("<think>\nhm\n</think>\n\nYes", ", it is.", ("", ", it is.", 0)),
    ],
)
def test_continued(http: TestClient, fake: FakeClient, text: str, said: str, expected: Any) -> None:
    """The answer goes on with the final message, amid its thoughts too, and has what is new."""
    say(fake, said)
    for content in (text, [{"type": "text", "text": text}]):
        messages = [USER, {"role": "assistant", "content": content}]
        answer = ask(http, messages=messages, continue_final_message=True)
        reasoning, content, num_thoughts = told(answer)
        assert (reasoning.strip(), content, num_thoughts) == expected
        assert prompt_of(fake).endswith(text)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": [{"role": "tool", "tool_call_id": "c", "content": "7"}]}, None),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": "So",
                        "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": ""}}],
                    }
                ]
            },
            None,
        ),
        ({"add_generation_prompt": True}, "add_generation_prompt"),
    ],
)
def test_what_cant_be_continued(http: TestClient, changes: Any, param: str | None) -> None:
    """A tool's message, one that calls, and one beside which a new one begins."""
    answer = ask(http, continue_final_message=True, **changes)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == (param or "continue_final_message")


def test_without_a_generation_prompt(http: TestClient, fake: FakeClient) -> None:
    """The model begins the next message, whosever it is."""
    assert ask(http, add_generation_prompt=False).status_code == 200
    assert prompt_of(fake).endswith("hello<|im_end|>\n")
    assert ask(http, add_generation_prompt=None).status_code == 200
    assert prompt_of(fake).endswith("assistant\n")


def passes(grammar: Grammar | None, text: str) -> bool:
    """Whether the worker lets it pass as the whole output."""
    assert grammar is not None
    tokenizer = make_tokenizer()
    matcher = compile_grammar(grammar, Vocabulary(tokenizer.backend, frozenset()))
    token_ids = tokenizer.encode(text)
    return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("template", "changes", "good", "bad"),
    [
        (
            QWEN3,
            {"response_format": JSON_X},
            ['"x"', '<think>hm</think>\n\n"x"'],
            ["hm", "<think>"],
        ),
        (OPENING, {"response_format": JSON_X}, ['hm</think>\n"x"'], ['"x"', "hm</think>hm"]),
        (OPENING, {"guided_regex": "a+"}, ["hm\n</think>\n\naa"], ["aa", "hm</think>b"]),
        (
            OPENING,
            {"tools": [NOW], "tool_choice": "required"},
            ['hm</think><tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'],
            ["hm</think>", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'],
        ),
        (
            OPENING,
            {"tools": [NOW], "guided_choice": ["a"]},
            ["</think>a", '</think><tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'],
            ["</think>b"],
        ),
    ],
)
def test_thoughts_are_free(
    address: str, template: str, changes: Any, good: list[str], bad: list[str]
) -> None:
    """A grammar holds what is said after the thoughts and not these."""
    with client_of(template, address) as http:
        assert ask(http, **changes).status_code == 200
        grammar = fake_of(http).asked[0][1].grammar
    assert [passes(grammar, text) for text in good + bad] == [True] * len(good) + [False] * len(bad)


def test_tags_that_are_special_tokens(address: str) -> None:
    """The worker leaves them in the text, so that thoughts are found."""
    for tags, is_skipped in (((), True), (("<think>", "</think>"), False)):
        with client_of(QWEN3, address, tags) as http:
            say(fake_of(http), "<think>hm</think>Yes.", size=17)
            assert told(ask(http))[:2] == ("hm", "Yes.")
            (params,) = (params for _, params in fake_of(http).asked)
        assert params.skip_special_tokens is is_skipped


@pytest.mark.anyio
async def test_continued_by_another_frontend(url: str, other_url: str, fake: FakeClient) -> None:
    """After any event, amid the thoughts too, another frontend gives what follows it."""
    say(fake, f"<think>\nhm hm hm\n</think>\n\nSo. {HERMES_CALL}", "<think>hm", "Yes.")
    body = {"messages": [USER], "n": 3, "tools": [NOW], "return_token_ids": True, **STREAM}
    async with asyncio.timeout(60), httpx2.AsyncClient() as http:
        events = events_of((await http.post(url + CHAT, json=body)).text)
        expected = Assembled(events).whole
        where = f"{other_url}/v1/streams/{events[0].json['id']}"
        for number, event in enumerate(events[:-1]):
            rest = await http.get(where, headers={"Last-Event-ID": event.id})
            assert rest.status_code == 200, rest.text
            assert Assembled(events[: number + 1] + events_of(rest.text)).whole == expected


@pytest.mark.anyio
async def test_sent_back(api: openai.AsyncOpenAI, fake: FakeClient) -> None:
    """The thoughts stand in a field of the official client's message, which can be sent back."""
    say(fake, "<think>\nhm\n</think>\n\nYes.")
    user: Any = USER
    answer = await api.chat.completions.create(model="lift/tiny", messages=[user])
    message: Any = answer.choices[0].message.model_dump()
    assert message["reasoning_content"] == "hm" and message["content"] == "Yes."
    assert answer.usage and answer.usage.completion_tokens_details
    assert answer.usage.completion_tokens_details.reasoning_tokens == 19
    again = await api.chat.completions.create(
        model="lift/tiny", messages=[user, message, user], reasoning_effort="none"
    )
    assert again.choices
    assert "assistant\nYes.<|im_end|>" in prompt_of(fake)
    assert AnswerForm.decode(fake.options[-1].context).reasoning_format == "think"
