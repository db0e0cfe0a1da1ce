"""A step that fails: who is at fault ends with a reason, and nobody else notices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from unittest.mock import Mock

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from chairlift.shared.logs import short_hash
from chairlift.shared.messages import Finish
from chairlift.worker.detokenizer import NoText
from chairlift.worker.engine import Engine
from chairlift.worker.faults import run_in_halves
from chairlift.worker.pulse import Pulse
from chairlift.worker.scheduler import ContinuousScheduler, Plan, ScheduledSequence, Scheduler
from chairlift.worker.sequence import Sequence, Status
from chairlift.worker.static_scheduler import StaticScheduler
from tests.fake_engine import (
    CANCELLED,
    Size,
    make_engine,
    make_wish,
    output_of,
    random_wish,
    run_alone,
    run_to_the_end,
    runner_of,
)
from tests.fake_model import last_plus_one

TORCH_OOM = "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"
POLICIES = pytest.mark.parametrize("policy", [ContinuousScheduler, StaticScheduler])


class Panic(BaseException):
    """What a panic in a Rust library looks like from here."""


class BrokenDetokenizer(NoText):
    """Fails at its third token, and whenever it is flushed."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def append(self, token_id: int, *, is_stop_checked: bool = True) -> None:
        if len(self.released_ends) == 2:
            raise self._error
        super().append(token_id, is_stop_checked=is_stop_checked)

    def flush(self, *, is_stop_checked: bool = False) -> None:
        raise self._error


class RecordingPulse(Pulse):
    """Remembers whose steps were begun, how many ended, and who was cleared."""

    def __init__(self) -> None:
        super().__init__(64)
        self.begun: list[list[bytes]] = []
        self.num_ended = 0

    def begin_step(self, request_ids: Iterable[bytes]) -> None:  # type: ignore[override]
        self.begun.append([*request_ids])

    def end_step(self) -> None:
        self.num_ended += 1


def fails_with(error: BaseException, *culprits: Sequence) -> Callable[[Plan], BaseException | None]:
    """Whenever one of the culprits is in the step."""
    return lambda plan: error if any(e.sequence in culprits for e in plan.entries) else None


def added(engine: Engine, number: int, **params: object) -> list[Sequence]:
    wishes = [make_wish([10 * n + 5], ignore_eos=True, **params) for n in range(number)]
    sequences = [wish.sequence() for wish in wishes]
    for sequence in sequences:
        engine.add(sequence)
    return sequences


def num_free(engine: Engine) -> int:
    return engine.scheduler.block_manager.num_free_blocks


@given(st.integers(1, 70), st.sets(st.integers(0, 69)))
def test_halving_finds_the_culprits_and_no_others(size: int, culprits: set[int]) -> None:
    """Whoever they are, all others get their result, in at most two runs for each entry."""
    sequences = [make_wish([n + 2]).sequence() for n in range(size)]
    plan = Plan(tuple(ScheduledSequence.next_of(sequence, 1) for sequence in sequences))
    num_runs = 0

    def run(part: Plan) -> list[int]:
        nonlocal num_runs
        num_runs += 1
        results = [entry.sequence.token_ids[0] for entry in part.entries]
        if any(result - 2 in culprits for result in results):
            raise ValueError("a culprit")
        return results

    with structlog.testing.capture_logs():  # thousands of tracebacks
        outcome = run_in_halves(plan, run)
    failed = [failure.sequence for failure in outcome.failures]
    assert failed == [s for n, s in enumerate(sequences) if n in culprits]
    assert outcome.plan.sampled == [s for n, s in enumerate(sequences) if n not in culprits]
    assert outcome.results == [s.token_ids[0] for s in outcome.plan.sampled]
    assert num_runs <= 2 * size - 1


def test_step_that_succeeds_runs_once() -> None:
    """Plan and padding as they are."""
    plan = Plan((ScheduledSequence.next_of(make_wish([5]).sequence(), 1),), num_padding_tokens=3)
    outcome = run_in_halves(plan, lambda part: [part.num_padding_tokens])
    assert (outcome.plan, outcome.results, outcome.failures) == (plan, [3], ())


