"""What is asked of every streaming endpoint, and what it answers, byte for byte.

A file holds an endpoint's streams one after another, each below comment lines, which event streams
have anyway, that tell its request. What differs from one request to the next is replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from fastapi.testclient import TestClient

from chairlift.frontend.api import create_app
from chairlift.frontend.client import AsyncClient
from chairlift.frontend.results import Delta
from chairlift.shared.messages import Finish
from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import ServeSettings
from tests.chat_templates import QWEN3
from tests.frontend.fake_client import TEMPLATE, FakeClient

FOLDER = Path(__file__).parent
PIECES = ("Up", "", " é🚡", "\n", "end")  # one for a token; the second is half a character
VARIABLE = (
    (re.compile(r"(cmpl-|chatcmpl-|resp_|msg_)[0-9a-f]{32}"), r"\1ID"),
    (re.compile(r'"(created|created_at)":[0-9]+'), r'"\1":CREATED'),
    (re.compile(r"fp_[0-9a-f]{10}"), "fp_FINGERPRINT"),
)
CALL_ID = re.compile(r"call_[0-9a-f]{24}")
FAILING_SEED, SHORT_SEED = 13, 8
CALL = (
    "<tool_call>",
    '\n{"na',
    'me": "lift", "argum',
    'ents": {"up": "h',
    'é", "by"',
    ": 2}}\n</tool_call>",
)
SPOKEN = {  # by the system's message, token by token
    "call": CALL,
    "say and call twice": ("Up", ". ", *CALL, "\n", *CALL[:-1], ": 3}}\n</tool_call>"),
    "think and say": ("<think>", "\nh", "m\n\n", "</think>", "\n\n", "Up", ".\n"),
    "think and call": ("<think>", "\nhm", "\n</think>", "\n\n", *CALL),
    "think too long": ("<think>", "\nhm", " "),
    "almost call": ("<tool_call>", '\n{"name": ', '"fall"', "}"),
}

Json = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One stream; `continues_after` events are read before it is asked for again."""

    title: str
    asked: Json = field(default_factory=dict)
    continues_after: int | None = None


COMMON = (
    Case("the end of the answer"),
    Case("the limit", {"max_tokens": 2}),
    Case("usage", {"stream_options": {"include_usage": True}}),
    Case(
        "two choices of different length, usage once for both",
        {"n": 2, "seed": SHORT_SEED - 1, "stream_options": {"include_usage": True}},
    ),
    Case("a failure after the beginning", {"seed": FAILING_SEED}),
)
HELLO = [{"role": "user", "content": "abc"}]
UP = {"type": "object", "properties": {"up": {"type": "string"}, "by": {"type": "integer"}}}
LIFT = {"type": "function", "function": {"name": "lift", "parameters": UP}}


def spoken(title: str, asked: Json | None = None, continues_after: int | None = None) -> Case:
    """The model says what has this title."""
    messages = [{"role": "system", "content": title}, *HELLO]
    return Case(title, {"messages": messages, **(asked or {})}, continues_after)


