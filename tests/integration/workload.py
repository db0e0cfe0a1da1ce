"""A fixed list of requests of every kind, and what a stream gave of one of them."""

from __future__ import annotations

import random
from typing import Any

import msgspec

NUM_REQUESTS = 64
MAX_PROMPT_CHARACTERS = 120
WORDS = ["abc", "pa pe", "o9 ", "k3k", "日本語", "🙂🙃", "é", "m0", " ", "word7", "\n", "d4 d4"]


class Request(msgspec.Struct, frozen=True):
    """`params` are SamplingParams by name."""

    prompt: str
    params: dict[str, Any]


class Record(msgspec.Struct):
    """One stream as its reader saw it; times are of the machine's monotonic clock."""

    number: int  # of the request
    started_s: float
    token_ids: list[int] = []
    text: str = ""
    arrivals_s: list[float] = []
    num_ends: int = 0
    reason: str = "unfinished"
    code: str = ""
    request_id: str = ""

    @property
    def is_refused(self) -> bool:
        """Told at once to come again later: nothing was promised."""
        codes = ("overloaded", "queue_timeout", "draining", "shutting_down")
        return self.code in codes and not self.token_ids and not self.text


def requests(num_requests: int = NUM_REQUESTS) -> list[Request]:
    """Always the same ones; each is deterministic, since seeds are set."""
    choose = random.Random(2025)
    return [_request(number, choose) for number in range(num_requests)]


def _request(number: int, choose: random.Random) -> Request:
    prompt = ""
    for _ in range(choose.choice([1, 4, 12, 40])):
        prompt += choose.choice(WORDS)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 0.8, "top_k": 40, "repetition_penalty": 1.2},
        {"temperature": 1.0, "stop": ["a1", "🙂", "e e", "zz"]},
        {"temperature": 0.7, "presence_penalty": 0.5, "frequency_penalty": 0.3},
        {"temperature": 1.3, "min_p": 0.02, "logit_bias": {7: 2.0, 300: -5.0}},
        {"temperature": 1.0, "stop_token_ids": [11, 200], "min_tokens": 20},
        {"temperature": 0.0, "frequency_penalty": 1.0, "stop": "word1"},
    ]
    params = kinds[number % len(kinds)] | {
        "seed": number,
        "ignore_eos": number % 3 > 0,
        "max_tokens": choose.choice([24, 60, 150, 300]),
    }
    return Request(prompt[:MAX_PROMPT_CHARACTERS], params)
