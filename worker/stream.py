"""One request's stream, its readers, and how much each of them was given."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec.structs import replace

from ..shared.messages import Finish, Joined, Row, Submit
from ..shared.queue_place import QueuePlace
from .ownership import Ownership
from .sequence import Sequence

MAX_VERDICTS = 8192
LEASE_S = 10.0  # a frontend this long silent is gone
UNSUBSCRIBED_LEASE_S = 3.0  # ... and this long without a subscription: it may be reconnecting


@dataclass(slots=True, eq=False)
class Stream:
    """One request. Only its owner's leaving ends it, and the owner is one of its readers."""

    request: Submit  # as it was submitted, without output tokens
    sequence: Sequence
    ownership: Ownership
    deadline: float = float("inf")
    queue_deadline: float = float("inf")
    next_queue_news: float = float("-inf")  # if any is wanted
    readings: dict[bytes, Reading] = field(default_factory=dict)  # by frontend id
    unread_since: float = 0.0

    @property
    def request_id(self) -> bytes:
        return self.request.request_id

    @property
    def owner(self) -> Reading | None:
        return self.readings.get(self.ownership.owner_id or b"")

    @property
    def joined_bytes(self) -> int:
        """About what its Joined takes in a frame."""
        request, params = self.request, self.request.params
        num_characters = sum(map(len, params.stop))
        return (
            512
            + len(request.prompt_token_ids)
            + len(request.context)
            + 4 * num_characters
            + (16 * len(params.logit_bias) + 5 * len(params.stop_token_ids))
            + 5 * sum(map(len, params.bad_words))
            + (params.grammar.num_bytes if params.grammar else 0)
        )

    @property
    def num_bytes(self) -> int:
        """About what it takes to keep it."""
        return self.joined_bytes + self.sequence.num_bytes

    @property
    def has_failed(self) -> bool:
        """Then it may be tried again under its id."""
        finish = self.sequence.finish
        return finish is not None and finish.reason not in ("stop", "length")

    def is_short_of_time(self, now: float) -> bool:
        """Whether half of the time that it has is over."""
        return now >= self.deadline - self.request.ttl_ms / 2000

    def tell_place(self, place: QueuePlace) -> None:
        for reading in self.readings.values():
            reading.frontend.queued[self.request_id] = place

    @property
    def is_kept(self) -> bool:
        """Whether somebody may still come for it when nobody reads; failures are not kept."""
        return self.request.is_resumable and not self.has_failed


@dataclass(slots=True, eq=False)
class Reading:
    """One frontend's place in one stream: `num_sent` output tokens were handed out, the last of
    them in the frontend's frame `last_frame`."""

    stream: Stream
    frontend: Frontend
    num_sent: int
    was_owner: bool = False  # under another worker
    is_joined: bool = False  # has to be told whose request this is
    needs_joined: bool = False  # ... in the next frame
    is_finish_sent: bool = False
    last_frame: int = 0

    @property
    def is_owner(self) -> bool:
        return self.stream.owner is self

    def announce(self) -> None:
        """The reader is to be told whose request this is, and all it takes to submit it again."""
        self.is_joined = self.needs_joined = True
        self.frontend.news[self.stream.request_id] = self

    def rewind(self, num_held: int) -> None:
        """What was sent beyond `num_held` is lost."""
        if self.num_sent > num_held or (self.is_finish_sent and self.num_sent == num_held):
            self.num_sent, self.is_finish_sent = num_held, False
            self.needs_joined = self.is_joined
            self.frontend.news[self.stream.request_id] = self

    def joined(self, now: float) -> Joined:
        stream, ttl_ms = self.stream, 0
        if stream.request.ttl_ms:
            ttl_ms = max(1, round((stream.deadline - now) * 1000))
        generation = stream.ownership.generation
        return Joined(self.is_owner, replace(stream.request, ttl_ms=ttl_ms, generation=generation))

    @property
    def has_row(self) -> bool:
        """After a restart a reader may hold more than the sequence has yet."""
        sequence = self.stream.sequence
        is_ended = sequence.finish is not None and not self.is_finish_sent
        return is_ended or self.num_sent < sequence.num_ready_tokens

    def row(self) -> Row | None:
        """All that was not handed out yet; None when there is nothing."""
        if not self.has_row:
            return None
        sequence = self.stream.sequence
        end = sequence.num_ready_tokens
        offset = min(self.num_sent, end)
        detokenizer = sequence.detokenizer
        ends = detokenizer.released_ends
        text_start = ends[offset - 1] if offset else 0
        text_end = ends[end - 1] if end and sequence.finish is None else len(detokenizer.text)
        num_prompt_tokens = sequence.num_prompt_tokens
        return Row(
            sequence.request_id,
            offset,
            sequence.token_ids[num_prompt_tokens + offset : num_prompt_tokens + end],
            text_start,
            detokenizer.text[text_start:text_end],
            sequence.finish,
            sequence.extras(offset, end),
        )


@dataclass(slots=True, eq=False)
class Frontend:
    """One frontend, which is one topic. A verdict is the end of a request it does not read."""

    frontend_id: bytes
    last_heard: float
    readings: dict[bytes, Reading] = field(default_factory=dict)
    news: dict[bytes, Reading] = field(default_factory=dict)  # have something to hand out
    verdicts: dict[bytes, Finish] = field(default_factory=dict)
    unsaid: dict[bytes, Finish] = field(default_factory=dict)  # verdicts to hand out
    queued: dict[bytes, QueuePlace] = field(default_factory=dict)  # of readings, to hand out
    unknown: list[bytes] = field(default_factory=list)
    frame_number: int = 0
    acknowledged: int = 0
    last_sent: float = float("-inf")
    is_subscribed: bool = False
    unsubscribed_at: float = 0.0
    watches_until: float = float("-inf")  # the steps
    needs_greeting: bool = False
    needs_tokenizer: bool = False

    @property
    def has_news(self) -> bool:
        return bool(self.news or self.unsaid or self.unknown)

    def tell(self, request_id: bytes, finish: Finish) -> None:
        """How the request ends for this frontend; said again until it has been heard."""
        self.verdicts[request_id] = self.unsaid[request_id] = finish
        if len(self.verdicts) > MAX_VERDICTS:  # it asks again about what it still counts
            oldest = next(iter(self.verdicts))
            self.drop_verdict(oldest)

    def drop_verdict(self, request_id: bytes) -> None:
        self.verdicts.pop(request_id, None)
        self.unsaid.pop(request_id, None)

    def is_gone(self, now: float) -> bool:
        is_silent = bool(self.readings) and now - self.last_heard > LEASE_S
        return is_silent or (
            not self.is_subscribed and now - self.unsubscribed_at > UNSUBSCRIBED_LEASE_S
        )
