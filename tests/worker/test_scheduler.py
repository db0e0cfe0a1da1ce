"""Continuous batching under random arrivals, cancels, failures, suspects and shortage, with a
simulated model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from chairlift.shared.messages import Finish
from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker.block_manager import BlockManager
from chairlift.worker.scheduler import ContinuousScheduler, Plan
from chairlift.worker.sequence import Sequence, Status

BLOCK_SIZE = 4
_numbers = count()


def make_sequence(prompt: list[int], max_tokens: int = 8) -> Sequence:
    request_id = next(_numbers).to_bytes(16, "big")
    return Sequence(request_id, prompt, SamplingParams(max_tokens=max_tokens))


def distinct_prompt(number: int, num_tokens: int) -> list[int]:
    return [1000 * (number + 1) + i for i in range(num_tokens)]


@dataclass
class Life:
    """What the world notes of one sequence."""

    number: int  # in order of arrival
    arrived: int  # step
    computed: int = 0  # tokens since its last admission
    num_preemptions: int = 0
    outputs_at_preemption: int = -1
    work_ahead: int = 0  # tokens that it and all before it may need
    first_admitted: int | None = None  # place in the order of first admissions
    was_suspect: bool = False


@dataclass
class World:
    """A scheduler and a model that only notes what is written where; every step is checked."""

    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    has_prefix_cache: bool = True
    lives: dict[Sequence, Life] = field(default_factory=dict)
    finished: list[Sequence] = field(default_factory=list)
    written: dict[int, tuple[int, int]] = field(default_factory=dict)  # slot: position, prefix
    num_steps: int = 0
    num_admitted: int = 0
    num_waits: int = 0  # steps that the oldest sat out
    num_lone_steps: int = 0
    was_lone_step: bool = False

    def __post_init__(self) -> None:
        assert self.max_num_batched_tokens >= self.max_num_seqs + BLOCK_SIZE  # as settings demand
        self.manager = BlockManager(
            self.num_blocks, BLOCK_SIZE, has_prefix_cache=self.has_prefix_cache
        )
        self.scheduler = ContinuousScheduler(
            self.manager,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
        )
        self.arrivals: list[Sequence] = []

    @property
    def capacity(self) -> int:
        return self.num_blocks * BLOCK_SIZE

    @property
    def places(self) -> list[Sequence]:
        scheduler = self.scheduler
        return [*scheduler.running, *scheduler.suspects, *scheduler.waiting]

    @property
    def lone(self) -> Sequence | None:
        """The suspect that has blocks."""
        return next((s for s in self.scheduler.suspects if s.status is Status.RUNNING), None)

    def add(self, prompt: list[int], max_tokens: int, *, is_suspect: bool = False) -> Sequence:
        sequence = make_sequence(prompt, max_tokens)
        sequence.is_suspect = is_suspect
        assert sequence.max_num_tokens <= self.capacity, "intake refuses what can never fit"
        for other in self.places:  # whoever has to wait for the newcomer
            if is_suspect or other.is_suspect:
                self.lives[other].work_ahead += sequence.max_num_tokens
        life = Life(len(self.arrivals), self.num_steps, was_suspect=is_suspect)
        life.work_ahead = sequence.max_num_tokens + sum(s.max_num_tokens for s in self.places)
        self.lives[sequence] = life
        self.arrivals.append(sequence)
        self.scheduler.add(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        self._end(sequence)
        assert not sequence.block_table

    def step(self, fails: Callable[[Sequence], bool] = lambda _: False) -> Plan:
        """Plans, "computes", "samples", finishes whoever is at max_tokens or fails."""
        scheduler = self.scheduler
        had_work, lone = scheduler.has_work, self.lone
        before = list(scheduler.running)
        decoding = [s for s in before if s.num_uncomputed_tokens == 1]
        protected = {s for s in before if s.is_protected}
        plan = scheduler.plan()
        self.num_steps += 1
        self._note_preemptions(before, protected)
        self._note_admissions(before, lone)
        assert bool(plan.entries) == had_work, "an empty plan, and there is work"
        self._check_budget(plan)
        self._check_turns(plan, lone)
        if not self.was_lone_step:
            self._check_decodes(plan, decoding)
            self._check_chunks(plan)
        computed = Plan(tuple(entry for entry in plan.entries if not fails(entry.sequence)))
        self._compute(computed)
        scheduler.commit(computed)
        for sequence in computed.sampled:
            assert not sequence.is_suspect
            if self.was_lone_step:  # it starts anew, behind all others
                life = self.lives[sequence]
                life.arrived = self.num_steps
                life.work_ahead = sum(s.max_num_tokens for s in self.places)
            sequence.append(self._next_token(sequence))
            if sequence.num_output_tokens == sequence.params.max_tokens:
                self._end(sequence)
        for entry in plan.entries:
            if entry not in computed.entries:
                self._end(entry.sequence)
        self.check_places()
        self._check_starvation()
        return plan

    def drain(self) -> None:
        """Nobody new: everybody is through after a bounded number of steps."""
        left = sum(s.max_num_tokens for s in self.places)
        for _ in range(2 * left):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.scheduler.has_work
        assert not self.scheduler.plan().entries
        assert self.manager.num_free_blocks == self.num_blocks
        assert self.lives == {}

    def _end(self, sequence: Sequence) -> None:
        sequence.finish = Finish("length")
        self.scheduler.remove(sequence)
        self.finished.append(sequence)
        del self.lives[sequence]

    @staticmethod
    def _next_token(sequence: Sequence) -> int:
        """Few different ones, so that outputs share prefixes as well."""
        return sum(sequence.token_ids[-3:]) % 2

    def _note_preemptions(self, before: list[Sequence], protected: set[Sequence]) -> None:
        newer: set[Sequence] = set()  # ... that were not preempted
        for sequence in reversed(before):
            life = self.lives[sequence]
            if sequence.num_computed_tokens < life.computed or sequence.status is Status.WAITING:
                assert sequence is not before[0], "the oldest was preempted"
                assert newer <= protected, "not the newest was preempted"
                assert life.outputs_at_preemption < sequence.num_output_tokens, (
                    "preempted twice without a new token in between"
                )
                life.outputs_at_preemption = sequence.num_output_tokens
                life.num_preemptions += 1
                life.computed = sequence.num_computed_tokens
            else:
                newer.add(sequence)

    def _note_admissions(self, before: list[Sequence], lone: Sequence | None) -> None:
        if self.lone is not None and self.lone is not lone:
            self.lives[self.lone].computed = self.lone.num_computed_tokens
        for sequence in self.scheduler.running:
            life = self.lives[sequence]
            if life.first_admitted is None and not life.was_suspect:
                life.first_admitted = self.num_admitted
                self.num_admitted += 1
                earlier = [s for s in self.lives if self.lives[s].number < life.number]
                assert all(
                    life.first_admitted is not None or life.was_suspect
                    for life in map(self.lives.__getitem__, earlier)
                ), "admitted before somebody who came first"
            if sequence not in before:
                life.computed = sequence.num_computed_tokens  # what the cache had

    def _check_budget(self, plan: Plan) -> None:
        assert plan.num_padding_tokens == 0
        assert plan.num_tokens <= self.max_num_batched_tokens
        assert len(self.scheduler.running) + (self.lone is not None) <= self.max_num_seqs
        assert len({entry.sequence for entry in plan.entries}) == len(plan.entries)
        for entry in plan.entries:
            assert entry.sequence.status is Status.RUNNING
            assert 1 <= entry.num_tokens <= entry.sequence.num_uncomputed_tokens

    def _check_turns(self, plan: Plan, lone: Sequence | None) -> None:
        """A suspect is alone in its step, oldest first, and takes every second one."""
        suspects = [e.sequence for e in plan.entries if e.sequence.is_suspect]
        if suspects:
            assert suspects == [self.scheduler.suspects[0]]
            assert len(plan.entries) == 1
            if self.was_lone_step:
                assert not any(map(self.manager.has_room, self.scheduler.running))
        elif lone is not None:
            assert self.was_lone_step
        self.was_lone_step = bool(suspects)
        self.num_lone_steps += self.was_lone_step

    def _check_decodes(self, plan: Plan, decoding: list[Sequence]) -> None:
        """Running ones ride, but for the oldest, which waits where none may be preempted."""
        riding = {entry.sequence for entry in plan.entries}
        for sequence in decoding:
            if sequence.status is Status.RUNNING and sequence not in riding:
                self.num_waits += 1
                assert sequence is self.scheduler.running[0]
                assert not self.manager.has_room(sequence)
                assert all(other.is_protected for other in self.scheduler.running[1:])

    def _check_chunks(self, plan: Plan) -> None:
        """Prompts go oldest first, in whole blocks but for their ends."""
        is_budget_spent = False
        counts = {entry.sequence: entry.num_tokens for entry in plan.entries}
        for sequence in self.scheduler.running:
            num_tokens = counts.get(sequence, 0)
            if is_budget_spent and sequence.num_uncomputed_tokens > 1:
                assert num_tokens < BLOCK_SIZE, "a newer prompt took what an older one needs"
            if num_tokens < sequence.num_uncomputed_tokens:
                assert (sequence.num_computed_tokens + num_tokens) % BLOCK_SIZE == 0 or (
                    sequence.num_uncomputed_tokens == 1
                )
                is_budget_spent = is_budget_spent or sequence.num_uncomputed_tokens > 1
        if is_budget_spent:
            assert plan.num_tokens > self.max_num_batched_tokens - BLOCK_SIZE

    def _compute(self, plan: Plan) -> None:
        """Writes each position once; all that is read must be what the sequence holds there."""
        holders = Counter(block for s in self.places for block in s.block_table)
        for entry in plan.entries:
            sequence, life = entry.sequence, self.lives[entry.sequence]
            first = sequence.num_computed_tokens
            assert first == life.computed, "a position skipped or computed twice"
            last = first + entry.num_tokens
            prefix = 0
            for position, token in enumerate(sequence.token_ids[:last]):
                prefix = hash((prefix, token))
                block = sequence.block_table[position // BLOCK_SIZE]
                slot = block * BLOCK_SIZE + position % BLOCK_SIZE
                if position >= first:
                    assert holders[block] == 1, "written to a shared block"
                    self.written[slot] = (position, prefix)
                assert self.written[slot] == (position, prefix), "reads somebody else's keys"
            life.computed = last

    def check_places(self) -> None:
        """Every sequence is in exactly one place, and only running ones and the first suspect hold
        blocks."""
        scheduler, places = self.scheduler, self.places
        assert len(places) == len(set(places))
        assert set(places) == set(self.lives)
        holders = [s for s in places if s.status is Status.RUNNING]
        assert holders == [*scheduler.running, *([self.lone] if self.lone else [])]
        assert self.lone in (None, *list(scheduler.suspects)[:1])
        assert all(s.block_table for s in holders)
        queues = [*scheduler.waiting, *scheduler.suspects]
        assert scheduler.num_waiting_tokens == sum(s.num_tokens for s in queues)
        assert scheduler.num_waiting == len(queues)
        assert all(s.is_suspect == (s in scheduler.suspects) for s in places)
        waiting = [s for s in queues if s is not self.lone]
        assert all(s.status is Status.WAITING for s in waiting)
        assert not any(s.block_table or s.num_computed_tokens for s in waiting)
        assert all(s.status is Status.FINISHED for s in self.finished)
        held = {block for s in holders for block in s.block_table}
        assert len(held) + self.manager.num_free_blocks == self.num_blocks

    def _check_starvation(self) -> None:
        """In the time that all before it may need, one after the other, each is through."""
        for life in self.lives.values():
            assert self.num_steps - life.arrived <= 2 * life.work_ahead, "starved"


class SchedulerMachine(RuleBasedStateMachine):
    """Hypothesis looks for the shortest history that breaks a rule of the world."""

    @initialize(
        num_blocks=st.integers(4, 14),
        max_num_seqs=st.integers(1, 5),
        spare_budget=st.integers(BLOCK_SIZE, 24),
        has_prefix_cache=st.booleans(),
    )
    def start(
        self, num_blocks: int, max_num_seqs: int, spare_budget: int, has_prefix_cache: bool
    ) -> None:
        budget = max_num_seqs + spare_budget
        self.world = World(num_blocks, max_num_seqs, budget, has_prefix_cache)

    @rule(
        first=st.integers(0, 2),
        num_prompt_tokens=st.integers(1, 40),
        max_tokens=st.integers(1, 24),
        is_suspect=st.sampled_from([False, False, True]),
    )
    def add(self, first: int, num_prompt_tokens: int, max_tokens: int, is_suspect: bool) -> None:
        num_prompt_tokens = min(num_prompt_tokens, self.world.capacity - max_tokens)
        if num_prompt_tokens > 0:
            self.world.add(num_prompt_tokens * [first], max_tokens, is_suspect=is_suspect)

    @precondition(lambda self: self.world.lives)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.world.cancel(data.draw(st.sampled_from(list(self.world.lives))))

    @rule(num_steps=st.integers(1, 8))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.world.step()

    @precondition(lambda self: self.world.lives)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """A step in which some can't be computed."""
        doomed = data.draw(st.sets(st.sampled_from(list(self.world.lives))))
        self.world.step(fails=doomed.__contains__)

    @invariant()
    def everybody_is_somewhere(self) -> None:
        if hasattr(self, "world"):
            self.world.check_places()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=100, stateful_step_count=20)


