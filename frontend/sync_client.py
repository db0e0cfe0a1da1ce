"""The client for programs without an event loop: the same client, driven from a thread."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, Literal, Self, TypeVar

from ..shared.curve import FrontendCurve
from ..shared.errors import ClientClosedError
from ..shared.messages import Greeting
from ..shared.tokenizer import Tokenizer
from .client import AsyncClient
from .embedding import Embedding
from .prompt import ChatMessage, Prompt
from .request_options import DEFAULT_TTL_S
from .results import Completion, Delta

T = TypeVar("T")
CLOSE_TIMEOUT_S = 5.0


class Client:
    """Blocking twin of AsyncClient: one for a process, safe to use from all of its threads.

    Its thread starts at the first use, so a Client may be made before a fork, as pre-fork servers
    do that load the application first. One that was used before raises ClientClosedError in the
    child.

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
        self._lock = threading.RLock()  # a stream may be collected amid anything, and ends itself
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
        self,
        prompt: Prompt,
        *,
        timeout_s: float | None = DEFAULT_TTL_S,
        wants_queue_news: bool = False,
        **params: Any,
    ) -> Generator[Delta, None, None]:
        """The answer piece by piece; leaving the loop, or the generator's `close`, cancels.

            for delta in client.stream("Once upon a time", max_tokens=64):
                print(delta.text, end="", flush=True)

        See AsyncClient.stream.
        """
        deltas = self._client.stream(
            prompt, timeout_s=timeout_s, wants_queue_news=wants_queue_news, **params
        )
        try:
            while (delta := self._run(_next(deltas))) is not None:
                yield delta
        finally:
            self._end(deltas)

    def complete(
        self, prompt: Prompt, *, timeout_s: float | None = DEFAULT_TTL_S, **params: Any
    ) -> Completion:
        """The whole answer.

            answer = client.complete("Once upon a time", max_tokens=64, timeout_s=30)
            print(answer.text, answer.finish_reason)

        See AsyncClient.complete.
        """
        return self._run(self._client.complete(prompt, timeout_s=timeout_s, **params))

    def chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        timeout_s: float | None = DEFAULT_TTL_S,
        **params: Any,
    ) -> Completion:
        """The whole answer to a conversation.

            answer = client.chat([{"role": "user", "content": "Hello"}], max_tokens=64)
            print(answer.text)

        See AsyncClient.chat.
        """
        return self._run(self._client.chat(messages, timeout_s=timeout_s, **params))

    def embed(
        self,
        prompt: Prompt,
        *,
        pooling: Literal["last", "mean"] = "last",
        timeout_s: float | None = DEFAULT_TTL_S,
    ) -> Embedding:
        """What the prompt means.

            vector = client.embed("cat", pooling="mean").vector
            print(len(vector))

        See AsyncClient.embed.
        """
        return self._run(self._client.embed(prompt, pooling=pooling, timeout_s=timeout_s))

    def close(self) -> None:
        """Ends every stream with an abort; idempotent, and harmless in a forked child. Calls that
        wait in other threads raise ClientClosedError."""
        if self._is_forked:
            return
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        if self._loop is None or was_closed:
            return
        assert self._thread is not None, "started with the loop"
        atexit.unregister(self.close)
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(CLOSE_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_TIMEOUT_S)
        self._loop.close()

    async def _finish(self) -> None:
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
        future = self._begin(work)
        try:
            return future.result()
        except CancelledError:
            raise ClientClosedError("the client was closed meanwhile: make a new one") from None
        except BaseException:  # Ctrl-C while waiting, too
            future.cancel()
            raise

    def _end(self, deltas: AsyncGenerator[Delta, None]) -> None:
        """Waits until the request is cancelled, but not in our own thread, where the collector of
        garbage may have come upon the stream. In a closed client or a child it has ended."""
        if self._loop is not None and threading.current_thread() is self._thread:
            asyncio.run_coroutine_threadsafe(deltas.aclose(), self._loop)
            return
        with suppress(ClientClosedError):
            self._run(deltas.aclose())

    def _begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Under the lock, so that `close` knows all that waits."""
        try:
            if self._is_forked:
                raise ClientClosedError(
                    "the client belongs to another process, which used it before this one was "
                    "forked: make one here, or use it in the children only"
                )
            with self._lock:
                if self._is_closed:
                    raise ClientClosedError("the client was closed: make a new one")
                return asyncio.run_coroutine_threadsafe(work, self._started_loop())
        except ClientClosedError:
            work.close()
            raise

    @property
    def _is_forked(self) -> bool:
        """To be asked before the lock is taken: a thread that the fork left behind may hold it."""
        return self._pid not in (None, os.getpid())

    def _started_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._pid = os.getpid()
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name="chairlift-client", daemon=True
            )
            self._thread.start()
            atexit.register(self.close)  # later a stream would wait for a thread that is no more
        return self._loop


async def _next(deltas: AsyncGenerator[Delta, None]) -> Delta | None:
    return await anext(deltas, None)