@POLICIES
@pytest.mark.parametrize("seed", range(15))
def test_failures_change_no_token_of_the_others(seed: int, policy: type[Scheduler]) -> None:
    """Random requests, some of which fail in every step from some time on: chunks, preemption and
    prefix hits included, the others get what they get alone."""
    random = Random(seed)
    num_blocks = random.randint(8, 30)
    engine = make_engine(Size(num_blocks, max_num_seqs=6, budget=24), policy)
    wishes = [random_wish(random, num_blocks * 4) for _ in range(12)]
    sequences = [wish.sequence() for wish in wishes]
    culprits = {s: s.num_tokens + random.randint(0, 5) for s in random.sample(sequences, 4)}

    def error_in(plan: Plan) -> Exception | None:
        ripe = [s for s in plan.sampled if s.num_tokens >= culprits.get(s, 1000)]
        return RuntimeError("at fault") if ripe else None

    runner_of(engine).error_in = error_in
    for sequence in sequences:
        engine.add(sequence)
    named = run_to_the_end(engine)
    for sequence, wish in zip(sequences, wishes, strict=True):
        finish, alone = sequence.finish, run_alone(wish)
        assert finish is not None
        assert named.count(sequence) == sequence.num_output_tokens + (finish.reason == "error")
        if finish.reason == "error":
            assert finish.code == "internal_error"
            assert sequence.num_tokens == culprits[sequence]
            assert output_of(sequence) == output_of(alone)[: sequence.num_output_tokens]
        else:
            assert output_of(sequence) == output_of(alone)
    assert num_free(engine) == num_blocks


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(TORCH_OOM)])
def test_request_without_memory_is_told_what_to_change(error: Exception) -> None:
    """`out_of_memory`, with the two things that help."""
    engine = make_engine(next_token=last_plus_one)
    sequences = added(engine, 3)
    runner_of(engine).error_in = fails_with(error, sequences[1])
    assert engine.step() == [sequences[0], sequences[2], sequences[1]]
    finish = sequences[1].finish
    assert finish is not None
    assert (finish.reason, finish.code) == ("error", "out_of_memory")
    assert "shorter prompt" in finish.message
    assert "--max-num-batched-tokens" in finish.message


def test_failure_says_where_its_reason_is_and_no_more() -> None:
    """The log has the error under the hash that the client is told."""
    engine = make_engine(next_token=last_plus_one)
    (sequence,) = added(engine, 1)
    runner_of(engine).error_in = fails_with(IndexError("secret"), sequence)
    with structlog.testing.capture_logs() as logs:
        engine.step()
    name = short_hash(sequence.request_id)
    assert sequence.finish is not None
    assert sequence.finish.code == "internal_error"
    assert name in sequence.finish.message
    assert "secret" not in sequence.finish.message
    assert [(entry["request"], str(entry["exc_info"])) for entry in logs] == [(name, "secret")]


def test_fault_that_needs_company_fails_nobody() -> None:
    """Where the whole is too large and its halves are not, everybody gets the token."""
    engine = make_engine(next_token=last_plus_one)
    sequences = added(engine, 8)
    runner = runner_of(engine)
    runner.error_in = lambda plan: MemoryError() if plan.num_rows > 3 else None
    assert engine.step() == sequences
    assert [output_of(s)[0] for s in sequences] == [s.token_ids[0] + 1 for s in sequences]
    assert runner.step_sizes == [8, 4, 2, 2, 4, 2, 2]
    assert (engine.num_steps, engine.num_prompt_tokens) == (1, 8)


def test_machine_that_can_do_nothing_fails_requests_not_the_process() -> None:
    """If everybody fails alone, everybody is told; the next request is served."""
    engine = make_engine(next_token=last_plus_one)
    sequences = added(engine, 8)
    runner_of(engine).error_in = lambda plan: RuntimeError("broken")
    assert engine.step() == sequences
    assert {s.finish and s.finish.code for s in sequences} == {"internal_error"}
    assert len(runner_of(engine).step_sizes) == 15
    assert num_free(engine) == 64
    runner_of(engine).error_in = lambda plan: None
    (late,) = added(engine, 1)
    run_to_the_end(engine)
    assert late.finish == Finish("length")


def test_error_while_sampling_is_the_rows_own() -> None:
    """A parameter that the sampler chokes on ends its request alone."""
    engine = make_engine(next_token=last_plus_one)
    good = make_wish([5], max_tokens=3).sequence()
    bad = make_wish([25], max_tokens=3, logit_bias=((100_000, 1.0),)).sequence()
    for sequence in (bad, good):
        engine.add(sequence)
    run_to_the_end(engine)
    assert bad.finish is not None
    assert bad.finish.code == "internal_error"
    assert output_of(good) == [6, 7, 8]


