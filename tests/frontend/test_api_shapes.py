"""Answers as the official client and the bytes on the wire see them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import openai
import pytest

from chairlift.frontend.results import Delta
from chairlift.shared.messages import Finish
from tests.frontend.events import events_of

pytestmark = pytest.mark.anyio
HELLO: Any = [{"role": "user", "content": "hello"}]


async def test_completion(api: openai.AsyncOpenAI, fake: Any) -> None:
    """A completion has its text, its reason and its usage."""
    answer = await api.completions.create(model="lift/tiny", prompt="abc", max_tokens=3)
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion"
    assert answer.model == "lift/tiny" and answer.system_fingerprint
    assert [(c.index, c.text, c.finish_reason) for c in answer.choices] == [(0, " 0 1 2", "length")]
    assert answer.usage and answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == 3 and answer.usage.total_tokens == 6
    assert (
        answer.usage.prompt_tokens_details and answer.usage.prompt_tokens_details.cached_tokens == 3
    )
    assert answer._request_id and answer._request_id.startswith("req-")


async def test_completion_defaults(api: openai.AsyncOpenAI, fake: Any) -> None:
    """Without max_tokens a completion gets 16, cut to what fits, and a drawn seed."""
    await api.completions.create(model="lift/tiny", prompt="abc")
    await api.completions.create(model="lift/tiny", prompt="a" * 995)
    (_, first), (_, second) = fake.asked
    assert first.max_tokens == 16 and second.max_tokens == 5
    assert first.seed != second.seed


async def test_completion_stream(api: openai.AsyncOpenAI) -> None:
    """A streamed completion's pieces make the whole, under one id and without usage."""
    stream = await api.completions.create(model="lift/tiny", prompt="abc", stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == " 0 1 2 3 4"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 5 + ["stop"]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


async def test_chat(api: openai.AsyncOpenAI, fake: Any) -> None:
    """A chat answer is an assistant's message; the prompt went through the template."""
    answer = await api.chat.completions.create(model="lift/tiny", messages=HELLO)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == " 0 1 2 3 4"
    assert answer.choices[0].message.refusal is None and answer.choices[0].logprobs is None
    assert answer.choices[0].finish_reason == "stop"
    prompt, params = fake.asked[0]
    assert prompt == fake.tokenizer.encode_chat(HELLO)
    assert params.max_tokens == 1000 - len(prompt)


async def test_chat_stream(api: openai.AsyncOpenAI) -> None:
    """A chat stream opens with the role and ends with an empty delta and the reason."""
    stream = await api.chat.completions.create(model="lift/tiny", messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert chunks[0].object == "chat.completion.chunk"
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert [delta.content for delta in deltas[1:-1]] == [" 0", " 1", " 2", " 3", " 4"]
    assert deltas[-1].content is None and chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
async def test_stream_on_the_wire(url: str, path: str) -> None:
    """With include_usage every chunk has a null usage but the last, and [DONE] ends it. Every
    event has an id."""
    body = {"prompt": "abc"} if path == "completions" else {"messages": HELLO}
    body |= {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 2}
    async with httpx2.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/{path}", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    events = events_of(answer.text)
    assert events.pop().is_done
    assert len({event.id for event in events}) == len(events)
    chunks = [event.json for event in events]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 2


async def test_several_choices(api: openai.AsyncOpenAI, fake: Any) -> None:
    """n choices for each prompt, numbered through, with seeds that follow the one given."""
    answer = await api.completions.create(
        model="lift/tiny", prompt=["a", "bcd"], n=2, seed=2**63 - 1, max_tokens=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [params.seed for _, params in fake.asked] == [2**63 - 1, 0] * 2
    assert [len(prompt) for prompt, _ in fake.asked] == [1, 1, 3, 3]
    assert answer.usage and answer.usage.prompt_tokens == 4 and answer.usage.completion_tokens == 4


async def test_streamed_choices_by_index(api: openai.AsyncOpenAI) -> None:
    """The streams of n choices come as one, told apart by their index."""
    stream = await api.chat.completions.create(model="lift/tiny", messages=HELLO, n=3, stream=True)
    texts = ["", "", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [" 0 1 2 3 4"] * 3


@pytest.mark.parametrize("prompt", ["ab", ["ab"], [1, 2], [[1, 2]]])
async def test_prompt_forms(api: openai.AsyncOpenAI, fake: Any, prompt: Any) -> None:
    """A prompt may be text or token ids, one or a list of them."""
    await api.completions.create(model="lift/tiny", prompt=prompt)
    expected = fake.tokenizer.encode("ab") if "ab" in prompt else [1, 2]
    assert fake.asked[0][0] == expected


async def test_content_parts_and_roles(api: openai.AsyncOpenAI, fake: Any) -> None:
    """Text parts are joined, every role reaches the template (a developer
    as system, where the template knows no developer), an answer can be sent back."""
    answer = await api.chat.completions.create(model="lift/tiny", messages=HELLO)
    messages: Any = [
        {"role": "developer", "content": "d"},
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]},
        answer.choices[0].message.model_dump(),
    ]
    await api.chat.completions.create(model="lift/tiny", messages=messages)
    text = fake.tokenizer.backend.decode(fake.asked[1][0], skip_special_tokens=False)
    for turn in ("system\nd", "system\ns", "user\nab", "assistant\n 0 1 2 3 4"):
        assert turn in text


async def test_sampling_parameters_arrive(api: openai.AsyncOpenAI, fake: Any) -> None:
    """Every parameter that we have, the extensions too, reaches the engine's client."""
    await api.completions.create(
        model="lift/tiny",
        prompt="a",
        temperature=0.5,
        top_p=0.9,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": -100},
        stop="x",
        seed=-1,
        user="somebody",
        extra_body={
            "top_k": -1,
            "min_p": 0.1,
            "repetition_penalty": 1.5,
            "min_tokens": 2,
            "ignore_eos": True,
            "stop_token_ids": [7],
        },
    )
    params = fake.asked[0][1]
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 0, 0.1)
    assert (params.presence_penalty, params.frequency_penalty) == (1, -1)
    assert params.repetition_penalty == 1.5 and params.logit_bias == ((5, -100),)
    assert params.stop == ("x",) and params.stop_token_ids == (7,)
    assert params.min_tokens == 2 and params.ignore_eos and params.seed == 2**63 - 1


async def test_models(api: openai.AsyncOpenAI) -> None:
    """The one model is listed, and found although its name has a slash."""
    listed = [model async for model in api.models.list()]
    assert [model.id for model in listed] == ["lift/tiny"]
    model = await api.models.retrieve("lift/tiny")
    assert (model.object, model.created, model.owned_by) == ("model", 1_700_000_000, "chairlift")
    with pytest.raises(openai.NotFoundError) as error:
        await api.models.retrieve("else/where")
    assert error.value.code == "model_not_found"


async def test_eight_streams_interleave(api: openai.AsyncOpenAI, fake: Any) -> None:
    """Eight concurrent streams advance together: all have begun before any goes on."""
    fake.gate = asyncio.Semaphore(0)
    begun = asyncio.Barrier(9)

    async def read() -> str:
        text = ""
        stream = await api.chat.completions.create(model="lift/tiny", messages=HELLO, stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content and not text:
                await begun.wait()
            text += chunk.choices[0].delta.content or ""
        return text

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        tasks = [group.create_task(read()) for _ in range(8)]
        await begun.wait()
        for _ in range(100):
            fake.gate.release()
    assert {task.result() for task in tasks} == {" 0 1 2 3 4"}


async def test_sync_client(url: str, fake: Any) -> None:
    """The synchronous official client streams as well."""

    def read() -> str:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
            stream = client.completions.create(model="lift/tiny", prompt="a", stream=True)
            return "".join(chunk.choices[0].text for chunk in stream)

    assert await asyncio.to_thread(read) == " 0 1 2 3 4"


async def test_text_and_end_in_one_delta(api: openai.AsyncOpenAI, fake: Any) -> None:
    """The last delta may carry text, which comes before the reason; empty ones send nothing."""
    fake.script = lambda *_: [Delta([1], ""), Delta([2, 3], "ab", Finish("stop"))]
    stream = await api.chat.completions.create(model="lift/tiny", messages=HELLO, stream=True)
    seen = [(c.choices[0].delta.content, c.choices[0].finish_reason) async for c in stream]
    assert seen == [("", None), ("ab", None), (None, "stop")]
