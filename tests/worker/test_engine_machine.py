"""The engine's machine around the fake model, whose answers depend on all that its cache holds."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings

from chairlift.worker.engine import Engine
from chairlift.worker.scheduler import Plan
from chairlift.worker.static_scheduler import StaticScheduler
from tests.fake_engine import Size, Wish, make_engine, output_of, run_alone, runner_of
from tests.fake_model import stuttering
from tests.worker.engine_machine import EngineMachine, Kind


class FakeEngineMachine(EngineMachine):
    """With a device of no depth, and with one that is a step or two ahead."""

    kinds = (
        Kind("continuous"),
        Kind("overlapped", depth=1),
        Kind("two ahead", depth=2),
        Kind("speculating", speculates=True),
        Kind("static", StaticScheduler),
    )

    def make_engine(
        self, size: Size, kind: Kind, error_in: Callable[[Plan], Exception | None]
    ) -> Engine:
        engine = make_engine(size, kind.policy, stuttering, speculates=kind.speculates)
        runner_of(engine).error_in = error_in
        return engine

    def answer_alone(self, wish: Wish) -> list[int]:
        return output_of(run_alone(wish, stuttering))


TestEngineMachine = FakeEngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=150, stateful_step_count=20)
