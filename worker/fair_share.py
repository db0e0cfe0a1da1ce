"""Whose turn it is among tenants, by the tokens that they were served."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from .sequence import Sequence

ESTIMATED_OUTPUT = 128  # tokens of output that a request counts for until it ends, at most
MAX_FLOWS = 64  # the clock goes as fast as if no more shared the service
ALONE_AFTER = 1 << 20  # tokens of service without another tenant's request
NEWCOMERS_SHARE = 4  # one seat in so many is not for a tenant that has all the others
HEAD_START = 1 << 12  # tokens: some ten requests; a newcomer may wait for so many of a flow


@dataclass(slots=True)
class _Flow:
    """One tenant's requests of one class: the virtual time `end` at which the last of them ends."""

    end: float
    num_open: int = 0
    waiting: list[float] = field(default_factory=list)  # their tags, in order


@dataclass(slots=True)
class _Account:
    """What is known of one request until it ends."""

    flow: _Flow
    tag: float
    cost: int  # estimated
    has_boarded: bool = False
    head_start: int = 0


class FairShare:
    """Start-time fair queueing (Goyal et al., SIGCOMM 1996), with tokens as the work.

    One virtual clock, in tokens. A request's tag is the time at which it may begin: now, or when
    its flow's last one ends, whichever is later. The least tag boards first, and the clock never
    stands before the tag of one that has boarded. So a flow with much to do is served in turn
    with the others, a token for a token, and one that was idle comes neither with credit nor with
    debt. What a request takes is estimated when it comes and put right when it ends: the tags of
    those that wait by then stay as they are, later ones pay or are paid for it.

    A flow is one tenant's requests of one class, so that what a tenant has of a better class does
    not wait for its own of a worse one. The clock is common to all classes: it is how they age.

    A request that is short of time has its tag put back, once and by HEAD_START. What its flow pays
    and the tags behind it stay as they are, so all that a flow gains by deadlines, on all of its
    requests, is to be ahead of its share by that much; and the clock goes by the tag that was put
    back, so newcomers don't stand behind what the hurried overtook.

    However many tenants there are, each served token moves the clock by a 64th of one at least:
    whoever waits is not overtaken for ever by tenants that nobody has heard of before.
    """

    def __init__(self) -> None:
        self._clock = 0.0
        self._flows: dict[tuple[bytes, int], _Flow] = {}
        self._accounts: dict[Sequence, _Account] = {}
        self._last_tenant: bytes | None = None
        self._shared_until = float("-inf")

    def start(self, sequence: Sequence) -> float:
        """The new request's tag: a tenant's are in order of arrival, within a class."""
        self._note_tenant(sequence.tenant)
        flow = self._flow_of(sequence)
        last_tag = flow.waiting[-1] if flow.waiting else 0.0
        tag = max(self._clock, flow.end, last_tag)
        cost = _estimated_cost(sequence)
        flow.end = max(self._clock, flow.end) + cost
        flow.num_open += 1
        flow.waiting.append(tag)
        self._accounts[sequence] = _Account(flow, tag, cost)
        return tag

    def hurry(self, sequence: Sequence) -> int:
        """The tokens by which the tag of one that waits is put back: none the second time."""
        account = self._accounts[sequence]
        if account.head_start:
            return 0
        account.head_start = HEAD_START
        return HEAD_START

    def boarded(self, sequence: Sequence) -> None:
        """Its service begins; nothing when it began before."""
        account = self._accounts[sequence]
        if not account.has_boarded:
            self._leave_waiting(account)
            account.has_boarded = True
            begins = account.tag - account.head_start
            self._clock = max(begins, self._clock + account.cost / MAX_FLOWS)

    def settle(self, sequence: Sequence) -> None:
        """It has ended: its flow pays what it took. Cancelled while it waited it took nothing."""
        account = self._accounts.pop(sequence)
        if not account.has_boarded:
            self._leave_waiting(account)
        account.flow.end += sequence.num_served_tokens - account.cost
        account.flow.num_open -= 1

    def max_seats(self, max_num_seqs: int) -> int:
        """How many of the seats one tenant may take: all as long as it is alone.

        A seat is never taken from anybody, so some are kept for whoever comes next. That costs
        throughput when nobody comes; who is alone, as an embedded client or the only key, does not
        pay it. Nor is there a share of few seats: it would cost too much.
        """
        is_shared = self._clock < self._shared_until
        return max_num_seqs - max_num_seqs // NEWCOMERS_SHARE if is_shared else max_num_seqs

    def _note_tenant(self, tenant: bytes) -> None:
        """Two that come by turns is all that has to be known of how many there are."""
        if self._last_tenant not in (None, tenant):
            self._shared_until = self._clock + ALONE_AFTER
        self._last_tenant = tenant

    def _flow_of(self, sequence: Sequence) -> _Flow:
        """A new flow takes the room of those that are over: they would begin now as well."""
        key = (sequence.tenant, sequence.priority)
        if key not in self._flows:
            self._flows = {
                key: flow
                for key, flow in self._flows.items()
                if flow.num_open or flow.end > self._clock
            }
            self._flows[key] = _Flow(self._clock)
        return self._flows[key]

    @staticmethod
    def _leave_waiting(account: _Account) -> None:
        tags = account.flow.waiting
        del tags[bisect_left(tags, account.tag)]


def _estimated_cost(sequence: Sequence) -> int:
    """Tokens. An answer's length is known to nobody, and its limit is mostly far off."""
    num_left = sequence.max_num_tokens - sequence.num_tokens
    return sequence.num_tokens + min(num_left, ESTIMATED_OUTPUT)
