"""The engine with a fake model: whatever happens around it, each request's tokens are its own."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from chairlift.shared.messages import Finish
from chairlift.worker.engine import Engine
from chairlift.worker.model_runner import StepOutput
from chairlift.worker.scheduler import ContinuousScheduler, Plan, Scheduler
from chairlift.worker.sequence import Sequence
from chairlift.worker.static_scheduler import StaticScheduler
from chairlift.worker.step_times import StepTimes
from tests.fake_engine import (
    BLOCK_SIZE,
    CANCELLED,
    VOCAB_SIZE,
    Size,
    Wish,
    make_engine,
    make_wish,
    output_of,
    random_wish,
    run_alone,
    run_to_the_end,
    runner_of,
)
from tests.fake_model import last_plus_one


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("policy", "depth"),
    [
        (ContinuousScheduler, 0),
        (ContinuousScheduler, 1),
        (ContinuousScheduler, 2),
        (StaticScheduler, 0),
    ],
)
@pytest.mark.parametrize("seed", range(40))
def test_every_request_gets_the_tokens_that_it_gets_alone(
    seed: int, policy: type[Scheduler], depth: int
) -> None:
    """Random arrivals, cancels, chunks, preemption, prefix hits and steps in flight change no token
    of anybody."""
    random = Random(seed)
    num_blocks, max_num_seqs = random.randint(6, 20), random.randint(1, 8)
    budget = max_num_seqs + random.choice([BLOCK_SIZE, 9, 40])
    engine = make_engine(Size(num_blocks, max_num_seqs, budget, depth=depth), policy)
    running: dict[Sequence, Wish] = {}
    for _ in range(40):
        while random.random() < 0.4:
            wish = random_wish(random, num_blocks * BLOCK_SIZE)
            sequence = wish.sequence()
            running[sequence] = wish
            engine.add(sequence)
        if running and random.random() < 0.1:
            engine.end(random.choice(list(running)), CANCELLED)
        engine.step()
    run_to_the_end(engine)
    assert engine.scheduler.block_manager.num_free_blocks == num_blocks
    for sequence, wish in running.items():
        alone = run_alone(wish)
        if sequence.finish == CANCELLED:
            assert output_of(alone)[: sequence.num_output_tokens] == output_of(sequence)
            continue
        assert output_of(sequence) == output_of(alone)
        assert sequence.finish is not None
        assert alone.finish is not None
        assert sequence.finish.reason == alone.finish.reason


def test_scarce_blocks_did_preempt_in_these_tests() -> None:
    """The worlds above are small enough for preemption and prefix hits to happen."""
    random = Random(0)
    engine = make_engine(Size(num_blocks=8, max_num_seqs=6, budget=40))
    wishes = [random_wish(random, 32) for _ in range(20)]
    sequences = [wish.sequence() for wish in wishes]
    for sequence in sequences:
        engine.add(sequence)
    run_to_the_end(engine)
    assert engine.scheduler.num_preemptions > 3
    assert engine.scheduler.block_manager.num_prefix_hits > 0
    for sequence, wish in zip(sequences, wishes, strict=True):
        assert output_of(sequence) == output_of(run_alone(wish))


def test_resumed_request_goes_on_where_it_was() -> None:
    """With the first k output tokens given, any k, the rest is what it would have been."""
    wish = make_wish([5, 6, 7], max_tokens=12, temperature=1.0, seed=3, ignore_eos=True)
    whole = output_of(run_alone(wish))
    for cut in range(12):
        sequence = wish.sequence()
        for token_id in whole[:cut]:
            sequence.append(token_id)
        engine = make_engine()
        engine.add(sequence)
        run_to_the_end(engine)
        assert output_of(sequence) == whole


def test_step_names_those_with_news() -> None:
    """A step returns the sequences that got a token or ended, and nobody who is still read in."""
    engine = make_engine(Size(budget=16), next_token=last_plus_one)
    short, long = make_wish([5, 6]).sequence(), make_wish([9] * 40).sequence()
    engine.add(short)
    engine.add(long)
    assert engine.step() == [short]
    assert engine.step() == [short]
    assert output_of(short) == [7, 8]
    assert long.num_output_tokens == 0
    assert set(run_to_the_end(engine)) == {short, long}
    assert engine.step() == []
    assert runner_of(engine).num_steps == engine.num_steps


@pytest.mark.parametrize("policy", [ContinuousScheduler, StaticScheduler])
def test_row_that_is_no_number_ends_alone_with_an_error(policy: type[Scheduler]) -> None:
    """NaN logits end their own request with a reason; all others go on with the same tokens."""
    wishes = [make_wish([20 * n + 5], max_tokens=10, ignore_eos=True) for n in range(4)]
    engine = make_engine(policy=policy, next_token=last_plus_one)
    runner_of(engine).poisoned_token_ids = {28}
    sequences = [wish.sequence() for wish in wishes]
    for sequence in sequences:
        engine.add(sequence)
    named = run_to_the_end(engine)
    poisoned = sequences[1]
    assert poisoned.finish is not None
    assert (poisoned.finish.reason, poisoned.finish.code) == ("error", "model_output_not_finite")
    assert output_of(poisoned) == [26, 27, 28]
    assert named.count(poisoned) == 4
    for sequence in (sequences[0], *sequences[2:]):
        first = sequence.token_ids[0]
        assert output_of(sequence) == [(first + i) % VOCAB_SIZE for i in range(1, 11)]
        assert sequence.finish == Finish("length")
    assert engine.scheduler.block_manager.num_free_blocks == 64


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_of_a_row_that_is_no_number_get_the_same_bits(seed: int) -> None:
    """Whatever way of sampling they share with it: logits and tokens are those of a run without."""
    random = Random(seed)
    wishes = [random_wish(random, 40) for _ in range(10)]

    def run(poisoned: set[int]) -> tuple[list[Sequence], dict[tuple[int, int], bytes]]:
        engine = make_engine(Size(num_blocks=32, budget=100))
        runner = runner_of(engine)
        runner.poisoned_token_ids = poisoned
        sequences = [wish.sequence() for wish in wishes]
        rows: dict[tuple[int, int], bytes] = {}
        compute = runner.run

        def noted(plan: Plan) -> StepOutput:
            output = compute(plan)
            for sequence, row in zip(plan.sampled, output.logits, strict=True):
                rows[sequences.index(sequence), sequence.num_tokens] = row.numpy().tobytes()
            return output

        runner.run = noted  # type: ignore[method-assign]  # a model that is watched
        for sequence in sequences:
            engine.add(sequence)
        run_to_the_end(engine)
        return sequences, rows

    control, control_rows = run(set())
    victim = max(control, key=lambda s: s.num_output_tokens)
    tested, rows = run({victim.token_ids[victim.num_prompt_tokens]})
    num_same = 0
    for n, (sequence, other) in enumerate(zip(tested, control, strict=True)):
        if sequence.finish is not None and sequence.finish.reason == "error":
            continue
        num_same += 1
        assert sequence.token_ids == other.token_ids
        assert {k: v for k, v in rows.items() if k[0] == n} == {
            k: v for k, v in control_rows.items() if k[0] == n
        }
    assert 0 < num_same < len(wishes)


def test_end_is_at_once_and_only_once() -> None:
    """Ending a waiting, a running or a finished sequence: one finish, no blocks, no more tokens."""
    engine = make_engine(Size(max_num_seqs=1), next_token=last_plus_one)
    running, waiting = make_wish([5]).sequence(), make_wish([6]).sequence()
    engine.add(running)
    engine.add(waiting)
    engine.step()
    engine.end(waiting, CANCELLED)
    engine.end(running, CANCELLED)
    engine.end(running, Finish("error", code="other"))
    assert (running.finish, waiting.finish) == (CANCELLED, CANCELLED)
    assert engine.scheduler.block_manager.num_free_blocks == 64
    assert engine.step() == []
    done = make_wish([5], max_tokens=1).sequence()
    engine.add(done)
    engine.step()
    engine.end(done, CANCELLED)
    assert done.finish == Finish("length")


def test_counters_count_prompt_and_generation_tokens() -> None:
    """Prompt tokens as often as they are computed, generated ones once, steps with work alone."""
    engine = make_engine(Size(budget=16), next_token=last_plus_one)
    for prompt in ([5] * 30, [6] * 3):
        engine.add(make_wish(prompt, max_tokens=5).sequence())
    run_to_the_end(engine)
    engine.step()
    assert (engine.num_prompt_tokens, engine.num_generation_tokens) == (33, 10)
    assert engine.num_steps == runner_of(engine).num_steps
    again = make_wish([5] * 30, max_tokens=1).sequence()
    engine.add(again)
    run_to_the_end(engine)
    assert again.num_cached_tokens == 28
    assert (engine.num_prompt_tokens, engine.num_generation_tokens) == (35, 11)
    assert again.finish == Finish("length", num_cached_tokens=28)


def test_row_without_a_token_is_not_counted_as_generated() -> None:
    """Only tokens that exist are in `num_generation_tokens`."""
    engine = make_engine(next_token=last_plus_one)
    runner_of(engine).poisoned_token_ids = {7}
    engine.add(make_wish([5], max_tokens=5).sequence())
    run_to_the_end(engine)
    assert engine.num_generation_tokens == 2


def finish_some(engine: Engine, clock: Clock, number: int, seconds_each: float) -> None:
    """Requests of one token, one after another, each step taking its time."""
    runner = runner_of(engine)
    run = runner.run

    def slow(plan: Any) -> Any:
        clock.now += seconds_each
        return run(plan)

    runner.run = slow  # type: ignore[method-assign]  # a model that takes its time
    for _ in range(number):
        engine.add(make_wish([5], max_tokens=1).sequence())
        engine.step()
    runner.run = run  # type: ignore[method-assign]


def test_estimated_wait_is_the_queue_at_the_rate_of_the_last_finishes() -> None:
    """Ten waiting at two seconds each are twenty seconds; before there is a rate, one second."""
    clock = Clock()
    engine = make_engine(Size(max_num_seqs=1))
    engine.times = StepTimes(clock)
    assert engine.estimated_wait_ms() == 1000
    finish_some(engine, clock, 5, seconds_each=2.0)
    assert engine.estimated_wait_ms() == 1000
    for _ in range(10):
        engine.add(make_wish([5], max_tokens=1).sequence())
    assert engine.estimated_wait_ms() == pytest.approx(20_000, rel=0.01)


def test_estimated_wait_does_not_count_the_time_without_work() -> None:
    """After a quiet hour a full queue waits as long as after a busy one."""
    clock = Clock()
    engine = make_engine(Size(max_num_seqs=1))
    engine.times = StepTimes(clock)
    finish_some(engine, clock, 5, seconds_each=2.0)
    clock.now += 3600
    for _ in range(10):
        engine.add(make_wish([5], max_tokens=1).sequence())
    assert engine.estimated_wait_ms() == pytest.approx(20_000, rel=0.01)


def test_times_add_up() -> None:
    """The parts of a step's time are those of its phases."""
    clock = Clock()
    engine = make_engine()
    engine.times = StepTimes(clock)
    finish_some(engine, clock, 3, seconds_each=2.0)
    times = engine.times
    assert times.forward_s == 6.0
    assert times.schedule_s == times.sample_s == times.commit_s == 0.0


