"""As AsyncClient, with a script instead of a worker; several apps over one are its frontends."""

from __future__ import annotations

import asyncio
import json
import secrets
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import tokenizers
from msgspec.structs import replace
from tokenizers import decoders, models, pre_tokenizers, processors

from chairlift.frontend.request_options import RequestOptions
from chairlift.frontend.results import Delta
from chairlift.shared.errors import (
    RequestIdConflictError,
    StreamNotFoundError,
    WorkerUnavailableError,
)
from chairlift.shared.logprobs import TokenLogprob
from chairlift.shared.messages import Finish, Greeting, WorkerStats
from chairlift.shared.sampling_params import MAX_LOGPROBS, SamplingParams
from chairlift.shared.steps import Receipt
from chairlift.shared.tokenizer import Tokenizer

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}{{ reasoning_effort }}{{ mood }}"
    "{% for message in messages %}<|im_start|>{{ message.role }}{{ message.name }}\n"
    "{{ message.tool_call_id }}{{ message.reasoning_content }}{{ message.content }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# One that shows all that it is given, of a model that thinks and calls tools.
TALKATIVE = (
    "{% if tools %}{{ tools | tojson }}<tool_call></tool_call>{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message | tojson }}<|im_end|>{% endfor %}"
    "{{ reasoning_effort }}{{ enable_thinking }}{{ switch }}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{# <think></think> #}"
)
MAX_MODEL_LEN = 1000
DEFAULT_OPTIONS = RequestOptions()
RECEIPT = Receipt(queued_us=1000, first_token_us=2000, total_us=6000, num_steps=5, num_mates=5)
TAKEN_OVER = Finish("abort", code="taken_over", message="another reader took over")
CONFLICT = Finish("error", code="request_id_conflict", message="another request runs under it")
INCOMPLETE = Finish("error", code="incomplete", message="the stream broke off")

Script = Callable[[list[int], SamplingParams], list[Delta]]


