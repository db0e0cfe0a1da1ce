"""The messages between frontends and the worker: what crosses the wire, and its limits.

Frontend to worker: Submit, Attach, Detach, Cancel, Sync, Watch. Worker to frontend: Greeting,
TokenizerFiles, Frame, Steps.
How they become bytes is `codec`'s business.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .queue_place import QueuePlace
from .sampling_params import SamplingParams
from .steps import Count, Ended, Receipt, StepRecord

MAX_PROMPT_TOKENS = 1 << 20
MAX_FRAME_ROWS = 4096
MAX_CONTEXT_BYTES = 16384
MAX_SALT_BYTES = 32
MAX_TENANT_BYTES = 16
MAX_TTL_MS = 86_400_000
WATCH_LEASE_S = 3.0
LIVE_RECORD_BYTES = 20  # request_id (16) and the number of tokens held (u32)

FrameNumber = Annotated[int, Meta(ge=0, le=2**62)]  # never reached, and the next one still fits
MAX_GENERATION = 2**62
Generation = Annotated[int, Meta(ge=0, le=MAX_GENERATION)]
FrontendId = Annotated[bytes, Meta(min_length=8, max_length=8)]  # also its topic
RequestId = Annotated[bytes, Meta(min_length=16, max_length=16)]
Fingerprint = Annotated[bytes, Meta(min_length=8, max_length=8)]
PackedTokenIds = Annotated[bytes, Meta(max_length=4 * MAX_PROMPT_TOKENS)]  # u32, little-endian
FinishReason = Literal["stop", "length", "abort", "error"]
WorkerState = Literal["ready", "draining"]
Pooling = Literal["", "last", "mean"]
Priority = Annotated[int, Meta(ge=-100, le=100)]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Travels as an array: its tag, then its fields in order."""


class Submit(Message, frozen=True, tag="submit"):
    """Run this request. Sent again, with the tokens already held, it resumes instead.

    `tokenizer` is the fingerprint of the one that made the ids: a worker with another refuses.
    A request that runs already under this id is joined instead. Who comes with tokens that it got
    as the owner says so: another may have taken the request over meanwhile.
    """

    frontend_id: FrontendId
    request_id: RequestId
    tokenizer: Fingerprint
    prompt_token_ids: Annotated[bytes, Meta(min_length=4, max_length=4 * MAX_PROMPT_TOKENS)]
    output_token_ids: PackedTokenIds
    params: SamplingParams
    generation: Generation = 0  # how often the request was taken over, as far as is known
    is_resumable: bool = False  # kept for a grace after its owner has gone, or has its end
    context: Annotated[bytes, Meta(max_length=MAX_CONTEXT_BYTES)] = b""  # opaque, for who attaches
    cache_salt: Annotated[bytes, Meta(max_length=MAX_SALT_BYTES)] = (
        b""  # prefixes are shared under equal ones
    )
    ttl_ms: Annotated[int, Meta(ge=0, le=MAX_TTL_MS)] = 0  # to finish in; 0 is without limit
    was_owner: bool = False  # of the request, when it got the output tokens
    priority: Priority = 0  # lower ones go first
    pooling: Pooling = ""  # of an embedding: how the prompt's hidden states become one
    tenant: Annotated[bytes, Meta(max_length=MAX_TENANT_BYTES)] = b""  # else the frontend is it
    wants_queue_news: bool = False  # where it stands, once a second while it waits

    def is_same(self, other: Submit) -> bool:
        """Whether the other asks for the same tokens."""
        return (self.tokenizer, self.prompt_token_ids, self.params, self.pooling) == (
            other.tokenizer,
            other.prompt_token_ids,
            other.params,
            other.pooling,
        )


