"""A stream says what the whole answer says: random requests of both routes, many at once."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.gpu import DEVICE
from tests.integration.processes import chairlift, serving
from tests.tiny_model import VOCAB_SIZE

pytestmark = pytest.mark.slow

NUM_CASES, NUM_SCOUTS = 1000, 150
BLOCK_SIZE = {"cpu": 32, "cuda": 64}[DEVICE]
NUM_AT_ONCE = 32
MAX_TOKENS = 20
ALPHABETS = [
    "abcdefgh 0123456789",
    "éß\u0301Ωж한日本語 ",
    "🙂👍\u200d👩🇫🇷\ufe0f",
    '{}[]"\\<>&\n\t',
    "\x00\x7f\u2028\ufffd\U0010ffff",
]


@dataclass(frozen=True, slots=True)
class Case:
    """One request; the stop strings of most come from what a scout was told."""

    route: str
    body: dict[str, Any]


@dataclass(slots=True)
class Said:
    """One choice, put together if it was streamed."""

    text: str = ""
    reason: str | None = None
    token_ids: list[int] = field(default_factory=list)
    tokens: list[Any] = field(default_factory=list)  # and what is told of each but its score
    scores: list[float | None] = field(default_factory=list)
    top_scores: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Answer:
    choices: dict[int, Said]
    usage: dict[str, int]
    prompts: dict[int, list[int]]


@pytest.fixture(scope="module")
def url(tiny_model: Path, worker_address: str) -> Iterator[str]:
    settings: dict[str, Any] = {"model": tiny_model, "address": worker_address}
    settings |= {"dtype": "float32", "kernels": "native"}  # no bit depends on the batch
    with chairlift("worker", **settings), serving(worker_address) as address:
        yield address


def text_of(chance: random.Random, max_length: int) -> str:
    alphabet = "".join(chance.sample(ALPHABETS, chance.randint(1, 3)))
    return "".join(chance.choices(alphabet, k=chance.randint(1, max_length)))


def prompt_of(chance: random.Random) -> Any:
    def one(is_text: bool) -> Any:
        if is_text:
            return text_of(chance, 40)
        return chance.choices(range(VOCAB_SIZE), k=chance.randint(1, 60))

    is_text = chance.random() < 0.6
    if chance.random() < 0.2:
        return [one(is_text) for _ in range(chance.randint(1, 3))]
    return one(is_text)


def messages_of(chance: random.Random) -> list[dict[str, str]]:
    roles = chance.choices(["user", "assistant", "system", "developer"], k=chance.randint(0, 2))
    return [{"role": role, "content": text_of(chance, 20)} for role in [*roles, "user"]]


def scout(chance: random.Random) -> Case:
    """Without anything that would end it early."""
    body: dict[str, Any] = {"seed": chance.randint(-(2**63), 2**63 - 1), "max_tokens": MAX_TOKENS}
    body["temperature"] = chance.choice([0, 0.5, 1, 1.5])
    if chance.random() < 0.4:
        return Case("chat/completions", {"messages": messages_of(chance), **body})
    return Case("completions", {"prompt": prompt_of(chance), **body})


def case(chance: random.Random, scouts: list[Case], answers: list[Answer]) -> Case:
    """A scout's request with more said of it, most often with a stop string that has to come."""
    number = chance.randrange(len(scouts))
    route, body = scouts[number].route, dict(scouts[number].body)
    body["n"] = chance.randint(1, 4)
    body["max_tokens"] = chance.randint(1, MAX_TOKENS)
    if chance.random() < 0.7:
        body["stop"] = stops(chance, answers[number].choices[0].text)
    optional: dict[str, Any] = {
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "return_token_ids": True,
        "skip_special_tokens": False,
        "top_p": chance.choice([0.3, 0.9]),
        "top_k": chance.choice([1, 5, 100]),
        "min_p": 0.05,
        "min_tokens": chance.randint(0, body["max_tokens"]),
        "frequency_penalty": chance.choice([-1, 1.5]),
        "repetition_penalty": 1.3,
        "logit_bias": {str(chance.randrange(VOCAB_SIZE)): chance.choice([-100, 4, 8])},
        "stop_token_ids": chance.choices(range(VOCAB_SIZE), k=5),
        "priority": chance.randint(0, 2),
    }
    for name in chance.sample(sorted(optional), chance.randint(0, 4)):
        body[name] = optional[name]
    if chance.random() < 0.4:
        told = {"logprobs": chance.randint(0, 5)}
        is_chat = route == "chat/completions"
        body |= {"logprobs": True, "top_logprobs": chance.randint(0, 5)} if is_chat else told
    if route == "completions" and chance.random() < 0.3:
        body["echo"] = True
    return Case(route, body)


