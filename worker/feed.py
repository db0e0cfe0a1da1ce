"""The step feed: what each step was, for those who watch. Sans-IO: send and clock come in."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

from ..shared.codec import encode
from ..shared.messages import Steps
from ..shared.steps import MAX_WAITING_TOLD, Ended, StepRecord
from .engine import Engine
from .publisher import Send
from .scheduler import ScheduledSequence
from .sequence import Sequence as EngineSequence

INTERVAL_S = 0.05
INTERVAL_PER_WATCHER_S = 0.002  # so that however many watch, sending to them stays cheap
MAX_RECORDS = 256  # in one message; older ones are dropped


class Feed:
    """Owns the records that nobody was sent yet, and the requests that were told of.

    As long as nobody watches it does nothing. Who can't take a message misses it.
    """

    def __init__(self, engine: Engine, epoch: int, clock_began: float) -> None:
        """`clock_began`: the Unix time at which the engine's clock was zero, in seconds."""
        self._engine = engine
        self._epoch = epoch
        self._clock_began = clock_began
        self._records: deque[StepRecord] = deque(maxlen=MAX_RECORDS)
        self._ended: list[Ended] = []
        self._riders: dict[EngineSequence, int] = {}  # told of, and how often they were preempted
        self._is_on = False
        self._num_steps = 0
        self._phases: Sequence[float] = ()
        self._last_sent = float("-inf")

    @property
    def patience_s(self) -> float:
        """How long a worker without work may sleep."""
        return INTERVAL_S if self._records or self._riders else float("inf")

    def publish(self, watchers: Collection[bytes], send: Send, now: float) -> None:
        """Call after every step: takes it in, and sends what came since the last time."""
        if not watchers:
            self._stop()
            return
        if self._is_on and self._engine.num_steps != self._num_steps:
            self._take_step()
        self._look_from_here()
        self._take_ends()
        interval_s = max(INTERVAL_S, INTERVAL_PER_WATCHER_S * len(watchers))
        if now >= self._last_sent + interval_s and (self._records or self._ended):
            body = encode(Steps(self._epoch, list(self._records), self._ended))
            for frontend_id in watchers:
                send(frontend_id, body)
            self._records.clear()
            self._ended = []
            self._last_sent = now

    def _look_from_here(self) -> None:
        """What an idle turn took is no step's."""
        self._is_on = True
        self._num_steps = self._engine.num_steps
        self._phases = self._engine.times.phases_s

    def _stop(self) -> None:
        if self._is_on:
            self._is_on, self._ended = False, []
            self._records.clear()
            self._riders.clear()

    def _take_step(self) -> None:
        engine = self._engine
        phases = engine.times.phases_s
        phases_us = [round(1e6 * (b - a)) for a, b in zip(self._phases, phases, strict=True)]
        began_s = self._clock_began + engine.times.clock() - 1e-6 * sum(phases_us)
        scheduler, entries = engine.scheduler, engine.last_plan.entries
        sequences = [entry.sequence for entry in entries]
        waiting = [*scheduler.suspects, *scheduler.waiting[:MAX_WAITING_TOLD]][:MAX_WAITING_TOLD]
        self._records.append(
            StepRecord(
                number=engine.num_steps,
                began_us=round(1e6 * began_s),
                phases_us=tuple(phases_us),
                num_waiting=scheduler.num_waiting,
                waiting=_hashes(waiting),
                num_free_blocks=scheduler.block_manager.num_free_blocks,
                num_shared_blocks=scheduler.block_manager.num_shared_blocks,
                preempted=_hashes(self._newly_preempted()),
                requests=_hashes(sequences),
                num_tokens=[entry.num_tokens for entry in entries],
                num_prompt_tokens=[entry.num_prompt_tokens for entry in entries],
                num_drafts=[len(entry.drafts) for entry in entries],
                num_new_tokens=[_num_new_tokens(entry) for entry in entries],
                num_computed_tokens=[sequence.num_computed_tokens for sequence in sequences],
                num_total_tokens=[sequence.num_tokens for sequence in sequences],
                num_blocks=[len(sequence.block_table) for sequence in sequences],
            )
        )
        for sequence in sequences:
            self._riders[sequence] = sequence.journey.num_preemptions

    def _newly_preempted(self) -> list[EngineSequence]:
        """They have lost their blocks since they were told of."""
        preempted = [s for s, count in self._riders.items() if s.journey.num_preemptions > count]
        for sequence in preempted:
            self._riders[sequence] = sequence.journey.num_preemptions
        return preempted

    def _take_ends(self) -> None:
        for sequence in [s for s in self._riders if s.finish is not None]:
            del self._riders[sequence]
            finish, receipt = sequence.finish, sequence.receipt
            if finish is not None and receipt is not None:
                self._ended.append(Ended(sequence.request_hash, finish.reason, receipt))


def _hashes(sequences: Collection[EngineSequence]) -> bytes:
    return b"".join(sequence.request_hash for sequence in sequences)


def _num_new_tokens(entry: ScheduledSequence) -> int:
    """After a sample the sequence has what it had, all of which the step computed, and these."""
    return entry.sequence.num_tokens - entry.span.stop if entry.is_sampled else 0