def random_run(seed: int) -> World:
    """One small world from beginning to end."""
    random = Random(seed)
    max_num_seqs = random.randint(1, 8)
    world = World(
        num_blocks=random.randint(4, 16),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + random.choice([BLOCK_SIZE, 7, 16, 64]),
        has_prefix_cache=random.random() < 0.7,
    )
    arrival_rate = random.choice([0.1, 0.5, 1.5])
    suspect_rate, failure_rate = random.choice([0.0, 0.0, 0.3]), random.choice([0.0, 0.0, 0.05])
    for _ in range(random.randint(5, 25)):
        while random.random() < arrival_rate / (1 + arrival_rate):
            max_tokens = random.randint(1, min(20, world.capacity - 1))
            num_prompt_tokens = random.randint(1, min(30, world.capacity - max_tokens))
            prompt = num_prompt_tokens * [random.randint(0, 2)]
            world.add(prompt, max_tokens, is_suspect=random.random() < suspect_rate)
        if world.lives and random.random() < 0.1:
            world.cancel(random.choice(list(world.lives)))
        world.step(fails=lambda _: random.random() < failure_rate)
    world.drain()
    return world


@pytest.mark.parametrize("start", range(0, 2000, 500))
def test_random_runs_keep_every_rule(start: int) -> None:
    """Thousands of small worlds with scarce blocks: no rule is broken, and preemption happens."""
    num_preemptions = num_lone_steps = 0
    for seed in range(start, start + 500):
        try:
            world = random_run(seed)
        except AssertionError as error:
            raise AssertionError(f"random_run({seed}): {error}") from error
        num_preemptions += world.scheduler.num_preemptions
        num_lone_steps += world.num_lone_steps
    assert num_preemptions > 500
    assert num_lone_steps > 500