@POLICIES
@pytest.mark.parametrize("error", [ValueError("broken"), MemoryError(), Panic("broken")])
def test_broken_detokenizer_ends_its_own_sequence(
    error: BaseException, policy: type[Scheduler]
) -> None:
    """The token that it could not take never was; blocks are free, and the others go on."""
    engine = make_engine(policy=policy, next_token=last_plus_one)
    broken = make_wish([5], max_tokens=9).sequence(BrokenDetokenizer(error))
    engine.add(broken)
    others = added(engine, 2, max_tokens=9)
    with structlog.testing.capture_logs() as logs:
        named = run_to_the_end(engine)
    assert len(logs) == 1
    assert broken.finish is not None
    assert broken.finish.reason == "error"
    assert output_of(broken) == [6, 7]
    assert len(broken.detokenizer.released_ends) == 2
    assert (named.count(broken), broken.status) == (3, Status.FINISHED)
    assert engine.num_generation_tokens == 2 + 2 * 9
    for other in others:
        first = other.token_ids[0]
        assert output_of(other) == [first + i for i in range(1, 10)]
    assert num_free(engine) == 64


def test_broken_detokenizer_of_a_resumed_request_ends_it_at_once() -> None:
    """Taking the old tokens once more is no danger to the worker either."""
    engine = make_engine()
    broken = make_wish([5]).sequence(BrokenDetokenizer(Panic("broken")))
    engine.add(broken, [6, 7, 8, 9])
    assert broken.finish is not None
    assert broken.finish.code == "internal_error"
    assert output_of(broken) == [6, 7]
    assert not engine.scheduler.has_work


def test_broken_detokenizer_does_not_keep_a_cancel_from_working() -> None:
    """What it holds back is lost, and nothing else."""
    engine = make_engine()
    broken = make_wish([5]).sequence(BrokenDetokenizer(Panic("broken")))
    engine.add(broken)
    engine.step()
    engine.end(broken, CANCELLED)
    assert broken.finish == CANCELLED
    assert num_free(engine) == 64


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_who_wants_the_process_to_end_is_no_fault(error: BaseException) -> None:
    """Neither in a step nor in a detokenizer."""
    engine = make_engine()
    runner_of(engine).error_in = lambda plan: error
    added(engine, 2)
    with pytest.raises(type(error)):
        engine.step()
    engine = make_engine()
    engine.add(make_wish([5]).sequence(BrokenDetokenizer(error)))
    engine.step()
    engine.step()
    with pytest.raises(type(error)):
        engine.step()


def test_our_own_faults_are_not_hidden() -> None:
    """A scheduler that fails is a bug of ours: the process ends and is started anew."""
    engine = make_engine()
    added(engine, 2)
    stray = make_wish([5]).sequence()  # runs, they say, and has no blocks
    stray.status = Status.RUNNING
    engine.scheduler.running.append(stray)
    with pytest.raises(IndexError):
        engine.step()


def test_a_device_that_fails_for_good_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would go on and refuse everybody at once. Nobody is told that it is to blame."""
    engine = make_engine()
    sequences = added(engine, 2)
    runner_of(engine).error_in = lambda plan: RuntimeError("illegal memory access")
    monkeypatch.setattr(engine.executor, "check", Mock(side_effect=RuntimeError("lost")))
    with pytest.raises(RuntimeError, match="lost"):
        engine.step()
    assert all(sequence.finish is None for sequence in sequences)


def test_pulse_names_who_is_being_computed() -> None:
    """The ids of each attempt before it is made, all of them while what it gave is taken in, and
    one end when the step is through."""
    pulse = RecordingPulse()
    engine = make_engine(next_token=last_plus_one, pulse=pulse)
    sequences = added(engine, 4, max_tokens=2)
    ids = [sequence.request_id for sequence in sequences]
    runner_of(engine).error_in = fails_with(RuntimeError("at fault"), sequences[2])
    engine.step()
    assert pulse.begun == [ids, ids[:2], ids[2:], ids[2:3], ids[3:], ids]
    assert pulse.num_ended == 1
    engine.step()
    assert pulse.begun[6:] == [[ids[0], ids[1], ids[3]]]
    engine.step()
    assert (len(pulse.begun), pulse.num_ended) == (7, 2)


def test_ghosts_of_static_batching_fail_for_nobody() -> None:
    """A finished member's row that can't be computed is no news of its request."""
    engine = make_engine(policy=StaticScheduler, next_token=last_plus_one)
    short, long = make_wish([5], max_tokens=1).sequence(), make_wish([25], max_tokens=4).sequence()
    for sequence in (short, long):
        engine.add(sequence)
    engine.step()
    runner_of(engine).error_in = lambda plan: (
        RuntimeError("at fault") if any(e.sequence is not long for e in plan.entries) else None
    )
    assert run_to_the_end(engine) == [long] * 3
    assert short.finish == long.finish == Finish("length")
    assert num_free(engine) == 64