class Attach(Message, frozen=True, tag="attach"):
    """Read a request that runs, or that was kept, from its `num_held`th output token on.

    Its id is the capability. Who takes over becomes the owner, and the former owner is told.
    """

    frontend_id: FrontendId
    request_id: RequestId
    num_held: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    takes_over: bool
    attempt: Count = 0  # the frontend's number for it: sent again, it takes over but once


class Detach(Message, frozen=True, tag="detach"):
    """Read no further. What is resumable goes on for the grace, without an owner if this was it;
    anything else is cancelled by its owner's leaving. Idempotent."""

    frontend_id: FrontendId
    request_id: RequestId


class Cancel(Message, frozen=True, tag="cancel"):
    """Stop working on the request; idempotent. From anyone but its owner it is a Detach."""

    frontend_id: FrontendId
    request_id: RequestId


class Sync(Message, frozen=True, tag="sync"):
    """What the frontend holds. Repairs every loss: see `worker.publisher`.

    `live` is None in a mere acknowledgement, else LIVE_RECORD_BYTES for each unfinished request.
    """

    frontend_id: FrontendId
    epoch: Count
    frame_number: FrameNumber
    has_gap: bool
    wants_tokenizer: bool
    live: Annotated[bytes, Meta(max_length=LIVE_RECORD_BYTES * MAX_FRAME_ROWS)] | None


class Watch(Message, frozen=True, tag="watch"):
    """Tell me of every step for the next WATCH_LEASE_S; said again each second, for longer."""

    frontend_id: FrontendId


class Greeting(Message, frozen=True, tag="greeting"):
    """First message on a new subscription: who the worker is and what it can take."""

    epoch: Count
    model: str
    created: Count  # Unix seconds
    tokenizer: Fingerprint
    chat_template: Fingerprint
    vocab_size: Count
    max_model_len: Count
    frame_number: Count
    orphan_grace_ms: Count = 0  # that long it keeps what is resumable and has no reader


class TokenizerFiles(Message, frozen=True, tag="tokenizer"):
    """Everything a client needs to turn text into token ids; answers `Sync.wants_tokenizer`."""

    tokenizer_json: bytes
    config_json: bytes  # chat template and the names of the special tokens it may use


