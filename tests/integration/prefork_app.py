"""A WSGI application as a pre-fork server loads it: once, before it forks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import chairlift

MAX_TOKENS = 8000
unused, used = chairlift.Client(), chairlift.Client()
used.connect(60)
MASTER = os.getpid()


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    match environ["PATH_INFO"]:
        case "/unused":
            answer = unused.complete("abc", max_tokens=8, temperature=0.0, ignore_eos=True)
            return [f"{os.getpid()} {MASTER} {answer.token_ids}".encode()]
        case "/used":
            return [_failure_of_used().encode()]
    params = {"max_tokens": MAX_TOKENS, "temperature": 0.0, "ignore_eos": True}
    return chairlift.sse(unused.stream("abc", **params))


def _failure_of_used() -> str:
    try:
        used.complete("abc", max_tokens=2)
    except chairlift.ChairliftError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        used.close()
    return "it worked"