@pytest.mark.parametrize("depth", [0, 1])
def test_chores_are_for_want_of_steps(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time, and a loop does not sleep before the last; none while a request runs or a step
    is in flight."""
    engine, chores = make_engine(Size(depth=depth)), [1, 2, 3]

    def idle() -> bool:
        assert not engine.has_work
        return bool(chores and chores.pop())

    monkeypatch.setattr(engine.executor, "idle", idle)
    assert engine.patience_s > 0
    engine.step()
    assert (len(chores), engine.patience_s) == (2, 0)
    engine.add(make_wish([5, 6], max_tokens=3, ignore_eos=True).sequence())
    while engine.has_work:
        engine.step()
        assert len(chores) == 2
    for num_left in (1, 0, 0):
        engine.step()
        assert len(chores) == num_left
    assert engine.patience_s > 0


def test_no_chores_while_a_request_has_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed with log probabilities it waits for each step of its prompt, which changes nothing
    that a client would see."""
    engine = make_engine(Size(depth=1, budget=9))
    monkeypatch.setattr(engine.executor, "idle", pytest.fail)
    wish = make_wish(list(range(5, 35)), max_tokens=4, ignore_eos=True, num_logprobs=0)
    engine.add(wish.sequence(), output_of(run_alone(wish))[:2])
    run_to_the_end(engine)