def stops(chance: random.Random, text: str) -> list[str]:
    """Pieces of a text, and others that probably don't come but may begin."""
    found = []
    for _ in range(chance.randint(1, 3)):
        begin = chance.randrange(max(len(text), 1))
        piece = text[begin : begin + chance.randint(1, 5)]
        found.append(piece + chance.choice(["", "", "", "zq"]) or "a")
    return found


async def whole(http: httpx2.AsyncClient, one: Case) -> Answer:
    answer = await http.post(f"/v1/{one.route}", json=one.body)
    assert answer.status_code == 200, f"{one}: {answer.text}"
    body = answer.json()
    choices: dict[int, Said] = {}
    for choice in body["choices"]:
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        take(choices.setdefault(choice["index"], Said()), choice, text)
    return Answer(choices, counted(body), prompts_of(body))


async def streamed(http: httpx2.AsyncClient, one: Case) -> Answer:
    body = {**one.body, "stream": True, "stream_options": {"include_usage": True}}
    answer = await http.post(f"/v1/{one.route}", json=body)
    assert answer.status_code == 200, f"{one}: {answer.text}"
    *events, done = events_of(answer.text)
    assert done == "[DONE]", f"{one}: {done}"
    chunks = [json.loads(event) for event in events]
    choices: dict[int, Said] = {}
    prompts: dict[int, list[int]] = {}
    for chunk in chunks:
        prompts |= prompts_of(chunk)
        for choice in chunk["choices"]:
            said = choices.setdefault(choice["index"], Said())
            assert said.reason is None, f"{one}: more after the end of {choice['index']}"
            text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
            take(said, choice, text)
    assert all(not chunk.get("usage") for chunk in chunks[:-1])
    return Answer(choices, counted(chunks[-1]), prompts)


def events_of(text: str) -> list[str]:
    return re.findall(r"^data: (.*)$", text, re.MULTILINE)


def take(said: Said, choice: dict[str, Any], text: str) -> None:
    said.text += text
    said.reason = choice["finish_reason"]
    said.token_ids += choice.get("token_ids") or []
    logprobs = choice["logprobs"] or {}
    if "content" in logprobs:
        said.tokens += [(entry["token"], entry["bytes"]) for entry in logprobs["content"]]
        said.scores += [entry["logprob"] for entry in logprobs["content"]]
        tops = [entry["top_logprobs"] for entry in logprobs["content"]]
        said.top_scores += [one["logprob"] for top in tops for one in top]
    elif logprobs:
        said.tokens += zip(logprobs["tokens"], logprobs["text_offset"], strict=True)
        said.scores += logprobs["token_logprobs"]
        said.top_scores += [
            score for top in logprobs["top_logprobs"] if top for score in top.values()
        ]


def counted(body: dict[str, Any]) -> dict[str, int]:
    """Less what was cached, which is another's doing."""
    usage = body["usage"]
    return {name: value for name, value in usage.items() if isinstance(value, int)}


def prompts_of(body: dict[str, Any]) -> dict[int, list[int]]:
    """Of the choices, or of all at once."""
    found = {one["index"]: one["prompt_token_ids"] for one in body["choices"] if has_prompt(one)}
    return found | ({0: body["prompt_token_ids"]} if has_prompt(body) else {})


