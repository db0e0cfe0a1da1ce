"""A small world around the scheduler: a simulated model, and every rule checked at every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random

from chairlift.shared.messages import Finish
from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker import fair_share
from chairlift.worker.block_manager import BlockManager
from chairlift.worker.pace import Pace, Work
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

    place: tuple[float, int]  # changes when it is hurried, and only then
    arrived: int  # step
    computed: int = 0  # tokens since its last admission
    num_preemptions: int = 0
    outputs_at_preemption: int = -1
    has_begun: bool = False
    is_hurried: bool = False
    work_ahead: int = 0  # tokens that it and all before it may need


@dataclass
class World:
    """A scheduler and a model that only notes what is written where; every step is checked."""

    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    has_prefix_cache: bool = True
    pace: Pace | None = None
    lives: dict[Sequence, Life] = field(default_factory=dict)
    finished: list[Sequence] = field(default_factory=list)
    written: dict[int, tuple[int, int]] = field(default_factory=dict)  # slot: position, prefix
    num_steps: int = 0
    num_passes: int = 0  # over those that wait for a block
    num_waits: int = 0  # steps that the oldest sat out
    num_lone_steps: int = 0
    num_hurried: int = 0
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
            pace=self.pace,
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

    def add(
        self,
        prompt: list[int],
        max_tokens: int,
        *,
        is_suspect: bool = False,
        priority: int = 0,
        tenant: bytes = b"",
    ) -> Sequence:
        sequence = make_sequence(prompt, max_tokens)
        sequence.is_suspect, sequence.priority = is_suspect, priority
        sequence.tenant = tenant
        assert sequence.max_num_tokens <= self.capacity, "intake refuses what can never fit"
        others = self.places
        self.scheduler.add(sequence)
        life = Life(sequence.place, self.num_steps)
        for other in others:  # whoever has to wait for the newcomer
            if is_suspect or other.is_suspect or life.place < self.lives[other].place:
                self.lives[other].work_ahead += sequence.max_num_tokens
        life.work_ahead = sequence.max_num_tokens + sum(s.max_num_tokens for s in others)
        self.lives[sequence] = life
        self.arrivals.append(sequence)
        return sequence

    def hurry(self, sequence: Sequence) -> None:
        """Whatever it is doing; it overtakes once at most, and only from where it waits."""
        life, was_new = self.lives[sequence], sequence in self.scheduler.waiting
        was_new = was_new and not (life.is_hurried or life.has_begun)
        former, queue = life.place, self.scheduler.num_waiting_tokens
        self.scheduler.hurry(sequence)
        assert self.scheduler.num_waiting_tokens == queue
        assert (sequence.place != former) == was_new, "not once, or not from where it waits"
        if was_new:
            assert sequence.place == (former[0] - fair_share.HEAD_START, former[1])
            life.place, life.is_hurried = sequence.place, True
            self.num_hurried += 1
            for other in self.places:
                if life.place < self.lives[other].place < former:
                    self.lives[other].work_ahead += sequence.max_num_tokens
        self.check_places()

    def cancel(self, sequence: Sequence) -> None:
        self._end(sequence)
        assert not sequence.block_table

    def step(self, fails: Callable[[Sequence], bool] = lambda _: False) -> Plan:
        """Plans, "computes", "samples", finishes whoever is at max_tokens or fails."""
        scheduler = self.scheduler
        had_work, lone = scheduler.has_work, self.lone
        before, num_waiting = list(scheduler.running), len(scheduler.waiting)
        decoding = [s for s in before if s.num_uncomputed_tokens == 1]
        protected = {s for s in before if s.is_protected}
        plan = scheduler.plan()
        self.num_steps += 1
        self._note_preemptions(before, protected)
        self._note_admissions(before, lone)
        self._check_order(before, plan)
        assert bool(plan.entries) == had_work, "an empty plan, and there is work"
        self._check_budget(plan)
        self._check_turns(plan, lone)
        if not self.was_lone_step:
            self._check_decodes(plan, decoding)
            self._check_chunks(plan)
        if self.pace is not None:
            num_prompts = len(before) + num_waiting - len(decoding)
            check_pace(plan, decoding, self.pace, num_prompts)
        computed = Plan(tuple(entry for entry in plan.entries if not fails(entry.sequence)))
        self._compute(computed)
        scheduler.advance(computed)
        scheduler.land(computed)
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
        newer: set[Sequence] = set()  # those behind it that were not preempted
        for sequence in reversed(before):
            life = self.lives[sequence]
            if sequence.num_computed_tokens < life.computed or sequence.status is Status.WAITING:
                assert sequence is not before[0], "the first was preempted"
                assert newer <= protected, "not the last was preempted"
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
            self.lives[self.lone].has_begun = True
        for sequence in self.scheduler.running:
            if sequence not in before:
                self.lives[sequence].has_begun = True
                self.lives[sequence].computed = sequence.num_computed_tokens  # what the cache had

    def _check_order(self, before: list[Sequence], plan: Plan) -> None:
        """Whoever boards passes over those alone that lack what is computed ahead of them; and
        computes nothing that one ahead of it computes as well."""
        boarded = [s for s in self.scheduler.running if s not in before]
        for sequence in boarded:
            passed = [other for other in self.scheduler.waiting if self._is_ahead(other, sequence)]
            for other in passed:
                is_capped = self._is_capped(other)
                assert is_capped or self._is_passed_over(other, plan), "boarded before its turn"
                self.lives[other].work_ahead += sequence.max_num_tokens
            self.num_passes += len(passed)
            num_kept = sum(not self._is_capped(other) for other in passed)
            num_seats = len(self.scheduler.running) + num_kept + (self.lone is not None)
            assert num_seats <= self.max_num_seqs, "boarded on the seat of one passed over"
            start = sequence.num_computed_tokens
            for entry in plan.entries:
                if self._is_ahead(entry.sequence, sequence) and entry.num_tokens > 1:
                    is_same = self._shares_block(sequence, entry.sequence, start + BLOCK_SIZE)
                    assert not is_same or start != entry.sequence.num_computed_tokens, "in vain"

    def _is_capped(self, sequence: Sequence) -> bool:
        """Whether its tenant has all the seats that one may have."""
        num_seats = sum(other.tenant == sequence.tenant for other in self.scheduler.running)
        return num_seats >= self.max_num_seqs - self.max_num_seqs // fair_share.NEWCOMERS_SHARE

    def _is_passed_over(self, sequence: Sequence, plan: Plan) -> bool:
        num_cached_tokens = len(self.manager._cached_prefix(sequence)) * BLOCK_SIZE
        return any(
            first < end <= first + entry.num_tokens
            and self._is_ahead(entry.sequence, sequence)
            and self._shares_block(sequence, entry.sequence, end)
            for entry in plan.entries
            for first in [entry.sequence.num_computed_tokens]
            for end in range(num_cached_tokens + BLOCK_SIZE, sequence.num_tokens, BLOCK_SIZE)
        )

    def _is_ahead(self, sequence: Sequence, other: Sequence) -> bool:
        return self.lives[sequence].place < self.lives[other].place

    def _shares_block(self, sequence: Sequence, other: Sequence, end: int) -> bool:
        """Whether it could find the other's full block that ends there in the prefix cache."""
        return (
            self.has_prefix_cache
            and end <= min(sequence.max_cached_tokens, other.num_tokens)
            and sequence.token_ids[:end] == other.token_ids[:end]
        )

    def _check_budget(self, plan: Plan) -> None:
        assert plan.num_padding_tokens == 0
        assert plan.num_rows <= self.max_num_batched_tokens
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
        """Running ones ride, but for the first, which waits where none may be preempted."""
        riding = {entry.sequence for entry in plan.entries}
        for sequence in decoding:
            if sequence.status is Status.RUNNING and sequence not in riding:
                self.num_waits += 1
                assert sequence is self.scheduler.running[0]
                assert not self.manager.has_room(sequence)
                assert all(other.is_protected for other in self.scheduler.running[1:])

    def _check_chunks(self, plan: Plan) -> None:
        """Prompts go in order, in whole units but for their ends."""
        is_budget_spent = False
        unit = BLOCK_SIZE if self.pace is None else self.pace.chunk_unit
        counts = {entry.sequence: entry.num_tokens for entry in plan.entries}
        for sequence in self.scheduler.running:
            num_tokens = counts.get(sequence, 0)
            if is_budget_spent and sequence.num_uncomputed_tokens > 1 and self.pace is None:
                assert num_tokens < BLOCK_SIZE, "a prompt took what one ahead of it needs"
            if num_tokens < sequence.num_uncomputed_tokens:
                end = sequence.num_computed_tokens + num_tokens
                assert end % unit == 0 or sequence.num_uncomputed_tokens == 1
                is_budget_spent = is_budget_spent or sequence.num_uncomputed_tokens > 1
        if is_budget_spent and self.pace is None:
            assert plan.num_rows > self.max_num_batched_tokens - BLOCK_SIZE

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
        assert all(s.place == self.lives[s].place for s in places)
        for number, sequence in enumerate([*scheduler.suspects, *scheduler.waiting]):
            assert scheduler.num_ahead(sequence) == number
        for line in (scheduler.running, scheduler.waiting):
            assert line == sorted(line, key=lambda s: self.lives[s].place)
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


