"""What steps cost is learned, and prompts leave decodes their time."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chairlift.worker.pace import (
    AUTO_FLOOR_S,
    AUTO_STRETCH,
    Pace,
    StepTimeModel,
    Work,
    padded_length,
)
from tests.worker.scheduler_world import World, distinct_prompt, random_run


def machine_s(work: Work, slowness: float = 1.0) -> float:
    """About what a 0.5B model takes: for up to ten rows or so, reading its weights."""
    rows_s = max(0.030, 0.010 + 0.0018 * float(padded_length(np.array(work.num_rows))))
    return slowness * (rows_s + 0.0003 * work.num_decodes + 2e-8 * work.num_keys)


def chunk_s(pace: Pace, decodes: Work, count: int) -> float:
    """What the pace expects a chunk at the beginning of a prompt to add."""
    both = decodes + Work.of([(0, count)])
    return pace.model.seconds(both) - pace.model.seconds(decodes)


def random_work(random: Random) -> Work:
    decodes = [(random.randrange(1000), 1)] * random.randint(0, 32)
    chunks = [(random.randrange(8) * 32, random.randint(2, 256))] * random.randint(0, 2)
    return Work.of([*decodes, *chunks]) if decodes or chunks else Work.of([(0, 1)])


def taught(
    slowness: float = 1.0, *, target_itl_s: float | None = None, chunk_unit: int = 1
) -> Pace:
    """Knows the machine to the last digit."""
    pace, random = Pace(target_itl_s, chunk_unit), Random(0)
    for _ in range(400):
        work = random_work(random)
        pace.model.learn(work, machine_s(work, slowness))
    return pace


def test_a_linear_machine_is_learned_through_noise() -> None:
    """Within a tenth, from a few hundred steps that took up to a fifth more or less."""
    model, random = StepTimeModel(), Random(1)
    for _ in range(500):
        work = random_work(random)
        model.learn(work, machine_s(work) * random.uniform(0.8, 1.2))
    for _ in range(100):
        work = random_work(random)
        assert model.seconds(work) == pytest.approx(machine_s(work), rel=0.1)


def test_hours_of_decodes_leave_the_price_of_a_prompt_known() -> None:
    """And the decodes' own price follows the machine."""
    pace = taught()
    decodes = Work.of([(500, 1)] * 16)
    for _ in range(20_000):
        pace.model.learn(decodes, machine_s(decodes))
    assert chunk_s(pace, decodes, 64) == pytest.approx(0.0018 * 64, rel=0.15)


def test_a_machine_that_slows_down_is_noticed() -> None:
    """After a hundred steps of each kind at half the speed."""
    pace, random = taught(), Random(2)
    for _ in range(1000):
        work = random_work(random)
        pace.model.learn(work, machine_s(work, 2.0))
    work = Work.of([(300, 1)] * 8)
    assert pace.model.seconds(work) == pytest.approx(machine_s(work, 2.0), rel=0.15)


def test_one_hiccup_is_the_machines_doing() -> None:
    """A step that took a hundred times as long moves what is expected by less than its half."""
    model, random = StepTimeModel(), Random(3)
    for _ in range(300):
        work = random_work(random)
        model.learn(work, machine_s(work))
    work = Work.of([(300, 1)] * 8)
    before = model.seconds(work)
    model.learn(work, 100 * machine_s(work))
    assert model.seconds(work) < 1.5 * before


def test_nothing_takes_less_than_no_time() -> None:
    """Whatever nonsense was measured."""
    model, random = StepTimeModel(), Random(4)
    for _ in range(200):
        model.learn(random_work(random), random.choice([0.0, 1e-4, 0.01, 5.0]))
        assert model.seconds(random_work(random)) >= 0
        seconds = model.seconds_with(random_work(random), 500, 64)
        assert (seconds >= 0).all() and (np.diff(seconds) >= 0).all()


