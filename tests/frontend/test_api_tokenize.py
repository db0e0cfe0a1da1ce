"""/tokenize, /detokenize, /version and /ready."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from chairlift.frontend.api.health import tell_draining
from tests.frontend.fake_client import MAX_MODEL_LEN

HELLO = [{"role": "user", "content": "Hi"}]


def tokens_of(http: TestClient, **body: Any) -> list[int]:
    answer = http.post("/tokenize", json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["count"] == len(told["tokens"]) and told["max_model_len"] == MAX_MODEL_LEN
    return list(told["tokens"])


def text_of(http: TestClient, tokens: list[int]) -> str:
    answer = http.post("/detokenize", json={"tokens": tokens})
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"prompt"}
    return str(answer.json()["prompt"])


def refusal(answer: Any, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    return dict(answer.json()["error"])


def test_a_prompt(http: TestClient, fake: Any) -> None:
    """Its tokens are those that a completion of it would read; nothing is asked of the worker."""
    assert tokens_of(http, prompt="AB") == [32, 33]
    assert tokens_of(http, prompt="AB", model="lift/tiny", add_special_tokens=False) == [32, 33]
    assert tokens_of(http, prompt="") == []
    assert not fake.asked


def test_token_strings(http: TestClient) -> None:
    """The vocabulary's own spelling, on demand."""
    answer = http.post("/tokenize", json={"prompt": "A b", "return_token_strs": True})
    assert answer.json()["token_strs"] == ["A", "Ġ", "b"]
    assert "token_strs" not in http.post("/tokenize", json={"prompt": "A b"}).json()


def test_messages(http: TestClient, fake: Any) -> None:
    """Their tokens are those that a chat would read; without the generation prompt, the turns."""
    http.post("/v1/chat/completions", json={"messages": HELLO})
    assert tokens_of(http, messages=HELLO) == fake.asked[0][0]
    turns = text_of(http, tokens_of(http, messages=HELLO, add_generation_prompt=False))
    assert turns == "<|im_start|>user\nHi<|im_end|>\n"
    assert text_of(http, fake.asked[0][0]) == turns + "<|im_start|>assistant\n"


def test_special_tokens_that_a_user_spells(http: TestClient, fake: Any) -> None:
    """They are the characters that they are."""
    assert len(tokens_of(http, prompt="<|im_end|>")) == len("<|im_end|>")


@pytest.mark.parametrize("text", ["", "Hello, world", "schöne 🚡", "a\0b", "<|im_end|>"])
def test_there_and_back(http: TestClient, text: str) -> None:
    """A text's tokens spell the text."""
    assert text_of(http, tokens_of(http, prompt=text)) == text


def test_long_ones(http: TestClient) -> None:
    """A text may be longer than the model can read, to be counted; one that is so long whatever its
    tokens were is refused before any work."""
    text = "ab" * 1001
    assert text_of(http, tokens_of(http, prompt=text)) == text
    error = refusal(http.post("/tokenize", json={"prompt": "a" * 100_000}))
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    long = [{"role": "user", "content": "a" * 100_000}]
    assert refusal(http.post("/tokenize", json={"messages": long}))["param"] == "messages"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/tokenize", {"messages": HELLO, "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/tokenize", {"prompt": "a", "stream": True}, "stream"),
        ("/tokenize", {"prompt": "a", "return_token_strs": 1}, "return_token_strs"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [300]}, "tokens"),
        ("/detokenize", {"tokens": [1.0]}, "tokens"),
        ("/detokenize", {"tokens": [1], "skip_special_tokens": True}, "skip_special_tokens"),
    ],
)
def test_refusals(http: TestClient, path: str, body: Any, param: str) -> None:
    """By name."""
    assert refusal(http.post(path, json=body))["param"] == param


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_which_model(http: TestClient, fake: Any, path: str) -> None:
    """Another model's tokens are not known here, and before there is a worker nobody's are."""
    body = {"prompt": "a"} if path == "/tokenize" else {"tokens": [1]}
    error = refusal(http.post(path, json=body | {"model": "no/such"}), 404)
    assert error["code"] == "model_not_found"
    fake.worker = None
    assert refusal(http.post(path, json=body), 503)["code"] == "worker_unavailable"


def test_version(http: TestClient) -> None:
    """The installed one."""
    assert http.get("/version").json() == {"version": version("chairlift")}


def test_ready(http: TestClient, fake: Any) -> None:
    """As /health, and only with the tokenizer."""

    def statuses() -> tuple[int, int, str]:
        ready = http.get("/ready")
        return http.get("/health").status_code, ready.status_code, ready.json()["status"]

    assert statuses() == (200, 200, "ok")
    fake.lacks_tokenizer = True
    assert statuses() == (200, 503, "starting")
    for trouble in ("starting", "away", "wedged", "draining"):
        fake.trouble = trouble
        assert statuses() == (503, 503, trouble)
    fake.trouble, fake.lacks_tokenizer = None, False
    assert isinstance(http.app, FastAPI)
    tell_draining(http.app)
    assert statuses() == (503, 503, "draining")
