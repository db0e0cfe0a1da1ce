"""The engine under whatever may happen to it, in any order: no block leaks, no answer changes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import structlog
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from chairlift.shared.messages import Finish
from chairlift.worker.detokenizer import NoText
from chairlift.worker.engine import Engine
from chairlift.worker.scheduler import ContinuousScheduler, Plan, Scheduler
from chairlift.worker.sequence import Sequence, Status
from tests.fake_engine import (
    BLOCK_SIZE,
    CANCELLED,
    Size,
    Wish,
    make_wish,
    output_of,
    run_to_the_end,
)


@dataclass(frozen=True)
class Kind:
    """How an engine goes about its work."""

    name: str
    policy: type[Scheduler] = ContinuousScheduler
    depth: int = 0
    speculates: bool = False


@dataclass
class Faults:
    """Whom the next steps fail."""

    culprits: set[Sequence] = field(default_factory=set)
    max_num_tokens: int = 1_000_000  # more than that in a step is too much for the memory

    def __call__(self, plan: Plan) -> Exception | None:
        if any(entry.sequence in self.culprits for entry in plan.entries):
            return RuntimeError("at fault")
        return MemoryError() if plan.num_rows > self.max_num_tokens else None


class FragileText(NoText):
    """Breaks when it is told to."""

    is_broken = False

    def append(self, token_id: int, *, is_stop_checked: bool = True) -> None:
        if self.is_broken:
            raise ValueError("broken")
        super().append(token_id, is_stop_checked=is_stop_checked)


class EngineMachine(RuleBasedStateMachine):
    """Arrivals, resumptions, suspects, haste, cancels, faults of one or all, policies, drafts.

    Who inherits says what the engine computes with, and what a wish gives alone.
    """

    kinds: ClassVar[tuple[Kind, ...]]
    block_size = BLOCK_SIZE
    unit = 1  # tokens of a prompt, and of a step's memory, for each that is drawn

    @abstractmethod
    def make_engine(
        self, size: Size, kind: Kind, error_in: Callable[[Plan], Exception | None]
    ) -> Engine:
        """One whose steps fail with what `error_in` says of their plans, and that has a pulse of
        its own."""

    @abstractmethod
    def answer_alone(self, wish: Wish) -> list[int]:
        """The oracle: nobody else, one step after another."""

    def prompt(self, first: int, length: int) -> list[int]:
        """Has that of a lesser length as its beginning."""
        return [first] * length

    @initialize(
        data=st.data(),
        num_blocks=st.integers(6, 24),
        max_num_seqs=st.integers(1, 6),
        spare_budget=st.integers(BLOCK_SIZE, 24),
        has_prefix_cache=st.booleans(),
    )
    def start(
        self,
        data: st.DataObject,
        num_blocks: int,
        max_num_seqs: int,
        spare_budget: int,
        has_prefix_cache: bool,
    ) -> None:
        kind = data.draw(st.sampled_from(self.kinds))
        budget = max_num_seqs + spare_budget * self.block_size // BLOCK_SIZE
        self.begin(Size(num_blocks, max_num_seqs, budget, has_prefix_cache, kind.depth), kind)

    def begin(self, size: Size, kind: Kind) -> None:
        self.num_blocks, self.faults = size.num_blocks, Faults()
        self.engine = self.make_engine(size, kind, self.faults)
        self.wishes: dict[Sequence, Wish] = {}
        self.answers: dict[Wish, list[int]] = {}
        self.suspects: list[Sequence] = []

    @property
    def live(self) -> list[Sequence]:
        return [sequence for sequence in self.wishes if sequence.finish is None]

    @rule(
        number=st.integers(1, 4),
        prompt=st.tuples(st.integers(7, 8), st.integers(1, 30)),
        max_tokens=st.integers(1, 12),
        num_given=st.sampled_from([0, 0, 1, 5]),
        is_suspect=st.sampled_from([False, False, True]),
    )
    def add(
        self,
        number: int,
        prompt: tuple[int, int],
        max_tokens: int,
        num_given: int,
        is_suspect: bool,
    ) -> None:
        """Anew, or resumed with some tokens of the answer; each a token shorter than the last."""
        first, num_units = prompt
        longest = self.num_blocks * self.block_size - max_tokens
        num_prompt_tokens = min(num_units * self.unit, longest)
        for length in range(num_prompt_tokens, max(0, num_prompt_tokens - number), -1):
            wish = make_wish(self.prompt(first, length), max_tokens=max_tokens)
            given = self._answer(wish)[:num_given]
            sequence = wish.sequence(FragileText(), is_suspect=is_suspect)
            self.wishes[sequence] = wish
            self.engine.add(sequence, given)
            if is_suspect and sequence.finish is None:
                self.suspects.append(sequence)

    @rule(data=st.data(), harm=st.sampled_from(["cancel", "fault", "text"]))
    def harm(self, data: st.DataObject, harm: str) -> None:
        """Cancelled, or failing from now on wherever it is computed, or no text comes out."""
        if not self.live:
            return
        self.do_harm(data.draw(st.sampled_from(self.live)), harm)

    def do_harm(self, sequence: Sequence, harm: str) -> None:
        if harm == "cancel":
            self.engine.end(sequence, CANCELLED)
        elif harm == "fault":
            self.faults.culprits.add(sequence)
        else:
            assert isinstance(sequence.detokenizer, FragileText)
            sequence.detokenizer.is_broken = True

    @rule(data=st.data())
    def hurry(self, data: st.DataObject) -> None:
        """Whoever it is, and whatever it is doing."""
        if self.wishes:
            self.engine.hurry(data.draw(st.sampled_from(list(self.wishes))))

    @rule(max_num_tokens=st.sampled_from([5, 12, 1_000_000, 1_000_000]))
    def change_memory(self, max_num_tokens: int) -> None:
        """So many tokens are the most that a step can have."""
        self.faults.max_num_tokens = max_num_tokens * self.unit

    @rule(num_steps=st.integers(1, 6))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            before = {sequence: sequence.num_tokens for sequence in self.live}
            with structlog.testing.capture_logs():
                named = self.engine.step()
            assert len(named) == len(set(named))
            changed = {s for s, n in before.items() if s.num_tokens != n or s.finish is not None}
            assert set(named) == changed

    @invariant()
    def everybody_is_somewhere_or_has_ended(self) -> None:
        scheduler = self.engine.scheduler
        queues = [*scheduler.waiting, *scheduler.suspects]
        places = [*queues, *scheduler.running]
        assert sorted(map(id, places)) == sorted(map(id, self.live))
        assert scheduler.num_waiting_tokens == sum(s.num_tokens for s in queues)
        ended = [s for s in self.wishes if s.status is Status.FINISHED]
        assert not any(s.block_table for s in ended if not s.num_flights)
        for sequence in self.wishes:
            assert len(sequence.detokenizer.released_ends) == sequence.num_output_tokens

    @invariant()
    def each_that_waits_has_a_place_of_its_own(self) -> None:
        waiting = [s for s in self.live if s.waits_to_begin]
        places = {self.engine.queue_place(sequence).num_ahead for sequence in waiting}
        assert len(places) == len(waiting)
        assert all(place < self.engine.scheduler.num_waiting for place in places)

    @invariant()
    def answers_are_right_as_far_as_they_go(self) -> None:
        for sequence, wish in self.wishes.items():
            if sequence.finish is None or sequence.finish == CANCELLED:
                continue
            if sequence.finish.reason == "error":
                assert self._is_to_blame(sequence, sequence.finish)
            else:
                assert output_of(sequence) == self._answer(wish)

    def _answer(self, wish: Wish) -> list[int]:
        if wish not in self.answers:
            self.answers[wish] = self.answer_alone(wish)
        return self.answers[wish]

    def _is_to_blame(self, sequence: Sequence, finish: Finish) -> bool:
        if finish.code == "out_of_memory":
            return True
        text = sequence.detokenizer
        return sequence in self.faults.culprits or (
            isinstance(text, FragileText) and text.is_broken
        )

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        with structlog.testing.capture_logs():
            run_to_the_end(self.engine)
        self.everybody_is_somewhere_or_has_ended()
        self.answers_are_right_as_far_as_they_go()
        assert not self.live
        assert self.engine.scheduler.block_manager.num_free_blocks == self.num_blocks
        cleared = self.engine.pulse.cleared_request_ids
        assert set(cleared) == {s.request_id for s in self.suspects if not s.is_suspect}
        assert len(cleared) == len(set(cleared))