@given(
    st.floats(0, 0.5), st.integers(0, 100_000), st.integers(0, 4096), st.sampled_from([0.1, 1, 9])
)
def test_as_many_tokens_as_the_time_allows(
    limit_s: float, first: int, most: int, slowness: float
) -> None:
    """That many fit beside what the step does already, and one more does not."""
    pace, work = taught(slowness), Work.of([(100, 1)] * 3)
    count = pace.num_tokens_in(limit_s, work, first, most)
    assert 0 <= count <= most

    def seconds(count: int) -> float:
        num_keys = sum(first + number for number in range(1, count + 1))
        return pace.model.seconds(work + Work(count, 0, num_keys))

    if count:
        assert seconds(count) <= limit_s * (1 + 1e-6) + 1e-9
    if count < most:
        assert seconds(count + 1) >= limit_s * (1 - 1e-6) - 1e-9


def test_few_rows_beside_few_are_nearly_free() -> None:
    """As reading the weights takes as long for one row as for eight: the curve has its bend."""
    pace = taught()
    few, many = Work.of([(100, 1)] * 4), Work.of([(100, 1)] * 16)
    assert chunk_s(pace, few, 4) < 0.5 * chunk_s(pace, many, 4)


def test_who_knows_nothing_limits_nothing() -> None:
    """Nor does one that knows, where nobody decodes."""
    decodes = Work.of([(100, 1)] * 4)
    assert math.isinf(Pace().limit_s(decodes))
    assert math.isinf(taught().limit_s(Work()))
    assert Pace().num_tokens_in(math.inf, decodes, 0, 512) == 512


@pytest.mark.parametrize(
    ("target_s", "slowness", "expected_s"),
    [(0.2, 1.0, 0.2), (None, 1.0, None), (None, 0.001, AUTO_FLOOR_S), (0.01, 1.0, 0.0)],
)
def test_the_target(target_s: float | None, slowness: float, expected_s: float | None) -> None:
    """As it was set, else a stretch of what the decodes take, or what no reader feels; where
    the decodes alone take longer, nothing is left."""
    pace = taught(slowness, target_itl_s=target_s)
    decodes = Work.of([(500, 1)] * 16)
    alone_s = machine_s(decodes, slowness)
    wanted_s = (1 + AUTO_STRETCH) * alone_s if expected_s is None else expected_s
    assert pace.limit_s(decodes) == pytest.approx(max(alone_s, wanted_s), rel=0.05)


def test_a_long_prompt_goes_on_beside_decodes_and_whole_without() -> None:
    """In chunks of blocks as long as there is time, no longer than what is nearly free where there
    is none, and of all that a step may hold where nobody waits."""
    for target_s, least, most in [(0.2, 76, 136), (0.001, 2, 8)]:
        pace = taught(target_itl_s=target_s)
        world = World(num_blocks=256, max_num_seqs=8, max_num_batched_tokens=512, pace=pace)
        decoding = [world.add(distinct_prompt(n, 8), 100) for n in range(4)]
        world.step()
        world.add(distinct_prompt(9, 500), 2)
        plan = world.step()
        assert {entry.sequence for entry in plan.entries} > set(decoding)
        assert least <= plan.num_rows - 4 <= most
    world = World(num_blocks=256, max_num_seqs=8, max_num_batched_tokens=512, pace=taught())
    world.add(distinct_prompt(9, 500), 2)
    assert world.step().num_rows == 500


def test_random_runs_keep_every_rule() -> None:
    """The small worlds of the scheduler's tests, on machines of all speeds."""
    for seed in range(300):
        target_itl_s, chunk_unit = None if seed % 3 else 0.05, (1, 2, 4)[seed % 3]
        pace = taught(10.0 ** (seed % 4 - 2), target_itl_s=target_itl_s, chunk_unit=chunk_unit)
        try:
            random_run(seed, classes=1 + seed % 2, pace=pace)
        except AssertionError as error:
            raise AssertionError(f"random_run({seed}): {error}") from error
