"""What an answer tells of its tokens and its prompt, at the caller's wish."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from msgspec.structs import replace

from chairlift.frontend.results import Delta
from chairlift.shared.logprobs import TokenLogprob
from chairlift.shared.messages import Finish
from chairlift.shared.sampling_params import SamplingParams
from tests.frontend.events import Assembled, events_of
from tests.frontend.fake_client import FakeClient, logprob_of

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO: Any = [{"role": "user", "content": "hello"}]
BODIES = {COMPLETIONS: {"prompt": "abc"}, CHAT: {"messages": HELLO}}


def say(text: str, *, size: int = 2, reason: Any = "stop") -> Any:
    """A script: the text's bytes as tokens, so many at a time; what is no character yet waits."""

    def script(prompt: list[int], params: SamplingParams) -> list[Delta]:
        client = FakeClient()
        ids = client.tokenizer.encode(text)
        deltas, told = [], ""
        for end in range(size, len(ids) + size, size):
            known = client.tokenizer.decode(ids[:end]).rstrip("\ufffd")
            deltas.append(Delta(ids[max(0, end - size) : end], known[len(told) :]))
            told = known
        return [*deltas, Delta([], "", Finish(reason, num_cached_tokens=3))]

    return script


def post(http: TestClient, path: str, **changes: Any) -> Any:
    answer = http.post(path, json=BODIES[path] | changes)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(http: TestClient, path: str, **changes: Any) -> Assembled:
    answer = http.post(path, json=BODIES[path] | changes | {"stream": True})
    assert answer.status_code == 200, answer.text
    return Assembled(events_of(answer.text))


def test_of_a_completion(http: TestClient, fake: Any) -> None:
    """Each token has its name, its logprob, the likeliest and itself, and its place in the text; of
    half a character, its bytes are the name."""
    fake.script = say("aé")
    (choice,) = post(http, COMPLETIONS, logprobs=1)["choices"]
    a, half, other = fake.tokenizer.encode("aé")
    own = [logprob_of(token_id, 1) for token_id in (a, half, other)]
    told = choice["logprobs"]
    assert choice["text"] == "aé"
    assert told["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9"]
    assert told["token_logprobs"] == [one.logprob for one in own]
    assert told["text_offset"] == [0, 1, 1]
    assert told["top_logprobs"][0] == {"b": own[0].top[0][1], "a": own[0].logprob}
    assert fake.asked[0][1].num_logprobs == 1 and fake.asked[0][1].num_prompt_logprobs == -1


def test_of_a_completion_alone(http: TestClient) -> None:
    """With logprobs 0 there is the token itself; without them, null."""
    (choice,) = post(http, COMPLETIONS, logprobs=0, max_tokens=1)["choices"]
    (name,) = choice["logprobs"]["tokens"]
    assert choice["logprobs"]["top_logprobs"] == [{name: logprob_of(0, 0).logprob}]
    assert post(http, COMPLETIONS)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("logprob", [float("nan"), float("-inf"), -1e9])
@pytest.mark.parametrize("path", BODIES)
def test_of_no_number(http: TestClient, fake: Any, path: str, logprob: float) -> None:
    """What JSON can't say, and what is beyond all measure, is -9999."""
    one = TokenLogprob(logprob, ((7, logprob),))
    fake.script = lambda *_: [Delta([7], "x", Finish("stop"), logprobs=[one])]
    asked: Any = {"logprobs": 1} if path == COMPLETIONS else {"logprobs": True, "top_logprobs": 1}
    told = post(http, path, **asked)["choices"][0]["logprobs"]
    assert streamed(http, path, **asked).logprobs[0] == told
    if path == COMPLETIONS:
        assert told["token_logprobs"] == [-9999.0]
        assert list(told["top_logprobs"][0].values()) == [-9999.0]
    else:
        (entry,) = told["content"]
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] == -9999.0