def make_tokenizer(
    template: str = TEMPLATE, special_tokens: Sequence[str] = (), bos: str = ""
) -> Tokenizer:
    """One token a byte, and the special ones, of which two are in every template. A text begins
    with the one that is named `bos`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE({letter: i for i, letter in enumerate(alphabet)}, [])
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", *special_tokens])
    if bos:
        number = backend.token_to_id(bos)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, number)]
        )
    config = json.dumps({"chat_template": template}).encode()
    return Tokenizer(backend.to_str().encode(), config)


def count_up(prompt: list[int], params: SamplingParams) -> list[Delta]:
    """At most five tokens with the texts ' 0', ' 1' and so on."""
    num_tokens = min(5, params.max_tokens)
    reason = "length" if params.max_tokens <= 5 else "stop"
    deltas = [Delta([i], f" {i}") for i in range(num_tokens)]
    return [*deltas, Delta([], "", Finish(reason, num_cached_tokens=3))]


def joined(deltas: list[Delta]) -> Delta:
    return sum(deltas[1:], start=deltas[0])


def logprob_of(token_id: int, num_top: int) -> TokenLogprob:
    """Likelier the smaller the id; the token itself is the second of the likeliest."""
    own = -(token_id + 1) / 8
    likeliest = [((token_id + 1) % 256, own + 0.125), (token_id, own)]
    others = [((token_id + i) % 256, own - i) for i in range(2, MAX_LOGPROBS)]
    return TokenLogprob(own, tuple([*likeliest, *others][:num_top]))


def scored(deltas: list[Delta], prompt: list[int], params: SamplingParams) -> list[Delta]:
    """With the logprobs that were asked for, unless the script has its own."""
    num_top, num_prompt_top = params.num_logprobs, params.num_prompt_logprobs
    if num_top >= 0:
        deltas = [
            replace(d, logprobs=d.logprobs or [logprob_of(i, num_top) for i in d.token_ids])
            for d in deltas
        ]
    if num_prompt_top >= 0 and deltas:
        of_prompt = [logprob_of(i, num_prompt_top) for i in prompt[1:]]
        deltas = [replace(deltas[0], prompt_logprobs=of_prompt), *deltas[1:]]
    return deltas


def pooled(prompt: list[int], options: RequestOptions) -> bytes:
    """Of four numbers: the last token or their mean, how many there are, 0 and -1."""
    token = prompt[-1] if options.pooling == "last" else sum(prompt) / len(prompt)
    return struct.pack("<4f", token, len(prompt), 0, -1)


@dataclass(eq=False)
class FakeRequest:
    """One request at the worker, which goes on as it is read."""

    asked: tuple[list[int], SamplingParams]
    options: RequestOptions
    deltas: list[Delta]
    num_made: int = 0
    readers: list[FakeStream] = field(default_factory=list)
    owner: FakeStream | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_finished(self) -> bool:
        return self.num_made == len(self.deltas)

    async def make_one(self, after: int, gate: asyncio.Semaphore | None) -> None:
        """A turn of the loop later; with a gate, all but the first need a permit."""
        async with self.lock:
            if self.num_made == after:
                await asyncio.sleep(0)
                if gate and after:
                    await gate.acquire()
                self.num_made += 1

    def run_to_the_end(self) -> None:
        self.num_made = len(self.deltas)


class FakeStream:
    """A reader of one request, from its first token on."""

    def __init__(self, client: FakeClient, request_id: bytes, request: FakeRequest) -> None:
        self.request_id = request_id
        self.context = request.options.context
        self.num_pending_characters = 0
        self.is_cancelled = False
        self.is_detached = False
        self.ended = asyncio.Event()
        self.request = request
        self._client = client
        self._verdict: Finish | None = None
        self._told = asyncio.Event()
        self._pending: Delta | None = None
        self._taken = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        request.readers.append(self)

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.request.asked[0]

    @property
    def is_ended(self) -> bool:
        return self._pending is not None and self._pending.finish is not None

    def tell(self, finish: Finish) -> None:
        self._verdict = finish
        self._told.set()

    def listen(self, on_news: Callable[[], None]) -> None:
        self._listening = asyncio.create_task(self._listen(on_news))

    async def _listen(self, on_news: Callable[[], None]) -> None:
        """One after the other, as they are taken; a script without an end breaks off."""
        finish = None
        async for delta in self._iterate():
            self._pending, finish = delta, delta.finish
            self._taken.clear()
            on_news()
            await self._taken.wait()
        if finish is None:
            self._pending = Delta([], "", INCOMPLETE)
            on_news()

    def take(self) -> Delta | None:
        delta, self._pending = self._pending, None
        self._taken.set()
        return delta

    def _end(self) -> None:
        self.ended.set()
        if self._listening is not None:
            self._listening.cancel()

    def cancel(self) -> None:
        if not self.ended.is_set():
            self.is_cancelled = True
            self._client.leave(self, may_go_on=False)
        self._end()

    def detach(self) -> None:
        if not self.ended.is_set():
            self.is_detached = True
            self._client.leave(self, may_go_on=True)
        self._end()

    async def __aenter__(self) -> FakeStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Delta]:
        request, num_read = self.request, 0
        while num_read < len(request.deltas):
            await self._until_more_than(num_read)
            if self._verdict:
                self.ended.set()
                yield Delta([], "", self._verdict)
                return
            delta = joined(request.deltas[num_read : request.num_made])
            num_read = request.num_made
            if delta.finish:
                self.ended.set()
                self._client.leave(self, may_go_on=True)
                delta = replace(delta, receipt=RECEIPT)
            yield delta

    async def _until_more_than(self, count: int) -> None:
        if self.request.num_made > count or self._told.is_set():
            return
        making = asyncio.ensure_future(self.request.make_one(count, self._client.gate))
        told = asyncio.ensure_future(self._told.wait())
        try:
            await asyncio.wait((making, told), return_when=asyncio.FIRST_COMPLETED)
        finally:
            making.cancel()
            told.cancel()


class FakeClient:
    """What it is asked, and the streams that it gave, are there to look at."""

    def __init__(
        self,
        template: str = TEMPLATE,
        special_tokens: Sequence[str] = (),
        max_model_len: int = MAX_MODEL_LEN,
        bos: str = "",
    ) -> None:
        self._tokenizer = make_tokenizer(template, special_tokens, bos)
        self.worker: Greeting | None = Greeting(
            epoch=1,
            model="lift/tiny",
            created=1_700_000_000,
            tokenizer=self._tokenizer.fingerprint,
            chat_template=self._tokenizer.template_fingerprint,
            vocab_size=self._tokenizer.backend.get_vocab_size(),
            max_model_len=max_model_len,
            frame_number=0,
            orphan_grace_ms=30_000,
        )
        self.stats = WorkerStats(
            num_blocks=10,
            num_free_blocks=4,
            num_prompt_tokens=7,
            phases_us=(1_000_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000, 6_000_000),
            num_refused=[("overloaded", 2)],
        )
        self.silence_s = 0.0
        self.num_live = 0
        self.trouble: str | None = None
        self.lacks_tokenizer = False
        self.script: Script = count_up
        self.gate: asyncio.Semaphore | None = None
        self.streams: list[FakeStream] = []
        self.requests: dict[bytes, FakeRequest] = {}
        self.sees_conflicts = False  # as a client does that has the request itself
        self.asked: list[tuple[list[int], SamplingParams]] = []
        self.options: list[RequestOptions] = []
        self.generating = asyncio.Event()
        self.stop_server = lambda: None

    @property
    def condition(self) -> str:
        return "starting" if self.worker is None else self.trouble or "ok"

    @property
    def has_tokenizer(self) -> bool:
        return self.worker is not None and not self.lacks_tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        if self.worker is None:
            raise WorkerUnavailableError("no worker has answered yet")
        return self._tokenizer

    @property
    def num_made(self) -> int:
        """Requests that were run, as opposed to joined."""
        return len({id(stream.request) for stream in self.streams})

    def generate(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> FakeStream:
        request_id = options.request_id or secrets.token_bytes(16)
        asked = (prompt_token_ids, params)
        request = self.requests.get(request_id)
        is_conflict = request is not None and request.asked != asked
        if is_conflict and self.sees_conflicts:
            raise RequestIdConflictError("another request runs under this id")
        if request is None or is_conflict:
            deltas = scored(self.script(prompt_token_ids, params), prompt_token_ids, params)
            if options.pooling:
                deltas[-1] = replace(deltas[-1], embedding=pooled(prompt_token_ids, options))
            request = FakeRequest(asked, options, deltas)
            if not is_conflict:
                self.requests[request_id] = request
        stream = self._reader(request_id, request)
        if is_conflict:
            stream.tell(CONFLICT)
        elif request.owner is None:
            request.owner = stream
        self.asked.append(asked)
        self.options.append(options)
        self.generating.set()
        return stream

    async def attach(self, request_id: bytes, *, takes_over: bool = True) -> FakeStream:
        await asyncio.sleep(0)
        request = self.requests.get(request_id)
        if request is None:
            raise StreamNotFoundError("no request runs under this id, or was kept until now")
        stream = self._reader(request_id, request)
        if takes_over:
            if request.owner:
                request.readers.remove(request.owner)
                request.owner.tell(TAKEN_OVER)
            request.owner = stream
        return stream

    def leave(self, stream: FakeStream, *, may_go_on: bool) -> None:
        request = stream.request
        if stream not in request.readers:
            return
        request.readers.remove(stream)
        if request.owner is stream:
            request.owner = None
            finish = request.deltas[-1].finish if request.is_finished else None
            is_kept = finish is None or finish.reason in ("stop", "length")
            if not (may_go_on and request.options.is_resumable and is_kept):
                self.requests.pop(stream.request_id, None)

    def _reader(self, request_id: bytes, request: FakeRequest) -> FakeStream:
        stream = FakeStream(self, request_id, request)
        self.streams.append(stream)
        return stream

    async def __aenter__(self) -> FakeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass
