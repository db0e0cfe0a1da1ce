"""POST /v1/embeddings: texts or token ids in, a vector for each out.

Reference: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import asyncio
import base64
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import orjson
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...shared.errors import ContextLengthError, InvalidRequestError
from ..embedding import EMBEDDING_PARAMS, Embedding, last_of
from ..token_stream import TokenStream
from .body import read_json, validated
from .context import Context, Served, in_thread_if
from .metrics import Stopwatch
from .parameters import Neutral
from .prompts import Prompts, encoded
from .request_body import U31, WorkerRequestBody
from .schema import documented
from .sending import JSON_HEADERS, send_end, start, until_hung_up

THREAD_NUMBERS = 1 << 14  # writing more than these at once would hold up other streams


class EmbeddingRequest(WorkerRequestBody):
    """POST /v1/embeddings."""

    neutral: ClassVar[Neutral] = {"truncate_prompt_tokens": ()}

    input: Prompts
    encoding_format: Annotated[
        Literal["float", "base64"], Field(description="base64: of float32, little-endian.")
    ] = "float"
    dimensions: Annotated[
        int | None, Field(ge=1, le=U31, description="Only so many, the first; of length 1 again.")
    ] = None
    pooling: Annotated[
        Literal["last", "mean"], Field(description="The last token's state, or the mean of all.")
    ] = "last"

    def vector_of(self, embedding: Embedding) -> str | list[float]:
        """As it was asked for."""
        if self.encoding_format == "base64":
            return base64.b64encode(embedding.to_bytes()).decode()
        return embedding.vector.tolist()


def embeddings_router(context: Context) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/embeddings", **documented(EmbeddingRequest, generates=False))
    async def create_embeddings(request: Request) -> Response:
        """Turn texts into vectors of length 1. An Idempotency-Key makes no difference."""
        asked = validated(EmbeddingRequest, await read_json(request, context.settings))
        served = context.served(asked.model)
        inputs = await encoded(asked.input, served, param="input")
        for number, token_ids in enumerate(inputs):
            _check_length(number, len(token_ids), served.greeting.max_model_len)
        return EmbeddingAnswer(served, asked, inputs)

    return router


def _check_length(number: int, num_tokens: int, max_model_len: int) -> None:
    if not num_tokens:
        raise InvalidRequestError(f"input {number} has no tokens: leave it out", param="input")
    if num_tokens > max_model_len:
        message = f"input {number} has {num_tokens} tokens, this model takes {max_model_len}"
        raise ContextLengthError(f"{message}: shorten it, or send it in parts", param="input")


class EmbeddingAnswer(Response):
    """Asks for all of them at once while it is being sent; when the caller leaves or one fails, the
    others are cancelled."""

    def __init__(self, served: Served, asked: EmbeddingRequest, inputs: list[list[int]]) -> None:
        super().__init__()
        self._context = served.context
        self._asked = asked
        self._inputs = inputs
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises, before anything is sent, what the worker or the limits refuse."""
        context, tenant = self._context, scope["chairlift.caller"].tenant
        more = len(self._inputs) - 1  # than the one that the gate holds
        with context.places.hold(tenant, more, num_held=1, param="input"):
            embeddings = await self._embed(tenant, receive)
        is_long = sum(len(one.vector) for one in embeddings) > THREAD_NUMBERS
        body = await in_thread_if(is_long, self._body, embeddings)
        try:
            async with asyncio.timeout(context.settings.stall_timeout_s):
                await start(send, JSON_HEADERS, len(body))
                await send_end(send, body)
        except TimeoutError:
            raise ClientDisconnect from None

    async def _embed(self, tenant: str, receive: Receive) -> list[Embedding]:
        """In order; raises what the first to fail raises, or ClientDisconnect."""
        options = replace(
            self._asked.options(self._context, tenant),
            pooling=self._asked.pooling,
            tokenizer=self._served.tokenizer.fingerprint,
        )
        async with AsyncExitStack() as running:
            streams = [
                await running.enter_async_context(
                    self._context.client.generate(token_ids, EMBEDDING_PARAMS, options)
                )
                for token_ids in self._inputs
            ]
            try:
                async with asyncio.TaskGroup() as group:
                    watch = group.create_task(until_hung_up(receive))
                    reads = [
                        group.create_task(self._read(stream, len(token_ids)))
                        for stream, token_ids in zip(streams, self._inputs, strict=True)
                    ]
                    await asyncio.wait(reads)
                    watch.cancel()
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
            return [read.result() for read in reads]

    async def _read(self, stream: TokenStream, num_tokens: int) -> Embedding:
        stopwatch = Stopwatch(self._context.metrics)
        last = await last_of(stream)
        stopwatch.saw(last)
        embedding = Embedding.of(last, num_tokens)
        wanted = self._asked.dimensions
        return embedding if wanted is None else embedding.shortened(wanted)

    def _body(self, embeddings: list[Embedding]) -> bytes:
        data = [
            {"object": "embedding", "index": index, "embedding": self._asked.vector_of(embedding)}
            for index, embedding in enumerate(embeddings)
        ]
        num_tokens = sum(embedding.num_prompt_tokens for embedding in embeddings)
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        answer = {
            "object": "list",
            "data": data,
            "model": self._served.greeting.model,
            "usage": usage,
        }
        return orjson.dumps(answer)