def test_echo(http: TestClient, fake: Any) -> None:
    """The prompt stands before the answer, as the stream's first chunk; it is not generated."""
    whole = post(http, COMPLETIONS, prompt="é b", echo=True, n=2)
    assert [choice["text"] for choice in whole["choices"]] == ["é b 0 1 2 3 4"] * 2
    assert whole["usage"]["completion_tokens"] == 10
    answer = http.post(COMPLETIONS, json={"prompt": "é b", "echo": True, "stream": True})
    first, second, *_ = (event.json["choices"][0] for event in events_of(answer.text)[:-1])
    assert (first["text"], second["text"]) == ("é b", " 0")
    assert (first["finish_reason"], first["logprobs"]) == (None, None)


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("prompt", ["aéb", [5, 6, 7, 8]])
def test_prompt_scoring(http: TestClient, fake: Any, prompt: Any, max_tokens: int) -> None:
    """echo with logprobs scores the prompt, as evaluation harnesses have it: null first."""
    asked = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": max_tokens}
    fake.script = say("c" * max_tokens, reason="length")
    body = post(http, COMPLETIONS, **asked)
    (choice,) = body["choices"]
    ids, params = fake.asked[0]
    told = choice["logprobs"]
    assert (params.max_tokens, params.num_prompt_logprobs) == (max_tokens, 2)
    assert choice["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == max_tokens
    assert {len(column) for column in told.values()} == {len(ids) + max_tokens}
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    scores = [logprob_of(token_id, 2).logprob for token_id in ids[1:]]
    assert told["token_logprobs"][1 : len(ids)] == scores
    if prompt == "aéb":
        assert choice["text"] == "aéb" + "c" * max_tokens
        assert told["text_offset"] == [0, 1, 1, 2, 3][: len(ids) + max_tokens]
    assert streamed(http, COMPLETIONS, **asked).logprobs == {0: told}
    assert streamed(http, COMPLETIONS, **asked).text == {0: choice["text"]}


def test_echo_without_logprobs(http: TestClient, fake: Any) -> None:
    """The prompt alone comes back; a prompt of one token has nothing to score."""
    (choice,) = post(http, COMPLETIONS, echo=True, max_tokens=0)["choices"]
    assert choice["text"] == "abc" and choice["logprobs"] is None
    (choice,) = post(http, COMPLETIONS, prompt=[5], echo=True, max_tokens=0, logprobs=1)["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None]
    full = http.post(COMPLETIONS, json={"prompt": [5] * 1000, "echo": True, "max_tokens": 0})
    assert full.status_code == 200


def test_best_of(http: TestClient, fake: Any) -> None:
    """Of best_of generations for each prompt the n likeliest come, the likeliest first; all of them
    count as generated. Nothing is told of logprobs that weren't asked for."""
    means = iter([-3.0, -1.0, -2.0, float("nan"), -5.0, -4.0])

    def script(prompt: list[int], params: SamplingParams) -> list[Delta]:
        assert params.num_logprobs == 0
        mean = next(means)
        logprobs = [TokenLogprob(mean + 0.5), TokenLogprob(mean - 0.5)]
        return [Delta([1, 2], f"{mean}", Finish("stop"), logprobs=logprobs)]

    fake.script = script
    body = post(http, COMPLETIONS, prompt=["a", "b"], n=2, best_of=3)
    told = [(choice["index"], choice["text"]) for choice in body["choices"]]
    assert told == [(0, "-1.0"), (1, "-2.0"), (2, "-4.0"), (3, "-5.0")]
    assert body["choices"][0]["logprobs"] is None
    assert body["usage"]["completion_tokens"] == 12 and body["usage"]["prompt_tokens"] == 2


def test_best_of_is_no_stream(http: TestClient) -> None:
    """Nor is it one when it was asked for under a key."""
    key = {"Idempotency-Key": "k"}
    body = http.post(COMPLETIONS, json={"prompt": "a", "best_of": 2}, headers=key).json()
    answer = http.get(f"/v1/streams/{body['id']}")
    assert answer.status_code == 400 and "best_of" in answer.json()["error"]["message"]


def test_of_a_chat(http: TestClient, fake: Any) -> None:
    """Each token has its text, its bytes, and the likeliest with theirs."""
    fake.script = say("é")
    (choice,) = post(http, CHAT, logprobs=True, top_logprobs=2)["choices"]
    first, _ = fake.tokenizer.encode("é")
    told = choice["logprobs"]
    assert choice["message"]["content"] == "é" and told["refusal"] is None
    assert [one["bytes"] for one in told["content"]] == [[0xC3], [0xA9]]
    assert told["content"][0]["token"] == "\ufffd"
    own = logprob_of(first, 2)
    assert told["content"][0]["logprob"] == own.logprob
    likeliest = [(one["bytes"], one["logprob"]) for one in told["content"][0]["top_logprobs"]]
    assert likeliest == [
        (list(fake.tokenizer.token_bytes(token_id)), value) for token_id, value in own.top
    ]
    (choice,) = post(http, CHAT, logprobs=True)["choices"]
    assert choice["logprobs"]["content"][0]["top_logprobs"] == []


def test_tokens_without_text(http: TestClient, fake: Any) -> None:
    """A chat's chunk has its new tokens' logprobs, with no content when they make no text yet."""
    fake.script = say("é", size=1)
    answer = http.post(CHAT, json={"messages": HELLO, "logprobs": True, "stream": True})
    chunks = [event.json["choices"][0] for event in events_of(answer.text)[:-1]]
    seen = [
        (chunk["delta"].get("content"), [one["bytes"] for one in told["content"]] if told else None)
        for chunk in chunks
        for told in (chunk["logprobs"],)
    ]
    assert seen == [("", None), ("", [[0xC3]]), ("é", [[0xA9]]), (None, None)]


@pytest.mark.parametrize("path", BODIES)
def test_continued(http: TestClient, fake: Any, path: str) -> None:
    """A stream that is continued anywhere tells of each token once, of the prompt too."""
    fake.script = say("aéb🎉c", size=3)
    asked: Any = {"logprobs": 1, "echo": True} if path == COMPLETIONS else {"logprobs": True}
    asked |= {"stream": True, "resumable": True, "n": 2, "return_token_ids": True}
    answer = http.post(path, json=BODIES[path] | asked)
    events = events_of(answer.text)
    expected = Assembled(events)
    assert len(expected.logprobs) == 2 and expected.prompts and all(expected.token_ids.values())
    for number in range(len(events) - 1):
        held = events[:number]
        header = {"Last-Event-ID": held[-1].id} if held else {}
        rest = http.get(f"/v1/streams/{events[0].json['id']}", headers=header)
        assert rest.status_code == 200
        assert Assembled(held + events_of(rest.text)).whole == expected.whole


def test_token_ids(http: TestClient, fake: Any) -> None:
    """return_token_ids tells those of the prompt and of the answer, streamed ones as they come."""
    whole, asked = post(http, COMPLETIONS, return_token_ids=True), fake.asked[0][0]
    (choice,) = whole["choices"]
    assert choice["token_ids"] == [0, 1, 2, 3, 4] and choice["prompt_token_ids"] == asked
    stream = streamed(http, COMPLETIONS, return_token_ids=True)
    assert stream.token_ids == {0: [0, 1, 2, 3, 4]} and stream.prompts == [asked]
    whole = post(http, CHAT, return_token_ids=True, n=2)
    assert [choice["token_ids"] for choice in whole["choices"]] == [[0, 1, 2, 3, 4]] * 2
    assert whole["prompt_token_ids"] == fake.tokenizer.encode_chat(HELLO)
    stream = streamed(http, CHAT, return_token_ids=True)
    assert stream.prompts == [whole["prompt_token_ids"]]


def test_prompt_logprobs(http: TestClient, fake: Any) -> None:
    """The prompt's tokens and the likeliest in their places by id: null first, and the rank where
    it is known. Beside an echo's own."""
    (choice,) = post(http, COMPLETIONS, prompt=[5, 70], prompt_logprobs=1)["choices"]
    own = logprob_of(70, 1)
    likeliest = {"logprob": own.top[0][1], "decoded_token": name(fake, 71), "rank": 1}
    itself = {"logprob": own.logprob, "decoded_token": name(fake, 70)}
    assert choice["prompt_logprobs"] == [None, {"70": itself, "71": likeliest}]
    body = post(http, CHAT, prompt_logprobs=2)
    assert body["prompt_logprobs"][0] is None
    assert all(len(one) == 2 for one in body["prompt_logprobs"][1:])
    assert body["choices"][0]["logprobs"] is None
    both = post(http, COMPLETIONS, prompt=[5, 70], prompt_logprobs=1, echo=True, logprobs=3)
    (choice,) = both["choices"]
    assert fake.asked[-1][1].num_prompt_logprobs == 3
    assert len(choice["prompt_logprobs"][1]) == 2
    assert len(choice["logprobs"]["top_logprobs"][1]) == 3


def name(fake: FakeClient, token_id: int) -> str:
    return fake.tokenizer.token_bytes(token_id).decode(errors="replace")


def test_special_tokens(http: TestClient, fake: Any) -> None:
    """They have logprobs, and no part in the text unless they were asked to stay."""
    (special,) = fake.tokenizer.backend.encode("<|im_end|>").ids
    a = fake.tokenizer.encode("a")[0]
    scores = [logprob_of(one, 0) for one in (special, a)]
    fake.script = lambda *_: [Delta([special, a], "a", Finish("stop"), logprobs=scores)]
    told = post(http, COMPLETIONS, logprobs=0)["choices"][0]["logprobs"]
    assert told["tokens"] == ["<|im_end|>", "a"] and told["text_offset"] == [0, 0]
    told = post(http, COMPLETIONS, logprobs=0, skip_special_tokens=False)["choices"][0]["logprobs"]
    assert told["text_offset"] == [0, len("<|im_end|>")]
    fake.script = lambda *_: [Delta([], "", Finish("length"))]
    asked = {"prompt": [special, a], "echo": True, "max_tokens": 0}
    assert post(http, COMPLETIONS, **asked)["choices"][0]["text"] == "a"
    whole = post(http, COMPLETIONS, **asked, skip_special_tokens=False)
    assert whole["choices"][0]["text"] == "<|im_end|>a"


def test_failed_at_once(http: TestClient, fake: Any) -> None:
    """A request that fails before its first token echoes nothing."""
    finish = Finish("error", code="overloaded", message="no")
    fake.script = lambda *_: [replace(Delta([], ""), finish=finish)]
    asked = {"prompt": "abc", "echo": True, "logprobs": 1, "stream": True}
    assert http.post(COMPLETIONS, json=asked).status_code == 503


@pytest.mark.anyio
async def test_official_client(api: openai.AsyncOpenAI, fake: Any) -> None:
    """The official client reads both kinds."""
    answer = await api.completions.create(model="lift/tiny", prompt="ab", logprobs=2, echo=True)
    told = answer.choices[0].logprobs
    assert told and told.token_logprobs and len(told.token_logprobs) == 2 + 5
    chat = await api.chat.completions.create(
        model="lift/tiny", messages=HELLO, logprobs=True, top_logprobs=20
    )
    content = chat.choices[0].logprobs and chat.choices[0].logprobs.content
    assert content and len(content) == 5 and len(content[0].top_logprobs) == 20
