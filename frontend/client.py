"""The asyncio client: a worker's answers as async iterators. No torch, no HTTP."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self

from ..shared.addresses import Endpoints
from ..shared.curve import FrontendCurve, check_curve
from ..shared.errors import (
    ClientClosedError,
    InvalidRequestError,
    OverloadedError,
    WorkerUnavailableError,
)
from ..shared.messages import Greeting, Steps, TokenizerFiles, WorkerStats
from ..shared.sampling_params import MAX_SEED, SamplingParams, checked, checked_sampling_params
from ..shared.tokenizer import Tokenizer
from .capacity import check_live, check_queue, check_unsent
from .connection import Connection
from .deadline import Deadline
from .embedding import EMBEDDING_PARAMS, Embedding, last_of
from .environment import curve_from_environment, endpoints_from_environment
from .home import Home
from .prompt import ChatMessage, Prompt, check_fits, encode
from .protocol import News, Opened, Output
from .readers import Readers
from .request_options import DEFAULT_TTL_S, RequestOptions
from .results import Completion, Delta, exception_for
from .step_feed import StepFeed, Watchers
from .token_stream import TokenStream
from .worker_tokenizer import WorkerTokenizer

MAX_IDLE_SILENCE_S = 3.0  # a worker without work speaks four times a second
MAX_LAST_SILENCE_S = 1.0  # and when it drains without work it is about to be gone

DEFAULT_OPTIONS = RequestOptions()
Condition = Literal["ok", "starting", "away", "wedged", "draining"]


class AsyncClient:
    """A connection to one worker: one for a process and its event loop, shared by all tasks.

    Makes its sockets at the first use, so it may be made before a fork or a loop; used in another
    process or loop afterwards it raises ClientClosedError.

        async with AsyncClient() as client:
            async for delta in client.stream("Once upon a time", max_tokens=64):
                print(delta.text, end="", flush=True)

    A task that is cancelled cancels its request; `timeout_s` bounds it:

        async with AsyncClient() as client:
            try:
                answer = await client.complete("Once upon a time", max_tokens=64, timeout_s=30)
            except chairlift.DeadlineExceededError:
                print("too late")
            else:
                print(answer.text)
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        connect_timeout_s: float = 10.0,
        max_step_s: float = 10.0,
        curve: FrontendCurve | None = None,
    ) -> None:
        """`address` as the worker's; by default CHAIRLIFT_ADDRESS, without that this user's own.
        For tcp, `curve` has the keys; by default CHAIRLIFT_CURVE_KEY and CHAIRLIFT_CURVE_WORKER
        name their files. No `.env` is read.

        Without a `tokenizer` the worker's is taken; one that differs from it makes `connect` raise.
        A worker whose step takes longer than `max_step_s` counts as wedged.
        """
        self._endpoints = Endpoints.parse(address) if address else endpoints_from_environment()
        if curve is None and self._endpoints.directory is None:
            curve = curve_from_environment()
        check_curve(self._endpoints, curve)
        self._curve = curve
        self._connect_timeout_s = connect_timeout_s
        self._max_step_s = max_step_s
        self._tokenizer = WorkerTokenizer(tokenizer)
        self._connection: Connection | None = None
        self._home: Home | None = None
        self._readers: Readers | None = None
        self._watchers: Watchers | None = None
        self._changed = asyncio.Event()
        self._is_closed = False

    @property
    def address(self) -> str:
        """Where the worker is, or is looked for."""
        return self._endpoints.requests.removesuffix("/requests")

    @property
    def worker(self) -> Greeting | None:
        """Who the worker is; None until it has been met."""
        return self._connection.protocol.greeting if self._connection else None

    @property
    def stats(self) -> WorkerStats:
        """The worker's newest figures."""
        return self._connection.protocol.stats if self._connection else WorkerStats()

    @property
    def silence_s(self) -> float:
        """Seconds since the worker was last heard: its loop speaks after every step, and at
        least four times a second without work."""
        if self._connection is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._connection.protocol.last_heard

    @property
    def condition(self) -> Condition:
        """How the worker is. Its loop alone speaks, so its silence is the age of its step."""
        if self._connection is None or self.worker is None:
            return "starting"
        is_draining = self._connection.protocol.state == "draining"
        if self.stats.num_running or self.stats.num_waiting or self.num_live:
            if self.silence_s > self._max_step_s:
                return "wedged"
        elif self.silence_s > (MAX_LAST_SILENCE_S if is_draining else MAX_IDLE_SILENCE_S):
            return "away"
        return "draining" if is_draining else "ok"

    @property
    def num_live(self) -> int:
        """Requests without an end yet."""
        return len(self._readers) if self._readers else 0

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer.known is not None

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises WorkerUnavailableError before it is known."""
        if self._tokenizer.known is None:
            raise WorkerUnavailableError(f"no worker has answered yet at {self.address}")
        return self._tokenizer.known

    async def connect(self, timeout_s: float | None = None) -> None:
        """Waits until the worker has been met and its tokenizer is known.

        Raises WorkerUnavailableError after `timeout_s`, by default the client's own limit,
        TokenizerMismatchError when the client was given another tokenizer than the worker's.
        """
        limit_s = self._connect_timeout_s
        if timeout_s is not None:
            limit_s = Deadline.after(timeout_s).at_most(timeout_s)
        self._open()
        try:
            async with asyncio.timeout(limit_s):
                while not self.has_tokenizer and not self._is_closed:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise WorkerUnavailableError(
                f"no worker answered at {self.address}: start one with `chairlift worker`, or say "
                "where it is (--address or CHAIRLIFT_ADDRESS)"
            ) from None
        self._open()
        self._tokenizer.check(self.worker)

    def generate(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> TokenStream:
        """Submits one request, given in token ids.

        A request that runs or is kept under the id in `options` is joined from its first token on.
        Raises ContextLengthError, InvalidRequestError, OverloadedError, WorkerUnavailableError or
        ClientClosedError at once; what the worker itself refuses arrives as the first Delta.
        """
        connection, readers = self._open()
        self._check_can_take(prompt_token_ids, checked(params))
        self._tokenizer.check(self.worker)
        now = asyncio.get_running_loop().time()
        request_id = options.request_id or secrets.token_bytes(16)
        if request_id in readers:
            pooling = options.pooling
            connection.protocol.check_same(request_id, prompt_token_ids, params, pooling)
            connection.protocol.join(request_id, now)
            connection.flush()
            return readers.join(request_id, may_own=True)
        options = replace(options, request_id=request_id)
        connection.protocol.submit(prompt_token_ids, params, options, now)
        stream = readers.add(request_id, options.context, may_own=True)
        connection.flush()
        return stream

    async def attach(self, request_id: bytes, *, takes_over: bool = True) -> TokenStream:
        """Reads a request that runs or is kept, from its first token on, whoever submitted it.

        Who takes it over owns it: a former reader's stream ends with an `abort`. Otherwise it is
        only watched. Raises StreamNotFoundError, WorkerUnavailableError, or InvalidRequestError for
        what is no `TokenStream.request_id`.
        """
        if not isinstance(request_id, bytes) or len(request_id) != 16:
            message = "a request id is 16 bytes, as TokenStream.request_id has them"
            raise InvalidRequestError(message, param="request_id")
        await self.connect()
        connection, readers = self._open()
        self._check_can_answer()
        check_live(self.num_live)
        now = asyncio.get_running_loop().time()
        if request_id not in readers:
            connection.protocol.attach(request_id, now, takes_over=takes_over)
            stream = readers.add(request_id, may_own=takes_over)
        elif takes_over:
            connection.protocol.take_over(request_id, now)
            stream = readers.take_over(request_id)
        else:
            stream = readers.join(request_id, may_own=False)
        connection.flush()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await stream.opened()
        except TimeoutError:
            stream.detach()
            raise WorkerUnavailableError(f"the worker at {self.address} does not answer") from None
        except asyncio.CancelledError:
            stream.detach()
            raise
        return stream

    def stream(
        self,
        prompt: Prompt,
        *,
        timeout_s: float | None = DEFAULT_TTL_S,
        wants_queue_news: bool = False,
        **params: Any,
    ) -> AsyncGenerator[Delta, None]:
        """The answer to a text, token ids, or chat messages, piece by piece.

            messages = [{"role": "user", "content": "Tell me a story."}]
            async for delta in client.stream(messages, max_tokens=64, temperature=0.7):
                print(delta.text, end="", flush=True)

        `params` are SamplingParams by name; `max_tokens` is by default what fits, and a `seed` is
        drawn. With `wants_queue_news` there are Deltas with a `queue` while it waits. Leaving the
        loop cancels. `timeout_s` after the first piece was asked for it is over, None waits for as
        long as it takes. Raises DeadlineExceededError then, and what `exception_for` gives for a
        request that failed otherwise.
        """
        options = RequestOptions(wants_queue_news=wants_queue_news)
        return self._stream(prompt, params, timeout_s, options)

    async def _stream(
        self,
        prompt: Prompt,
        params: dict[str, Any],
        timeout_s: float | None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> AsyncGenerator[Delta, None]:
        deadline = Deadline.after(timeout_s)
        token_ids = await self._encoded(prompt, deadline)
        checked_params = self._params(len(token_ids), params)
        options = replace(options, ttl_s=deadline.left_s)
        async with self.generate(token_ids, checked_params, options) as stream:
            async for delta in stream:
                error = exception_for(delta.finish) if delta.finish else None
                if error is not None:
                    raise error
                yield delta

    async def complete(
        self, prompt: Prompt, *, timeout_s: float | None = DEFAULT_TTL_S, **params: Any
    ) -> Completion:
        """The whole answer; parameters as those of `stream`.

            answer = await client.complete("Once upon a time", max_tokens=64, timeout_s=30)
            print(answer.text, answer.finish_reason, len(answer.token_ids))

        Raises as `stream`.
        """
        deadline = Deadline.after(timeout_s)
        token_ids = await self._encoded(prompt, deadline)
        whole = Delta([], "")
        async for delta in self._stream(token_ids, params, deadline.left_s):
            whole += delta
        return Completion.of(whole, len(token_ids))

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        timeout_s: float | None = DEFAULT_TTL_S,
        **params: Any,
    ) -> Completion:
        """The whole answer to a conversation; `stream` takes one as well.

            answer = await client.chat([{"role": "user", "content": "Hello"}], max_tokens=64)
            print(answer.text)

        Raises as `stream`.
        """
        if isinstance(messages, str):
            raise InvalidRequestError(
                "chat takes a list of messages, each with role and content; complete takes a text",
                param="messages",
            )
        return await self.complete(messages, timeout_s=timeout_s, **params)

    async def embed(
        self,
        prompt: Prompt,
        *,
        pooling: Literal["last", "mean"] = "last",
        timeout_s: float | None = DEFAULT_TTL_S,
    ) -> Embedding:
        """What the prompt means as a vector of length 1: of its last token, or the mean of all.

            cat, dog = [await client.embed(word, pooling="mean") for word in ("cat", "dog")]
            print(sum(a * b for a, b in zip(cat.vector, dog.vector, strict=True)))

        Raises as `stream`.
        """
        if pooling not in ("last", "mean"):
            message = f"pooling is 'last' or 'mean', not {pooling!r}"
            raise InvalidRequestError(message, param="pooling")
        deadline = Deadline.after(timeout_s)
        token_ids = await self._encoded(prompt, deadline)
        options = RequestOptions(pooling=pooling, ttl_s=deadline.left_s)
        async with self.generate(token_ids, EMBEDDING_PARAMS, options) as stream:
            return Embedding.of(await last_of(stream), len(token_ids))

    def watch(self) -> StepFeed:
        """The ragged batch, step by step, of whichever worker answers.

            async with client.watch() as feed:
                answer = asyncio.create_task(client.complete("A fox"))
                async for steps in feed:
                    for step in steps.records:
                        print(step.number, [row.num_tokens for row in step.rows()])
                    if steps.ended:
                        break
            print((await answer).text)

        Begins with the next step, and goes on with the next worker when this one ends.
        """
        connection, _ = self._open()
        if self._watchers is None:
            self._watchers = Watchers(connection)
        return self._watchers.join()

    async def _encoded(self, prompt: Prompt, deadline: Deadline) -> list[int]:
        """Its token ids, once the worker has said how they are made."""
        await self.connect(deadline.at_most(self._connect_timeout_s))
        return encode(prompt, self.tokenizer)

    async def close(self) -> None:
        """Ends every stream with an abort and lets go of the sockets; idempotent, and harmless in
        a forked child, whose parent's they are. Raises ClientClosedError in another event loop
        than the client's, as long as that runs."""
        home, connection = self._home, self._connection
        if home is not None and home.loop.is_running() and not home.is_forked_from:
            home.check_is_here()
        self._is_closed = True
        if home is None or connection is None or home.is_forked_from:
            return
        if self._readers is not None and not home.loop.is_closed():  # else nobody waits
            self._changed.set()
            self._readers.close()
        if self._watchers is not None and not home.loop.is_closed():
            self._watchers.close()
        connection.close()
        self._connection = None

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _open(self) -> tuple[Connection, Readers]:
        """The connection, made at the first call; checks that it is used where it was made."""
        if self._is_closed:
            raise ClientClosedError("the client was closed: make a new one")
        if self._home is not None:
            self._home.check_is_here()
        if self._connection is None or self._readers is None:
            self._home = Home.here()
            self._connection = Connection(self._endpoints, self._on_news, self._curve)
            self._readers = Readers(self._connection)
        return self._connection, self._readers

    def _on_news(self, news: News) -> None:
        assert self._readers is not None, "news come over the connection"
        match news:
            case Output():
                self._readers.put(news)
            case Opened():
                self._readers.open(news)
            case Greeting():
                self._on_greeting(news)
            case TokenizerFiles():
                self._take_tokenizer(news)
            case Steps() if self._watchers is not None:
                self._watchers.put(news)

    def _on_greeting(self, greeting: Greeting) -> None:
        assert self._connection is not None, "greetings come over the connection"
        self._tokenizer.meet(greeting)
        self._connection.protocol.wants_tokenizer = not self.has_tokenizer
        self._connection.protocol.tick(asyncio.get_running_loop().time())
        self._changed.set()

    def _take_tokenizer(self, files: TokenizerFiles) -> None:
        self._tokenizer.take(files)
        self._changed.set()

    def _check_can_answer(self) -> Greeting:
        if self.condition not in ("ok", "draining") or self.worker is None:
            raise WorkerUnavailableError(f"the worker at {self.address} is {self.condition}")
        return self.worker

    def _check_can_take(self, prompt_token_ids: list[int], params: SamplingParams) -> None:
        worker = self._check_can_answer()
        if self.condition == "draining":
            raise OverloadedError("the worker is shutting down", retry_after_s=5)
        check_queue(self.stats)
        check_unsent(len(self._connection.protocol.outgoing) if self._connection else 0)
        check_live(self.num_live)
        check_fits(prompt_token_ids, params.max_tokens, worker)

    def _params(self, num_prompt_tokens: int, values: dict[str, Any]) -> SamplingParams:
        assert self.worker is not None, "connected"
        room = max(1, self.worker.max_model_len - num_prompt_tokens)
        seed = secrets.randbelow(MAX_SEED)
        return checked_sampling_params(**{"max_tokens": room, "seed": seed, **values})