class WorkerStats(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The worker's gauges, then its counters since start."""

    num_running: Count = 0
    num_waiting: Count = 0
    max_waiting: Count = 0
    num_free_blocks: Count = 0
    num_blocks: Count = 0
    num_steps: Count = 0
    num_prompt_tokens: Count = 0
    num_generation_tokens: Count = 0
    num_preemptions: Count = 0
    num_prefix_queries: Count = 0
    num_prefix_hits: Count = 0
    num_malformed_messages: Count = 0
    num_waiting_tokens: Count = 0
    max_waiting_tokens: Count = 0
    retry_after_ms: Count = 0  # until the queue of now is through, at the measured rate
    num_orphans: Count = 0  # running without a reader, who may still come
    num_draft_tokens: Count = 0  # guessed, and computed with the step
    num_accepted_tokens: Count = 0  # of them, those that were right
    phases_us: tuple[Count, ...] = ()  # time of all steps, in the order of PHASES
    num_refused: list[tuple[str, Count]] = []  # requests that never ran, by code


class Finish(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How a request ended. `code` and `message` are empty unless the reason is error or abort."""

    reason: FinishReason
    stop_reason: str | int | None = None  # the stop string or token id that matched
    num_cached_tokens: Count = 0
    code: str = ""
    message: str = ""
    retry_after_ms: Count = 0
    queue: QueuePlace | None = None  # that it was refused at


class Extras(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a row has besides its text: with the end how the request fared; where they are wanted,
    log probabilities in records as `logprobs` has them, an embedding."""

    logprobs: bytes = b""  # of the row's tokens
    prompt_logprobs: bytes = b""  # of the prompt's, less the first; with rows from offset 0 on
    embedding: bytes = b""  # float32, little-endian; with the end
    receipt: Receipt | None = None


class Joined(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The request that was attached to, as it was submitted: what it takes to submit it again."""

    is_owner: bool
    request: Submit  # without output tokens; its generation is the present one


class Row(msgspec.Struct, frozen=True, gc=False):
    """The news of one request. Offsets make a repeated row harmless."""

    request_id: bytes
    offset: int  # index of token_ids[0] among the output tokens
    token_ids: list[int]
    text_offset: int  # characters of text before this
    text: str
    finish: Finish | None = None
    extras: Extras | None = None


class Frame(Message, frozen=True, tag="frame"):
    """All news for one frontend of one step, in columns; without any it is a heartbeat.

    A frame with news carries the number after its predecessor's, a heartbeat the number of the
    last frame before it. Places in the queue come along with either and don't count as news: lost,
    they are told anew a second later.
    """

    epoch: Count
    number: Count
    state: WorkerState
    stats: WorkerStats
    unknown: bytes  # request ids that the frontend named and that the worker doesn't know
    joined: list[Joined]  # comes with the first tokens of the request, at the latest
    request_ids: bytes
    offsets: list[Count]
    num_tokens: list[Count]
    token_ids: bytes
    text_offsets: list[Count]
    texts: list[str]
    finishes: list[tuple[Count, Finish]]  # (row, how it ended)
    extras: list[tuple[Count, Extras]] = []  # (row, what it has besides)
    queued: list[tuple[RequestId, QueuePlace]] = []  # of those that wait and want to know

    @property
    def is_heartbeat(self) -> bool:
        return not (self.request_ids or self.unknown or self.joined)

    def rows(self) -> Iterator[Row]:
        """The rows; ValueError when the columns disagree about their number."""
        request_ids = split_ids(self.request_ids)
        token_ids = unpack_token_ids(self.token_ids)
        finishes, extras = dict(self.finishes), dict(self.extras)
        if sum(self.num_tokens) != len(token_ids) or any(
            row >= len(request_ids) for row in (*finishes, *extras)
        ):
            raise ValueError("frame columns disagree")
        start = 0
        columns = zip(
            request_ids, self.offsets, self.num_tokens, self.text_offsets, self.texts, strict=True
        )
        for row, (request_id, offset, count, text_offset, text) in enumerate(columns):
            ids = token_ids[start : start + count]
            start += count
            finish, more = finishes.get(row), extras.get(row)
            yield Row(request_id, offset, ids, text_offset, text, finish, more)


class Steps(Message, frozen=True, tag="steps"):
    """The steps since the last such message, and which of their requests have ended. Some may be
    missing: their numbers tell."""

    epoch: Count
    records: list[StepRecord]
    ended: list[Ended]


def pack_token_ids(token_ids: Sequence[int]) -> bytes:
    packed = array("I", token_ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_token_ids(packed: bytes) -> list[int]:
    """Raises ValueError when the length is no multiple of four."""
    token_ids = array("I")
    token_ids.frombytes(packed)
    if sys.byteorder == "big":
        token_ids.byteswap()
    return token_ids.tolist()


def split_ids(packed: bytes) -> list[bytes]:
    """16-byte request ids, laid end to end."""
    if len(packed) % 16:
        raise ValueError("request ids are 16 bytes each")
    return [packed[i : i + 16] for i in range(0, len(packed), 16)]


def pack_live(held: dict[bytes, int]) -> bytes:
    """`Sync.live`: for each unfinished request the number of output tokens held."""
    return b"".join(rid + count.to_bytes(4, "little") for rid, count in held.items())


def unpack_live(packed: bytes) -> dict[bytes, int]:
    if len(packed) % LIVE_RECORD_BYTES:
        raise ValueError(f"live records are {LIVE_RECORD_BYTES} bytes each")
    starts = range(0, len(packed), LIVE_RECORD_BYTES)
    return {packed[i : i + 16]: int.from_bytes(packed[i + 16 : i + 20], "little") for i in starts}
