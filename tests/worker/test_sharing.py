"""Equal prompts that are in flight together: each block is computed once, and nobody is held up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker.engine import Engine
from chairlift.worker.pool import Pool
from chairlift.worker.scheduler import ContinuousScheduler
from chairlift.worker.sequence import Sequence, Status
from tests.fake_engine import (
    BLOCK_SIZE,
    CANCELLED,
    Size,
    Wish,
    make_engine,
    make_wish,
    output_of,
    run_alone,
    run_to_the_end,
    runner_of,
)
from tests.worker.scheduler_world import World, distinct_prompt

PROMPT = [5, 6, 7, 8] * 5 + [9]  # five full blocks and a tail
OTHER = [20, 21, 22, 23, 24]


def statuses(*sequences: Sequence) -> list[Status]:
    return [sequence.status for sequence in sequences]


def added(engine: Engine, *wishes: Wish) -> list[Sequence]:
    sequences = [wish.sequence() for wish in wishes]
    for sequence in sequences:
        engine.add(sequence)
    return sequences


def world(**settings: Any) -> World:
    values = {"num_blocks": 64, "max_num_seqs": 8, "max_num_batched_tokens": 64}
    return World(**{**values, **settings})


@pytest.mark.parametrize("num_full", [1, 2, 5])
@pytest.mark.parametrize("num_tail", [1, 2])
def test_choices_of_one_prompt_share_its_blocks(num_full: int, num_tail: int) -> None:
    """Four of k full blocks and a tail: k + 4 blocks are in use, the k are computed once, and
    each says what it says alone."""
    engine = make_engine(Size(budget=128))
    prompt = [5 + n % 7 for n in range(num_full * BLOCK_SIZE + num_tail)]
    wishes = [make_wish(prompt, temperature=1.5, seed=n, max_tokens=12) for n in range(4)]
    choices = added(engine, *wishes)
    manager = engine.scheduler.block_manager
    engine.step()
    assert len(choices[0].block_table) == num_full + 1
    assert manager.num_blocks - manager.num_free_blocks == num_full + 1
    engine.step()
    assert all(choice.status is Status.RUNNING for choice in choices)
    assert engine.num_prompt_tokens == num_full * BLOCK_SIZE + 4 * num_tail
    assert {tuple(c.block_table[:num_full]) for c in choices} == {
        tuple(choices[0].block_table[:num_full])
    }
    assert manager.num_blocks - manager.num_free_blocks == num_full + 4
    assert [c.num_cached_tokens for c in choices] == [0] + 3 * [num_full * BLOCK_SIZE]
    run_to_the_end(engine)
    for choice, wish in zip(choices, wishes, strict=True):
        assert output_of(choice) == output_of(run_alone(wish))


def test_a_long_prompt_is_computed_once_however_it_is_cut() -> None:
    """In chunks, beside others, for eight: as many tokens as the prompt and the tails have."""
    engine = make_engine(Size(num_blocks=256, max_num_seqs=10, budget=20))
    prompt = [5 + n * n % 31 for n in range(121)]
    others = [make_wish([30 + n] * 3, max_tokens=30) for n in range(2)]
    wishes = [make_wish(prompt, temperature=1.0, seed=n) for n in range(8)]
    sequences = added(engine, *others, *wishes)
    run_to_the_end(engine)
    assert engine.num_prompt_tokens == 2 * 3 + 120 + 8
    for sequence, wish in zip(sequences, [*others, *wishes], strict=True):
        assert output_of(sequence) == output_of(run_alone(wish))


def test_prompts_that_fork_are_computed_as_a_tree() -> None:
    """What some have in common is computed by the first of these, whoever it is."""
    engine = make_engine(Size(num_blocks=256, max_num_seqs=16, budget=256))
    ends = [[10] * 8, [11] * 8, [10] * 8 + [12] * 4, [11] * 8]
    wishes = [make_wish([5] * 8 + end + [13]) for end in ends]
    sequences = added(engine, *wishes)
    steps = [[*engine.step()] for _ in range(3)]
    assert [len(named) for named in steps] == [1, 3, 4]
    assert engine.num_prompt_tokens == 8 + 8 + 8 + 4 + 4
    run_to_the_end(engine)
    for sequence, wish in zip(sequences, wishes, strict=True):
        assert output_of(sequence) == output_of(run_alone(wish))


def test_others_behind_board_in_the_same_step() -> None:
    """Whoever waits for a block holds up nobody behind it that has a seat and room."""
    engine = make_engine(Size(max_num_seqs=4, budget=32))
    first, second, third, other = added(engine, *3 * [make_wish(PROMPT)], make_wish(OTHER))
    assert set(engine.step()) == {first, other}
    assert statuses(second, third) == 2 * [Status.WAITING]
    assert set(engine.step()) == {first, other, second, third}


def test_whoever_is_passed_over_keeps_its_seat() -> None:
    """Nobody who came later has it for as long as an answer takes."""
    engine = make_engine(Size(max_num_seqs=3, budget=32))
    choices = added(engine, *3 * [make_wish(PROMPT)])
    other = added(engine, make_wish(OTHER))[0]
    assert engine.step() == choices[:1]
    assert set(engine.step()) == set(choices)
    assert other.status is Status.WAITING


@pytest.mark.parametrize(("num_spare", "boards"), [(0, False), (1, True)])
def test_whoever_is_passed_over_keeps_a_block(num_spare: int, boards: bool) -> None:
    """Which is all that a choice of the same prompt needs for its tail."""
    num_blocks = 6 + 2 + 1 + 2 * 1  # the first, the other, one to grow into, a tail for each
    engine = make_engine(Size(num_blocks - 1 + num_spare, max_num_seqs=4, budget=64))
    first, second, third, other = added(engine, *3 * [make_wish(PROMPT)], make_wish(OTHER))
    assert set(engine.step()) == ({first, other} if boards else {first})
    run_to_the_end(engine)
    assert all(s.finish is not None for s in (first, second, third, other))


def test_other_salts_and_other_beginnings_are_not_waited_for() -> None:
    """Nor is a block that is not full: only what can be found again is waited for."""
    engine = make_engine(Size(num_blocks=128, budget=256))
    sequences = added(
        engine,
        make_wish(PROMPT),
        make_wish([*OTHER, *PROMPT[5:]]),
        make_wish(PROMPT[: BLOCK_SIZE - 1]),
        make_wish(PROMPT[:BLOCK_SIZE]),  # its only block has its last token
    )
    salted = make_wish(PROMPT).sequence()
    salted.cache_salt = b"somebody else's"
    engine.add(salted)
    assert set(engine.step()) == {*sequences, salted}


def test_without_prefix_cache_nobody_waits() -> None:
    """There is nothing to be found."""
    engine = make_engine(Size(budget=256, has_prefix_cache=False))
    choices = added(engine, *4 * [make_wish(PROMPT)])
    assert set(engine.step()) == set(choices)
    assert engine.num_prompt_tokens == 4 * len(PROMPT)


@pytest.mark.parametrize("kind", ["scored", "mean", "last"])
def test_who_has_to_compute_its_prompt_does_not_wait(kind: str) -> None:
    """Every token of a prompt to be scored or averaged is computed; others may wait for it."""
    engine = make_engine(Size(num_blocks=128, budget=256))
    params = SamplingParams(max_tokens=0, num_prompt_logprobs=0 if kind == "scored" else -1)
    sequences = [Sequence(bytes([n]) * 16, PROMPT, params) for n in range(3)]
    if kind != "scored":
        for sequence in sequences:
            sequence.pool = Pool("mean" if kind == "mean" else "last")
    for sequence in sequences:
        engine.add(sequence)
    follower = added(engine, make_wish(PROMPT))[0]
    engine.step()
    assert follower.status is Status.WAITING
    waits = kind == "last"
    assert [s.finish is None for s in sequences] == [False, waits, waits]
    engine.step()
    assert all(s.finish is not None for s in sequences)
    assert follower.num_cached_tokens == 5 * BLOCK_SIZE


def cancel(engine: Engine, sequence: Sequence) -> None:
    engine.end(sequence, CANCELLED)


def fail(engine: Engine, sequence: Sequence) -> None:
    """In the very step that the others wait for."""
    runner_of(engine).error_in = lambda plan: (
        RuntimeError() if any(e.sequence is sequence for e in plan.entries) else None
    )
    engine.step()


def preempt(engine: Engine, sequence: Sequence) -> None:
    assert isinstance(engine.scheduler, ContinuousScheduler)
    engine.scheduler._preempt(sequence)


@pytest.mark.parametrize("leave", [cancel, fail, preempt])
@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_the_next_goes_on_where_the_first_left(
    leave: Callable[[Engine, Sequence], None], num_steps: int
) -> None:
    """Cancelled, failed or preempted in the middle of the prompt: the second computes the rest at
    once, and the third waits for the second."""
    engine = make_engine(Size(num_blocks=128, max_num_seqs=4, budget=8))
    wishes = [make_wish([5 + n % 9 for n in range(41)], seed=n) for n in range(3)]
    first, *rest = added(engine, *wishes)
    for _ in range(1 + num_steps):
        engine.step()
    assert statuses(*rest) == 2 * [Status.WAITING]
    num_before = engine.num_prompt_tokens
    assert first.num_computed_tokens == num_before == 8 * (1 + num_steps)
    leave(engine, first)
    engine.step()
    heir = first if leave is preempt else rest[0]
    assert heir.status is Status.RUNNING
    assert heir.num_computed_tokens == num_before + 8
    run_to_the_end(engine)
    assert engine.num_prompt_tokens == 40 + (2 if leave is not preempt else 3)
    for sequence, wish in list(zip([first, *rest], wishes, strict=True))[leave is not preempt :]:
        assert output_of(sequence) == output_of(run_alone(wish))


def test_the_first_may_finish_with_its_prompt() -> None:
    """One token wanted, and gone: those behind find its blocks all the same."""
    engine = make_engine(Size(budget=64))
    first, second = added(engine, make_wish(PROMPT, max_tokens=1), make_wish(PROMPT))
    engine.step()
    assert first.finish is not None
    engine.step()
    assert second.num_cached_tokens == 5 * BLOCK_SIZE


def test_preempted_ones_wait_as_well() -> None:
    """Two that lost equal blocks: the first computes them again, the second finds them. Nobody is
    the worse for it, and a block less is needed for each that is shared."""
    w = world(num_blocks=24, max_num_batched_tokens=128)
    prompt = distinct_prompt(0, 17)
    first, second = w.add(prompt, 8), w.add(prompt, 8)
    w.step()
    w.step()
    for sequence in (second, first):
        w.scheduler._preempt(sequence)
        w.lives[sequence].computed = 0
    filler = w.add(distinct_prompt(1, 92), 1, priority=-1)  # takes all blocks
    w.step()
    assert filler.status is Status.FINISHED
    w.step()
    assert statuses(first, second) == [Status.RUNNING, Status.WAITING]
    w.step()
    assert (second.status, second.num_computed_tokens) == (Status.RUNNING, 18)
    w.drain()


def test_nobody_waits_for_a_suspect_and_no_suspect_waits() -> None:
    """It runs every second step only, and may die of what others would be waiting for; and it
    should be through soon."""
    w = world(max_num_batched_tokens=16)
    prompt = distinct_prompt(0, 41)
    suspect = w.add(prompt, 2, is_suspect=True)
    w.step()
    other = w.add(prompt, 2)
    w.step()
    assert statuses(suspect, other) == 2 * [Status.RUNNING]
    assert other.num_computed_tokens == 32, "the suspect's chunk was in the cache"
    late = w.add(prompt, 2, is_suspect=True)
    while suspect.is_suspect:
        w.step()
    w.step()
    assert late.status is Status.RUNNING
    w.drain()


def test_a_better_class_does_not_wait_for_a_worse_one() -> None:
    """A chunk of the worse one may be put off; so the better one computes the prompt, and the
    worse one, which holds blocks of its own, computes on when there is room."""
    w = world(max_num_batched_tokens=8 + BLOCK_SIZE)
    prompt = distinct_prompt(0, 61)
    worse = w.add(prompt, 2, priority=1)
    w.step()
    better = w.add(prompt, 2)
    w.step()
    assert better.num_computed_tokens == 24, "behind the cached 12 at once"
    assert worse.num_computed_tokens == 12
    w.drain()
