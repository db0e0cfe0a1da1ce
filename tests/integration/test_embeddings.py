"""Embeddings from real processes, beside running streams, against transformers' hidden states."""

from __future__ import annotations

import asyncio
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
import torch
from transformers import LlamaForCausalLM

import chairlift
from chairlift.shared.errors import (
    ContextLengthError,
    InvalidRequestError,
    RequestIdConflictError,
)
from chairlift.shared.tokenizer import Tokenizer
from tests.integration.test_openai_client import async_client_of, serving
from tests.tiny_model import HIDDEN, MAX_MODEL_LEN

pytestmark = pytest.mark.slow

TEXTS = ["abc", "a", "gondola " * 40, *(f"cab {i}, and back" for i in range(5))]
POOLINGS: tuple[Literal["last", "mean"], ...] = ("last", "mean")


@pytest.fixture(scope="module")
def url(worker: subprocess.Popen[bytes], worker_address: str) -> Iterator[str]:
    with serving(worker_address) as address:
        yield address


class Oracle:
    """One text at a time, by transformers."""

    def __init__(self, folder: Path) -> None:
        self._model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = Tokenizer.from_folder(folder)

    def __call__(self, text: str, pooling: str, dimensions: int = HIDDEN) -> list[float]:
        """The hidden states after the norm, pooled, to length 1."""
        token_ids = self.tokenizer.encode(text)
        with torch.no_grad():
            hidden = self._model.model(torch.tensor([token_ids])).last_hidden_state[0].double()
        pooled = hidden[-1] if pooling == "last" else hidden.mean(dim=0)
        shortened = pooled[:dimensions]
        vector: list[float] = (shortened / shortened.norm()).tolist()
        return vector


@pytest.fixture(scope="module")
def oracle(tiny_model: Path) -> Oracle:
    return Oracle(tiny_model)


async def story(client: openai.AsyncOpenAI, model: str, seed: int) -> str:
    """A chat as long as the model allows."""
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": f"abc {seed}"}],
        stream=True,
        seed=seed,
        max_tokens=200,
        extra_body={"ignore_eos": True},
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_beside_chats(url: str, tiny_model: Path, oracle: Oracle) -> None:
    """The official client's vectors, in both encodings, one and many, whole and cut, are those of
    transformers while chats run, and the chats are as when they are alone."""
    model = tiny_model.name

    async def embed(client: openai.AsyncOpenAI, pooling: str, **chosen: Any) -> None:
        asked = {"model": model, "extra_body": {"pooling": pooling}, **chosen}
        dimensions = chosen.get("dimensions", HIDDEN)
        batch = await client.embeddings.create(input=TEXTS, **asked)
        (alone,) = (await client.embeddings.create(input=TEXTS[0], **asked)).data
        ids = [oracle.tokenizer.encode(text) for text in TEXTS[-2:]]
        of_ids = await client.embeddings.create(input=ids, **asked)
        found = [*batch.data, alone, *of_ids.data]
        assert [one.index for one in found] == [*range(len(TEXTS)), 0, 0, 1]
        for text, one in zip([*TEXTS, TEXTS[0], *TEXTS[-2:]], found, strict=True):
            assert list(one.embedding) == pytest.approx(oracle(text, pooling, dimensions), abs=1e-4)
        num_tokens = sum(len(oracle.tokenizer.encode(text)) for text in TEXTS)
        assert batch.usage.prompt_tokens == batch.usage.total_tokens == num_tokens

    async def run() -> None:
        async with async_client_of(url) as client:
            stories = [asyncio.create_task(story(client, model, seed)) for seed in range(3)]
            await asyncio.gather(
                *(embed(client, pooling) for pooling in POOLINGS),
                *(embed(client, pooling, encoding_format="float") for pooling in POOLINGS),
                *(embed(client, pooling, dimensions=7) for pooling in POOLINGS),
            )
            together = [await one for one in stories]
            assert together == [await story(client, model, seed) for seed in range(3)]

    asyncio.run(run())


def test_what_the_model_cannot_do(url: str, tiny_model: Path) -> None:
    """More dimensions than it has, and more tokens than it reads, are the caller's mistakes."""

    async def run() -> None:
        async with async_client_of(url) as client:
            for input, chosen, param, code in (
                ("abc", {"dimensions": HIDDEN + 1}, "dimensions", "invalid_value"),
                ([[7] * (MAX_MODEL_LEN + 1)], {}, "input", "context_length_exceeded"),
            ):
                with pytest.raises(openai.BadRequestError) as refused:
                    await client.embeddings.create(model=tiny_model.name, input=input, **chosen)  # type: ignore[arg-type]  # as params of a table
                assert (refused.value.param, refused.value.code) == (param, code)
            full = [[7] * MAX_MODEL_LEN]
            answer = await client.embeddings.create(model=tiny_model.name, input=full)
            assert math.hypot(*answer.data[0].embedding) == pytest.approx(1)

    asyncio.run(run())


def test_without_http(worker: object, worker_address: str, oracle: Oracle) -> None:
    """Both Python clients give the same vector of length 1, and refuse what can't be."""

    async def run(text: str, pooling: Literal["last", "mean"]) -> chairlift.Embedding:
        async with chairlift.AsyncClient(worker_address, connect_timeout_s=60) as client:
            return await client.embed(text, pooling=pooling)

    with chairlift.Client(worker_address, connect_timeout_s=60) as client:
        for text in TEXTS[:3]:
            for pooling in POOLINGS:
                found = client.embed(text, pooling=pooling)
                assert list(found.vector) == pytest.approx(oracle(text, pooling), abs=1e-4)
                assert found.num_prompt_tokens == len(oracle.tokenizer.encode(text))
                assert asyncio.run(run(text, pooling)) == found
        with pytest.raises(ContextLengthError):
            client.embed([7] * (MAX_MODEL_LEN + 1))
        with pytest.raises(InvalidRequestError, match="pooling is 'last' or 'mean'"):
            client.embed("abc", pooling="max")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match="empty"):
            client.embed("")


def test_one_id_is_one_pooling(worker: object, worker_address: str) -> None:
    """A live request is not joined by one that asks for another vector of the same prompt."""

    async def run() -> None:
        async with chairlift.AsyncClient(worker_address, connect_timeout_s=60) as client:
            await client.connect()
            last, mean = (
                chairlift.RequestOptions(request_id=bytes(16), pooling=pooling)
                for pooling in POOLINGS
            )
            params = chairlift.SamplingParams(max_tokens=0)
            async with client.generate([7, 8], params, last):
                async with client.generate([7, 8], params, last):
                    pass
                with pytest.raises(RequestIdConflictError):
                    client.generate([7, 8], params, mean)

    asyncio.run(run())
