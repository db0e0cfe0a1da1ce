"""The worker's loop: arrivals board, one step runs, news goes out. And again."""

from __future__ import annotations

import time

import structlog

from ..shared.messages import Finish, WorkerStats
from .engine import Engine
from .feed import Feed
from .intake import Intake
from .publisher import Publisher
from .pulse import State, Wish
from .sockets import WorkerSockets

LAST_WORDS_S = 1.0

log = structlog.get_logger(__name__)

SHUT_DOWN = Finish(
    "abort", code="shutting_down", message="the worker was shut down", retry_after_ms=5_000
)


class Loop:
    """Drives one worker. Blocks only where there is nothing to do."""

    def __init__(
        self,
        sockets: WorkerSockets,
        intake: Intake,
        engine: Engine,
        publisher: Publisher,
        feed: Feed,
    ) -> None:
        self._sockets = sockets
        self._intake = intake
        self._engine = engine
        self._publisher = publisher
        self._feed = feed
        self._pulse = engine.pulse

    def run(self, drain_timeout_s: float) -> None:
        """Until the parent wishes otherwise; running requests then have so long to finish."""
        self._pulse.beat()
        self._pulse.state = State.READY
        while self._pulse.wish is Wish.RUN:
            self.turn()
        self._drain(drain_timeout_s)
        self._shut_down()

    def close(self) -> None:
        self._sockets.close()

    def turn(self) -> None:
        """One step and what goes with it."""
        self._pulse.beat()
        if not self._engine.has_work:
            self._wait()
        self._take_arrivals()
        self._intake.notify(self._engine.step())
        self._publish()

    def _drain(self, timeout_s: float) -> None:
        self._pulse.state = State.DRAINING
        self._publisher.drain()
        deadline = time.monotonic() + timeout_s
        while self._has_requests and time.monotonic() < deadline:
            if self._pulse.wish is Wish.STOP:
                break
            self.turn()

    def _wait(self) -> None:
        """Until there is work or a heartbeat is due. The first step of a busy time may be long, so
        frontends hear before it that there is work."""
        parts = self._publisher, self._engine, self._feed
        self._sockets.wait(min(part.patience_s for part in parts))
        self._take_arrivals()
        if self._engine.has_work:
            self._publisher.speak_up()
            self._publish()

    @property
    def _has_requests(self) -> bool:
        return self._engine.has_work or self._engine.num_compiling > 0

    def _publish(self) -> None:
        times, send, now = self._engine.times, self._sockets.send, time.monotonic()
        started = times.clock()
        self._publisher.publish(send, self._stats(), now)
        times.publish_s += times.clock() - started
        self._feed.publish(self._publisher.watchers(now), send, now)

    def _take_arrivals(self) -> None:
        times, now = self._engine.times, time.monotonic()
        started = times.clock()
        for topic, is_subscription in self._sockets.subscriptions():
            change = self._publisher.subscribed if is_subscription else self._publisher.unsubscribed
            change(topic, now)
        self._intake.receive(self._sockets.arrivals(), now)
        times.arrivals_s += times.clock() - started

    def _shut_down(self) -> None:
        """Everybody who still listens gets an answer, within a second."""
        self._intake.end_all(SHUT_DOWN)
        self._publisher.speak_up()
        self._publish()
        deadline = time.monotonic() + LAST_WORDS_S
        while self._publisher.has_unsent and time.monotonic() < deadline:
            time.sleep(LAST_WORDS_S / 20)
            self._publish()

    def _stats(self) -> WorkerStats:
        scheduler = self._engine.scheduler
        blocks = scheduler.block_manager
        return WorkerStats(
            num_running=len(scheduler.running),
            num_waiting=scheduler.num_waiting + self._engine.num_compiling,
            max_waiting=self._intake.limits.max_waiting,
            num_free_blocks=blocks.num_free_blocks,
            num_blocks=blocks.num_blocks,
            num_steps=self._engine.num_steps,
            num_prompt_tokens=self._engine.num_prompt_tokens,
            num_generation_tokens=self._engine.num_generation_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_prefix_queries=blocks.num_prefix_queries,
            num_prefix_hits=blocks.num_prefix_hits,
            num_malformed_messages=self._intake.num_malformed,
            num_waiting_tokens=scheduler.num_waiting_tokens,
            max_waiting_tokens=self._intake.limits.max_waiting_tokens,
            retry_after_ms=self._engine.estimated_wait_ms(),
            num_orphans=self._intake.num_orphans,
            num_draft_tokens=self._engine.num_draft_tokens,
            num_accepted_tokens=self._engine.num_accepted_tokens,
            phases_us=tuple(round(1e6 * seconds) for seconds in self._engine.times.phases_s),
            num_refused=list(self._intake.num_refused.items()),
        )