ENDPOINTS: dict[str, tuple[str, Json, tuple[Case, ...]]] = {
    "completions": (
        "/v1/completions",
        {"prompt": "abc"},
        (*COMMON, Case("two prompts are two choices", {"prompt": ["a", "bc"], "max_tokens": 1})),
    ),
    "chat": ("/v1/chat/completions", {"messages": HELLO}, COMMON),
    "chat_tools": (
        "/v1/chat/completions",
        {"tools": [LIFT]},
        (
            spoken("call"),
            spoken("say and call twice", {"stream_options": {"include_usage": True}}),
            spoken("almost call"),
            spoken("call", {"max_tokens": 5}),
            spoken("call", {"resumable": True}, continues_after=3),
        ),
    ),
    "chat_reasoning": (
        "/v1/chat/completions",
        {"stream_options": {"include_usage": True}},
        (
            spoken("think and say"),
            spoken("think and call", {"tools": [LIFT]}),
            spoken("think too long", {"max_tokens": 3}),
            spoken("think and say", {"resumable": True}, continues_after=2),
        ),
    ),
    "responses": (
        "/v1/responses",
        {"input": "abc"},
        (
            Case("the end of the answer"),
            Case("the limit, amid a message", {"max_output_tokens": 2}),
            Case("a failure after the beginning", {"seed": FAILING_SEED}),
            Case("continued amid the message", {"resumable": True}, continues_after=5),
            Case("continued after the message", {"resumable": True}, continues_after=8),
        ),
    ),
    "streams": (
        "/v1/chat/completions",
        {"messages": HELLO, "resumable": True, "stream_options": {"include_usage": True}},
        (
            Case("continued from the start", continues_after=0),
            Case("continued after the second event", continues_after=2),
            Case("continued after the last choice's end", continues_after=6),
        ),
    ),
}


def path_of(endpoint: str) -> Path:
    return FOLDER / f"{endpoint}.sse"


def recorded(endpoint: str) -> str:
    """The file's content as the code of today writes it."""
    template = QWEN3 if endpoint == "chat_reasoning" else TEMPLATE
    return "".join(_recorded(template, *ENDPOINTS[endpoint]))


def _recorded(template: str, path: str, base: Json, cases: tuple[Case, ...]) -> Iterator[str]:
    for case in cases:
        body = {"seed": 7, **base, **case.asked, "stream": True}
        answer = _answer(template, path, body, case.continues_after)
        for pattern, replacement in VARIABLE:
            answer = pattern.sub(replacement, answer)
        for number, call_id in enumerate(dict.fromkeys(CALL_ID.findall(answer))):
            answer = answer.replace(call_id, f"call_ID{number}")
        yield f": {case.title}\n: POST {path} {json.dumps(body)}\n{answer}"


def _answer(template: str, path: str, body: Json, continues_after: int | None) -> str:
    fake = FakeClient(template)
    (said,) = (SPOKEN.get(one["content"], ()) for one in body.get("messages", HELLO)[:1])
    fake.script = partial(utter, fake, said) if said else speak
    app = create_app(cast(AsyncClient, fake), ServeSettings())
    with TestClient(app) as http:
        answer = http.post(path, json=body).text
        if continues_after is None:
            return answer
        ids = re.findall(r"id: (\S+)", answer)
        answer_id = re.findall(r'"id":"(\S+?)"', answer)[0]
        position = {"Last-Event-ID": ids[continues_after - 1]} if continues_after else {}
        told = "".join(f": {name}: {value}\n" for name, value in position.items())
        return told + http.get(f"/v1/streams/{answer_id}", headers=position).text


def utter(
    fake: FakeClient, pieces: tuple[str, ...], _: list[int], params: SamplingParams
) -> list[Delta]:
    """The pieces as far as they may come."""
    pieces = pieces[: params.max_tokens]
    deltas = [Delta(fake.tokenizer.encode(piece), piece) for piece in pieces]
    is_cut = params.max_tokens == len(pieces)
    return [*deltas, Delta([], "", Finish("length" if is_cut else "stop", num_cached_tokens=1))]


def speak(_: list[int], params: SamplingParams) -> list[Delta]:
    """The pieces as far as they may come; with one seed less, with one a failure."""
    pieces = PIECES[: 3 if params.seed == SHORT_SEED else params.max_tokens]
    deltas = [Delta([number], piece) for number, piece in enumerate(pieces)]
    if params.seed == FAILING_SEED:
        finish = Finish("error", code="worker_crashed_on_request", message="the worker crashed")
        return [*deltas[:1], Delta([], "", finish)]
    is_cut = params.max_tokens < len(PIECES)
    return [*deltas, Delta([], "", Finish("length" if is_cut else "stop", num_cached_tokens=1))]
