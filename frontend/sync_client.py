"""The client for programs without an event loop: the same client, driven from a thread."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from typing import Any, Literal, Self, TypeVar

from ..shared.curve import FrontendCurve
from ..shared.errors import ClientClosedError
from ..shared.messages import Greeting
from ..shared.tokenizer import Tokenizer
from .client import AsyncClient
from .embedding import Embedding
from .prompt import ChatMessage, Prompt
from .results import Completion, Delta

T = TypeVar("T")
CLOSE_TIMEOUT_S = 5.0


class Client:
    """Blocking twin of AsyncClient; safe to use from many threads.

    Its thread starts at the first use, so a Client may be made before a fork. One that was used
    before raises ClientClosedError in the child.

        with Client() as client:
            for delta in client.stream("Once upon a time", max_tokens=64):
                print(delta.text, end="", flush=True)
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        connect_timeout_s: float = 10.0,
        curve: FrontendCurve | None = None,
    ) -> None:
        """See AsyncClient."""
        self._client = AsyncClient(
            address, tokenizer=tokenizer, connect_timeout_s=connect_timeout_s, curve=curve
        )
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid: int | None = None
        self._is_closed = False

    @property
    def worker(self) -> Greeting | None:
        """See AsyncClient.worker."""
        return self._client.worker

    @property
    def tokenizer(self) -> Tokenizer:
        """See AsyncClient.tokenizer."""
        return self._client.tokenizer

    def connect(self, timeout_s: float | None = None) -> None:
        """See AsyncClient.connect."""
        self._run(self._client.connect(timeout_s))

    def stream(
        self, prompt: Prompt, *, wants_queue_news: bool = False, **params: Any
    ) -> Generator[Delta, None, None]:
        """See AsyncClient.stream; leaving the loop cancels."""
        deltas = self._client.stream(prompt, wants_queue_news=wants_queue_news, **params)
        try:
            while (delta := self._run(_next(deltas))) is not None:
                yield delta
        finally:
            if not self._is_closed:
                self._run(deltas.aclose())

    def complete(self, prompt: Prompt, **params: Any) -> Completion:
        """See AsyncClient.complete."""
        return self._run(self._client.complete(prompt, **params))

    def chat(self, messages: Sequence[ChatMessage], **params: Any) -> Completion:
        """See AsyncClient.chat."""
        return self._run(self._client.chat(messages, **params))

    def embed(self, prompt: Prompt, *, pooling: Literal["last", "mean"] = "last") -> Embedding:
        """See AsyncClient.embed."""
        return self._run(self._client.embed(prompt, pooling=pooling))

    def close(self) -> None:
        """Ends every stream with an abort; idempotent, and harmless in a forked child."""
        with self._lock:
            is_ours = self._loop is not None and self._pid == os.getpid()
            was_closed, self._is_closed = self._is_closed, True
        if not is_ours or was_closed:
            return
        assert self._loop is not None and self._thread is not None
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(CLOSE_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_TIMEOUT_S)
        self._loop.close()

    async def _end(self) -> None:
        """Whoever still waits in another thread must not wait for ever."""
        await self._client.close()
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            loop = self._started_loop()
        except ClientClosedError:
            work.close()
            raise
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C while waiting, too
            future.cancel()
            raise

    def _started_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._is_closed:
                raise ClientClosedError("the client was closed: make a new one")
            if self._pid not in (None, os.getpid()):
                raise ClientClosedError("the client belongs to another process: make one here")
            if self._loop is None:
                self._pid = os.getpid()
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="chairlift-client", daemon=True
                )
                self._thread.start()
            return self._loop


async def _next(deltas: AsyncGenerator[Delta, None]) -> Delta | None:
    return await anext(deltas, None)