def check_pace(plan: Plan, decoding: list[Sequence], pace: Pace, num_prompts: int) -> None:
    """Beside decodes the chunks take what time is left, or there is one of the least length; at
    most `num_prompts` are in line."""
    spans = {e.sequence: (e.sequence.num_computed_tokens, e.num_tokens) for e in plan.entries}
    decodes = [span for sequence, span in spans.items() if sequence in decoding]
    chunks = [span for sequence, span in spans.items() if sequence not in decoding]
    if len(chunks) > 1 or any(count > pace.least_chunk for _, count in chunks):
        num_keys = sum(count * first + count * (count + 1) // 2 for first, count in chunks)
        work = Work.of(decodes) + Work(sum(count for _, count in chunks), 0, num_keys)
        assert pace.model.seconds(work) <= pace.limit_s(Work.of(decodes), num_prompts) + 1e-9


def random_run(
    seed: int,
    *,
    classes: int = 1,
    tenants: int = 1,
    pace: Pace | None = None,
    hurry_rate: float = 0.0,
) -> World:
    """One small world from beginning to end."""
    random = Random(seed)
    max_num_seqs = random.randint(1, 8)
    world = World(
        num_blocks=random.randint(4, 16),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + random.choice([BLOCK_SIZE, 7, 16, 64]),
        has_prefix_cache=random.random() < 0.7,
        pace=pace,
    )
    arrival_rate = random.choice([0.1, 0.5, 1.5])
    suspect_rate, failure_rate = random.choice([0.0, 0.0, 0.3]), random.choice([0.0, 0.0, 0.05])
    for _ in range(random.randint(5, 25)):
        while random.random() < arrival_rate / (1 + arrival_rate):
            max_tokens = random.randint(1, min(20, world.capacity - 1))
            num_prompt_tokens = random.randint(1, min(30, world.capacity - max_tokens))
            prompt = num_prompt_tokens * [random.randint(0, 2)]
            is_suspect, priority = random.random() < suspect_rate, random.randrange(classes)
            tenant = bytes([random.randrange(tenants)])
            world.add(prompt, max_tokens, is_suspect=is_suspect, priority=priority, tenant=tenant)
        while random.random() < hurry_rate and world.lives:
            world.hurry(random.choice(list(world.lives)))
        if world.lives and random.random() < 0.1:
            world.cancel(random.choice(list(world.lives)))
        world.step(fails=lambda _: random.random() < failure_rate)
    world.drain()
    return world