def test_long_prompt_does_not_hold_up_decodes() -> None:
    """While a long prompt is read in chunks, a running sequence gets a token in every step."""
    world = World(num_blocks=64, max_num_seqs=4, max_num_batched_tokens=12)
    short = world.add(distinct_prompt(0, 3), 40)
    world.step()
    long = world.add(distinct_prompt(1, 100), 4)
    num_chunks = 0
    while long.num_output_tokens == 0:
        num_outputs = short.num_output_tokens
        plan = world.step()
        num_chunks += 1
        assert short.num_output_tokens == num_outputs + 1
        assert plan.num_tokens <= 12
    assert num_chunks == 13  # of 8 tokens: whole blocks within what the decode leaves of 12
    world.drain()


def test_prompts_share_a_step() -> None:
    """What one prompt leaves of the budget goes to the next, in order of arrival."""
    world = World(num_blocks=64, max_num_seqs=8, max_num_batched_tokens=20)
    prompts = [world.add(distinct_prompt(n, 9), 2) for n in range(3)]
    plan = world.step()
    assert [(e.sequence, e.num_tokens) for e in plan.entries] == [(prompts[0], 9), (prompts[1], 9)]
    assert prompts[2].num_computed_tokens == 0
    plan = world.step()
    assert [e.num_tokens for e in plan.entries] == [1, 1, 9]


