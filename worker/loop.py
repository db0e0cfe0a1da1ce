"""The worker's loop: arrivals board, one step runs, news goes out. And again."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from ..shared.messages import Finish, WorkerStats
from .engine import Engine
from .intake import CANCELLED, Intake
from .publisher import HEARTBEAT_S, Publisher
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sockets = sockets
        self._intake = intake
        self._engine = engine
        self._publisher = publisher
        self._clock = clock
        self._is_stopping = False

    def run(self, drain_timeout_s: float) -> None:
        """Until `stop`; then the running requests have `drain_timeout_s` to finish."""
        while not self._is_stopping:
            self.turn()
        self._publisher.drain()
        deadline = self._clock() + drain_timeout_s
        while self._engine.scheduler.has_work and self._clock() < deadline:
            self.turn()
        self._shut_down()

    def close(self) -> None:
        self._sockets.close()

    def stop(self) -> None:
        """Safe in a signal handler."""
        self._is_stopping = True

    def turn(self) -> None:
        """One step and what goes with it."""
        if not self._engine.scheduler.has_work:
            self._wait()
        self._take_arrivals()
        for sequence in self._engine.step():
            self._publisher.notify(sequence)
        self._publish()

    def _wait(self) -> None:
        """Until there is work or a heartbeat is due. The first step of a busy time may be long, so
        frontends hear before it that there is work."""
        self._sockets.wait(HEARTBEAT_S)
        self._take_arrivals()
        if self._engine.scheduler.has_work:
            self._publisher.speak_up()
            self._publish()

    def _publish(self) -> None:
        self._publisher.publish(self._sockets.send, self._stats(), self._clock())

    def _take_arrivals(self) -> None:
        now = self._clock()
        for topic, is_subscription in self._sockets.subscriptions():
            change = self._publisher.subscribed if is_subscription else self._publisher.unsubscribed
            change(topic, now)
        self._intake.receive(self._sockets.arrivals(), now)
        for sequence in self._publisher.expire(now):
            self._engine.end(sequence, CANCELLED)

    def _shut_down(self) -> None:
        """Everybody who still listens gets an answer, within a second."""
        for sequence in self._publisher.unfinished():
            self._engine.end(sequence, SHUT_DOWN)
            self._publisher.notify(sequence)
        self._publisher.speak_up()
        self._publish()
        deadline = self._clock() + LAST_WORDS_S
        while self._publisher.has_unsent and self._clock() < deadline:
            time.sleep(LAST_WORDS_S / 20)
            self._publish()

    def _stats(self) -> WorkerStats:
        scheduler = self._engine.scheduler
        blocks = scheduler.block_manager
        return WorkerStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            max_waiting=self._intake.max_waiting,
            num_free_blocks=blocks.num_free_blocks,
            num_blocks=blocks.num_blocks,
            num_steps=self._engine.num_steps,
            num_prompt_tokens=self._engine.num_prompt_tokens,
            num_generation_tokens=self._engine.num_generation_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_prefix_queries=blocks.num_prefix_queries,
            num_prefix_hits=blocks.num_prefix_hits,
            num_malformed_messages=self._intake.num_malformed,
        )
