"""A client without a worker behind it, and the app over it on a real socket."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import cast

import openai
import pytest
import structlog
import tokenizers
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tokenizers import decoders, models, pre_tokenizers

from chairlift.frontend.api import create_app
from chairlift.frontend.api.http_protocol import timed_protocol
from chairlift.frontend.client import AsyncClient
from chairlift.frontend.results import Delta
from chairlift.shared.errors import WorkerUnavailableError
from chairlift.shared.messages import Finish, Greeting, WorkerStats
from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import ServeSettings
from chairlift.shared.tokenizer import Tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MAX_MODEL_LEN = 1000


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """Nobody reads the requests' log lines here, and tracebacks take their time to draw."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def make_tokenizer() -> Tokenizer:
    """One token a byte, and the two that the template needs."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE({letter: i for i, letter in enumerate(alphabet)}, [])
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    config = json.dumps({"chat_template": TEMPLATE}).encode()
    return Tokenizer(backend.to_str().encode(), config)


def app_over(fake: FakeClient, settings: ServeSettings) -> FastAPI:
    return create_app(cast(AsyncClient, fake), settings)


class FakeStream:
    """Hands out deltas, a turn of the loop apart; with a gate, all but the first need a permit."""

    def __init__(self, client: FakeClient, deltas: list[Delta]) -> None:
        self.request_id = b"0123456789abcdef"
        self._client = client
        self._deltas = deltas
        self.is_cancelled = False
        self.ended = asyncio.Event()

    def cancel(self) -> None:
        if not self.ended.is_set():
            self.is_cancelled = True
        self.ended.set()

    async def __aenter__(self) -> FakeStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Delta]:
        for number, delta in enumerate(self._deltas):
            await asyncio.sleep(0)
            if self._client.gate and number:
                await self._client.gate.acquire()
            if delta.finish:
                self.ended.set()
            yield delta


Script = Callable[[list[int], SamplingParams], list[Delta]]


def count_up(prompt: list[int], params: SamplingParams) -> list[Delta]:
    """At most five tokens with the texts ' 0', ' 1' and so on."""
    num_tokens = min(5, params.max_tokens)
    reason = "length" if params.max_tokens <= 5 else "stop"
    deltas = [Delta([i], f" {i}") for i in range(num_tokens)]
    return [*deltas, Delta([], "", Finish(reason, num_cached_tokens=3))]


class FakeClient:
    """As AsyncClient, with a script instead of a worker."""

    def __init__(self) -> None:
        self._tokenizer = make_tokenizer()
        self.worker: Greeting | None = Greeting(
            epoch=1,
            min_version=1,
            max_version=1,
            model="lift/tiny",
            created=1_700_000_000,
            tokenizer=self._tokenizer.fingerprint,
            chat_template=self._tokenizer.template_fingerprint,
            vocab_size=self._tokenizer.backend.get_vocab_size(),
            max_model_len=MAX_MODEL_LEN,
            frame_number=0,
        )
        self.stats = WorkerStats(num_blocks=10, num_free_blocks=4, num_prompt_tokens=7)
        self.silence_s = 0.0
        self.num_live = 0
        self.trouble: str | None = None
        self.script: Script = count_up
        self.gate: asyncio.Semaphore | None = None
        self.streams: list[FakeStream] = []
        self.asked: list[tuple[list[int], SamplingParams]] = []
        self.generating = asyncio.Event()
        self.stop_server = lambda: None

    @property
    def condition(self) -> str:
        return "starting" if self.worker is None else self.trouble or "ok"

    @property
    def is_ready(self) -> bool:
        return self.condition == "ok"

    @property
    def tokenizer(self) -> Tokenizer:
        if self.worker is None:
            raise WorkerUnavailableError("no worker has answered yet")
        return self._tokenizer

    def generate(self, prompt_token_ids: list[int], params: SamplingParams) -> FakeStream:
        stream = FakeStream(self, self.script(prompt_token_ids, params))
        self.asked.append((prompt_token_ids, params))
        self.streams.append(stream)
        self.generating.set()
        return stream

    async def __aenter__(self) -> FakeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


@pytest.fixture
def fake() -> FakeClient:
    return FakeClient()


@pytest.fixture
def settings() -> ServeSettings:
    return ServeSettings()


@pytest.fixture
def http(fake: FakeClient, settings: ServeSettings) -> Iterator[TestClient]:
    """The app without a socket: for what is neither a stream nor a disconnect."""
    with TestClient(app_over(fake, settings)) as client:
        yield client


@asynccontextmanager
async def serving(fake: FakeClient, settings: ServeSettings) -> AsyncIterator[str]:
    """The app on a loopback port; yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app_over(fake, settings),
        log_config=None,
        ws="none",
        http=timed_protocol(settings.header_timeout_s),
        timeout_graceful_shutdown=0,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    fake.stop_server = lambda: setattr(server, "should_exit", True)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        async with asyncio.timeout(10):
            await task


@pytest.fixture
async def url(fake: FakeClient, settings: ServeSettings) -> AsyncIterator[str]:
    async with serving(fake, settings) as address:
        yield address


@pytest.fixture
async def api(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client, without its retries."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        yield client