def test_preempted_sequence_resumes_from_its_own_cached_blocks() -> None:
    """The newest gives way, keeps its tokens, and computes again only what was overwritten."""
    world = World(num_blocks=8, max_num_seqs=4, max_num_batched_tokens=64)
    old = world.add(distinct_prompt(0, 13), 14)
    new = world.add(distinct_prompt(1, 9), 12)
    while world.scheduler.num_preemptions == 0:
        world.step()
    tokens = list(new.token_ids)
    assert new.status is Status.WAITING
    assert (new.num_computed_tokens, new.is_protected) == (0, True)
    assert old.status is Status.RUNNING
    while new.status is Status.WAITING:
        world.step()
    assert new.token_ids[: len(tokens)] == tokens
    assert new.num_cached_tokens == 0, "its own work is no prefix hit of the request"
    world.drain()
    assert (old.num_output_tokens, new.num_output_tokens) == (14, 12)


def test_resumption_reuses_the_blocks_that_are_left() -> None:
    """When room comes back soon, a preempted sequence finds its finished blocks again."""
    world = World(num_blocks=8, max_num_seqs=4, max_num_batched_tokens=64)
    old = world.add(distinct_prompt(0, 13), 14)
    new = world.add(distinct_prompt(1, 9), 12)
    while world.scheduler.num_preemptions == 0:
        world.step()
    world.cancel(old)
    num_hits = world.manager.num_prefix_hits
    world.step()
    assert new.status is Status.RUNNING
    assert world.manager.num_prefix_hits - num_hits >= 8
    world.drain()