def has_prompt(body: dict[str, Any]) -> bool:
    return "prompt_token_ids" in body


def difference(one: Answer, other: Answer) -> str:
    """What differs first; empty when nothing does."""
    for name in ("usage", "prompts"):
        if getattr(one, name) != getattr(other, name):
            return f"{name}: {getattr(one, name)} {getattr(other, name)}"
    if one.choices.keys() != other.choices.keys():
        return f"choices: {one.choices.keys()} {other.choices.keys()}"
    for index, said in one.choices.items():
        for name in ("text", "reason", "token_ids", "tokens", "scores", "top_scores"):
            values = getattr(said, name), getattr(other.choices[index], name)
            if values[0] != values[1]:
                return f"{name} of choice {index}: {values[0]!r} {values[1]!r}"
    return ""


class Comparison:
    """Of streams with whole answers, so many at once."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self._places = asyncio.Semaphore(NUM_AT_ONCE)
        self.wrong: list[str] = []

    async def compare(self, cases: list[Case]) -> list[Answer]:
        return await asyncio.gather(*map(self._compare, cases))

    async def _compare(self, one: Case) -> Answer:
        async with self._places:
            first, second = await asyncio.gather(whole(self._http, one), streamed(self._http, one))
        if found := difference(first, second):
            self.wrong.append(f"{one}: {found}")
        return first


def test_streams_say_what_whole_answers_say(url: str) -> None:
    """Text, reasons, usage, token ids, log probabilities and prompts of a thousand requests are the
    same streamed and whole, in a busy server."""
    chance = random.Random(20)

    async def run() -> Comparison:
        limits = httpx2.Limits(max_connections=2 * NUM_AT_ONCE)
        async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=60) as http:
            comparison = Comparison(http)
            scouts = [scout(chance) for _ in range(NUM_SCOUTS)]
            answers = await comparison.compare(scouts)
            cases = [case(chance, scouts, answers) for _ in range(NUM_CASES - NUM_SCOUTS)]
            answers += await comparison.compare(cases)
            reasons = [said.reason for one in answers for said in one.choices.values()]
            assert min(reasons.count("stop"), reasons.count("length")) > NUM_CASES / 4
            return comparison

    comparison = asyncio.run(run())
    assert not comparison.wrong, "\n".join(comparison.wrong[:5])


def figures(url: str) -> dict[str, float]:
    """The worker's, once it has nothing to do."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        text = httpx2.get(f"{url}/metrics").text
        pairs = re.findall(r"^chairlift:(\w+) (\S+)$", text, re.MULTILINE)
        found = {name: float(value) for name, value in pairs}
        if found["num_requests_running"] == found["num_requests_waiting"] == 0:
            return found
        time.sleep(0.05)
    raise AssertionError("the worker never rests")


@pytest.mark.parametrize("is_stream", [False, True])
def test_choices_share_their_prompt(url: str, is_stream: bool) -> None:
    """The prompt of n choices is counted and computed once; the second time it is cached, but for
    its last block."""
    chance = random.Random(is_stream)
    prompt = chance.choices(range(1, VOCAB_SIZE), k=320)
    body: dict[str, Any] = {"prompt": prompt, "n": 4, "max_tokens": 5, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}} if is_stream else {}
    cached = []
    for num_computed in (320, 0):
        before = figures(url)["prompt_tokens_total"]
        text = httpx2.post(f"{url}/v1/completions", json=body).text
        last = events_of(text)[-2] if is_stream else text
        usage = json.loads(last)["usage"]
        assert usage["prompt_tokens"] == 320 and usage["completion_tokens"] == 20
        cached.append(usage["prompt_tokens_details"]["cached_tokens"])
        time.sleep(0.3)  # the figures come with the worker's messages
        computed = figures(url)["prompt_tokens_total"] - before
        assert num_computed <= computed <= num_computed + 4 * BLOCK_SIZE
    assert cached[0] == 0 and cached[1] >= 320 - BLOCK_SIZE