def test_cached_prefix_is_counted_once_for_the_request() -> None:
    """`num_cached_tokens` is what the cache saved at the first admission, of the prompt alone."""
    world = World(num_blocks=16, max_num_seqs=4, max_num_batched_tokens=64)
    world.add(distinct_prompt(0, 9), 1)
    world.step()
    again = world.add(distinct_prompt(0, 12), 2)
    world.step()
    assert again.num_cached_tokens == 8
    resumed = make_sequence(distinct_prompt(0, 5), 8)
    for token in distinct_prompt(0, 9)[5:]:
        resumed.append(token)
    world.scheduler.add(resumed)
    world.scheduler.plan()
    assert resumed.num_computed_tokens == 8
    assert resumed.num_cached_tokens == 5


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_cancel_in_the_middle_of_a_prompt_frees_everything(num_steps: int) -> None:
    """Waiting, half read or running: after a cancel its blocks are free and it is nowhere."""
    world = World(num_blocks=16, max_num_seqs=4, max_num_batched_tokens=24)
    sequence = world.add(distinct_prompt(0, 40), 4)
    for _ in range(num_steps):
        world.step()
    assert sequence.num_computed_tokens == min(24 * num_steps, 40)
    world.cancel(sequence)
    assert world.manager.num_free_blocks == 16
    assert not world.scheduler.has_work
    assert not world.scheduler.plan().entries
    world.scheduler.remove(sequence)  # once more: nothing
    assert sequence.status is Status.FINISHED


def test_no_thrash_when_the_cache_holds_two_of_sixty_four() -> None:
    """Cache for two of the longest, 64 long requests: all finish, none preempted over 4 times."""
    longest = 32 * BLOCK_SIZE
    world = World(num_blocks=64, max_num_seqs=64, max_num_batched_tokens=128)
    sequences = [world.add(distinct_prompt(n, longest // 2), longest // 2) for n in range(64)]
    counts: Counter[Sequence] = Counter()
    while world.scheduler.has_work:
        world.step()
        for sequence, life in world.lives.items():
            counts[sequence] = life.num_preemptions
    assert max(counts.values()) <= 4
    assert counts[sequences[0]] == 0


def test_oldest_waits_while_those_that_gave_way_once_catch_up() -> None:
    """When all blocks are with sequences that were preempted and have no new token yet, the
    oldest sits out a step instead of preempting them again or giving way itself."""
    world = World(num_blocks=19, max_num_seqs=3, max_num_batched_tokens=7, has_prefix_cache=False)
    sizes = [(3, 11), (9, 28), (46, 12), (1, 6), (13, 14)]
    sequences = [world.add(distinct_prompt(n, size[0]), size[1]) for n, size in enumerate(sizes)]
    world.drain()
    assert world.num_waits > 0
    assert [(s.num_prompt_tokens, s.num_output_tokens) for s in sequences] == sizes


def test_a_full_cache_is_used_to_its_last_block() -> None:
    """A request of exactly the cache's size runs, alone, while others wait for it."""
    world = World(num_blocks=6, max_num_seqs=4, max_num_batched_tokens=16)
    whole = world.add(distinct_prompt(0, 20), 4)
    other = world.add(distinct_prompt(1, 3), 3)
    world.drain()
    assert (whole.num_output_tokens, other.num_output_tokens) == (4, 3)
