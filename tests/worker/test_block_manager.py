"""Blocks under random operations, against a model that remembers what was written into each."""

from __future__ import annotations

from array import array
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker.block_manager import BlockManager
from chairlift.worker.sequence import Sequence

BLOCK_SIZE = 4
_numbers = count()


def make_sequence(prompt: list[int], max_tokens: int = 8, salt: bytes = b"") -> Sequence:
    request_id = next(_numbers).to_bytes(16, "big")
    params = SamplingParams(max_tokens=max_tokens)
    return Sequence(request_id, prompt, params, cache_salt=salt)


def compute(manager: BlockManager, sequence: Sequence) -> None:
    sequence.num_computed_tokens = sequence.num_tokens
    manager.commit(sequence)


def admitted(
    manager: BlockManager, prompt: list[int], max_tokens: int = 8, salt: bytes = b""
) -> Sequence:
    """A sequence with blocks, its prompt computed."""
    sequence = make_sequence(prompt, max_tokens, salt)
    assert manager.admit(sequence)
    compute(manager, sequence)
    return sequence


def distinct_prompt(number: int, num_tokens: int = BLOCK_SIZE) -> list[int]:
    return [1000 * (number + 1) + i for i in range(num_tokens)]


class BlockMachine(RuleBasedStateMachine):
    """Sequences come, grow and go; few different tokens, so that prefixes are often shared."""

    @initialize(
        num_blocks=st.integers(6, 20), has_prefix_cache=st.sampled_from([True, True, False])
    )
    def start(self, num_blocks: int, has_prefix_cache: bool) -> None:
        self.manager = BlockManager(num_blocks, BLOCK_SIZE, has_prefix_cache=has_prefix_cache)
        self.held: list[Sequence] = []
        self.written: dict[int, tuple[object, ...]] = {}  # slot: salt, all tokens up to this one

    @rule(
        blocks=st.lists(st.integers(0, 2), max_size=4),
        rest=st.integers(1, 2 * BLOCK_SIZE),
        max_tokens=st.integers(1, 12),
        headroom=st.integers(0, 2),
        salt=st.sampled_from([b"", b"", b"a", b"b"]),
    )
    def admit(
        self, blocks: list[int], rest: int, max_tokens: int, headroom: int, salt: bytes
    ) -> None:
        """Full blocks of equal tokens, so that two prompts often share some, and a rest."""
        prompt = [token for token in blocks for _ in range(BLOCK_SIZE)] + rest * [7]
        capacity = self.manager.num_blocks * BLOCK_SIZE
        if len(prompt) + max_tokens > capacity:
            return
        num_free = self.manager.num_free_blocks
        sequence = make_sequence(prompt, max_tokens, salt)
        if not self.manager.admit(sequence, headroom=headroom):
            assert num_free < self.manager.num_blocks_for(len(prompt) + 1) + headroom
            assert self.manager.num_free_blocks == num_free
            assert not sequence.block_table
            return
        assert self.manager.num_free_blocks >= headroom
        assert len(sequence.block_table) == self.manager.num_blocks_for(len(prompt) + 1)
        assert sequence.num_computed_tokens < len(prompt)
        assert sequence.num_computed_tokens % BLOCK_SIZE == 0
        if not self.manager.has_prefix_cache:
            assert sequence.num_computed_tokens == 0
        self.held.append(sequence)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), num_tokens=st.integers(1, 12))
    def compute(self, data: st.DataObject, num_tokens: int) -> None:
        """Writes some of the tokens that are there."""
        sequence = data.draw(st.sampled_from(self.held))
        first = sequence.num_computed_tokens
        last = min(first + num_tokens, sequence.num_tokens)
        for position in range(first, last):
            block = sequence.block_table[position // BLOCK_SIZE]
            assert sum(block in other.block_table for other in self.held) == 1, "written and shared"
            slot = block * BLOCK_SIZE + position % BLOCK_SIZE
            self.written[slot] = (sequence.cache_salt, *sequence.token_ids[: position + 1])
        sequence.num_computed_tokens = last
        self.manager.commit(sequence)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), token=st.sampled_from([0, 1, 7]))
    def grow(self, data: st.DataObject, token: int) -> None:
        sequence = data.draw(st.sampled_from(self.held))
        is_caught_up = sequence.num_uncomputed_tokens == 0
        if not is_caught_up or sequence.num_tokens == sequence.max_num_tokens:
            return
        sequence.append(token)
        num_free = self.manager.num_free_blocks
        if self.manager.grow(sequence):
            assert self.manager.has_room(sequence)
        else:
            assert num_free == 0
            assert not self.manager.has_room(sequence)
            self._release(sequence)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self._release(data.draw(st.sampled_from(self.held)))

    def _release(self, sequence: Sequence) -> None:
        self.manager.release(sequence)
        self.held.remove(sequence)
        assert not sequence.block_table

    @invariant()
    def every_block_is_free_or_held_by_whom_it_says(self) -> None:
        manager, num_holders = self.manager, [0] * self.manager.num_blocks
        for sequence in self.held:
            assert len(set(sequence.block_table)) == len(sequence.block_table)
            for block in sequence.block_table:
                num_holders[block] += 1
        assert num_holders == manager._num_holders
        assert {b for b, holders in enumerate(num_holders) if not holders} == {
            *manager._blank,
            *manager._cached,
        }
        assert manager.num_free_blocks + sum(map(bool, num_holders)) == manager.num_blocks
        assert manager.num_shared_blocks == sum(holders > 1 for holders in num_holders)

    @invariant()
    def shared_blocks_are_full_and_known(self) -> None:
        manager = self.manager
        for sequence in self.held:
            num_full = sequence.num_computed_tokens // BLOCK_SIZE
            for index, block in enumerate(sequence.block_table):
                if manager._num_holders[block] > 1:
                    assert index < num_full
                    assert block in manager._hash_of_block

    @invariant()
    def computed_tokens_lie_where_the_table_says(self) -> None:
        for sequence in self.held:
            tokens = tuple(sequence.token_ids)
            for position in range(sequence.num_computed_tokens):
                block = sequence.block_table[position // BLOCK_SIZE]
                slot = block * BLOCK_SIZE + position % BLOCK_SIZE
                assert self.written[slot] == (sequence.cache_salt, *tokens[: position + 1])

    @invariant()
    def books_agree(self) -> None:
        manager = self.manager
        assert manager._block_of_hash == {h: b for b, h in manager._hash_of_block.items()}
        assert set(manager._growth) <= set(self.held)
        claims = [0] * manager.num_blocks
        for room in manager._growth.values():
            for block in room:
                claims[block] += 1
        assert claims == manager._num_claims

    def teardown(self) -> None:
        if not hasattr(self, "manager"):
            return
        for sequence in tuple(self.held):
            self._release(sequence)
        self.every_block_is_free_or_held_by_whom_it_says()
        assert self.manager.num_free_blocks == self.manager.num_blocks


TestBlockMachine = BlockMachine.TestCase
TestBlockMachine.settings = settings(max_examples=300, stateful_step_count=30)


def test_prefix_is_found_again_after_release() -> None:
    """A second sequence starts behind the full blocks of an equal beginning, in the same blocks."""
    manager = BlockManager(8, BLOCK_SIZE)
    first = admitted(manager, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    table = first.block_table
    manager.release(first)
    second = make_sequence([1, 2, 3, 4, 5, 6, 7, 8, 10, 11])
    assert manager.admit(second)
    assert second.num_computed_tokens == 8
    assert second.block_table[:2] == table[:2]
    assert (manager.num_prefix_queries, manager.num_prefix_hits) == (9 + 10, 8)


def test_equal_blocks_behind_another_beginning_are_not_shared() -> None:
    """A block is found by all tokens up to its end, not by its own alone."""
    manager = BlockManager(8, BLOCK_SIZE)
    manager.release(admitted(manager, [1, 1, 1, 1, 5, 5, 5, 5, 9]))
    other = make_sequence([2, 2, 2, 2, 5, 5, 5, 5, 9])
    assert manager.admit(other)
    assert other.num_computed_tokens == 0


def test_only_equal_salts_share_a_prefix() -> None:
    """A prompt is found under its own salt, under no other, and not without one."""
    manager = BlockManager(64, BLOCK_SIZE)
    prompt = list(range(9))
    salts = [b"", b"a", b"b", b"a" * 32]
    for salt in salts:
        assert not manager._cached_prefix(make_sequence(prompt, salt=salt))
        admitted(manager, prompt, salt=salt)
    tables = [manager._cached_prefix(make_sequence(prompt, salt=salt)) for salt in salts]
    assert [len(table) for table in tables] == [2] * 4
    assert len({block for table in tables for block in table}) == 8


@given(
    st.lists(st.integers(0, 1), min_size=9, max_size=20),
    st.lists(st.integers(0, 1), min_size=9, max_size=20),
    st.binary(max_size=3),
    st.binary(max_size=3),
)
def test_what_is_shared_has_equal_salts_and_equal_tokens(
    tokens: list[int], others: list[int], salt: bytes, other_salt: bytes
) -> None:
    """As many blocks are shared as are equal from the first on, and none between salts."""
    manager = BlockManager(64, BLOCK_SIZE)
    admitted(manager, tokens, salt=salt)
    num_equal = 0
    while tokens[:num_equal] == others[:num_equal] and num_equal <= min(len(tokens), len(others)):
        num_equal += 1
    num_full = min((num_equal - 1) // BLOCK_SIZE, (len(others) - 1) // BLOCK_SIZE)
    found = manager._cached_prefix(make_sequence(others, salt=other_salt))
    assert len(found) == (num_full if salt == other_salt else 0)


@given(
    st.lists(st.integers(0, 1), min_size=4, max_size=20),
    st.lists(st.integers(0, 1), min_size=4, max_size=20),
    st.integers(0, 4),
    st.binary(max_size=1),
)
def test_the_missing_block_is_the_one_that_another_computes_next(
    tokens: list[int], others: list[int], num_computed_blocks: int, salt: bytes
) -> None:
    """Where both are equal up to the end of that block, under one salt, and nowhere else."""
    manager = BlockManager(64, BLOCK_SIZE)
    running = make_sequence(tokens)
    assert manager.admit(running)
    running.num_computed_tokens = min(num_computed_blocks, len(tokens) // BLOCK_SIZE) * BLOCK_SIZE
    manager.commit(running)
    end = running.num_computed_tokens + BLOCK_SIZE
    digest = manager.next_block(running)
    assert (digest is not None) == (end <= len(tokens))
    is_shared = tokens[:end] == others[:end] and end < len(others) and not salt
    missing = manager.missing_block(make_sequence(others, salt=salt))
    assert (digest is not None and missing == digest) == (end <= len(tokens) and is_shared)


def test_nothing_is_missing_where_nothing_can_be_found() -> None:
    """Without a prefix cache no block is anybody's next, and none is missing."""
    manager = BlockManager(8, BLOCK_SIZE, has_prefix_cache=False)
    sequence = make_sequence(list(range(9)))
    assert manager.missing_block(sequence) is None
    assert manager.admit(sequence)
    assert manager.next_block(sequence) is None


def test_no_salt_stands_for_the_beginning_of_another_prompt() -> None:
    """Someone who knows the digest of a prefix can't put blocks of his own behind it."""
    manager = BlockManager(64, BLOCK_SIZE)
    victim = make_sequence([1, 2, 3, 4, 5, 6, 7, 8, 9])
    manager.admit(victim)
    compute(manager, victim)
    for salt in (victim.block_digests[0], array("I", [1, 2, 3, 4]).tobytes()):
        attacker = make_sequence([5, 6, 7, 8, 9], salt=salt)
        assert not manager._cached_prefix(attacker)


@pytest.mark.parametrize("num_tokens", [4, 8, 9])
def test_one_token_at_least_is_left_to_compute(num_tokens: int) -> None:
    """The same prompt again is never cached whole, since its last token yields the next."""
    manager = BlockManager(8, BLOCK_SIZE)
    prompt = list(range(num_tokens))
    manager.release(admitted(manager, prompt))
    again = make_sequence(prompt)
    assert manager.admit(again)
    assert again.num_computed_tokens == (num_tokens - 1) // BLOCK_SIZE * BLOCK_SIZE


def test_running_sequences_share_their_prefix() -> None:
    """Two that run at the same time hold the same blocks; one may go without the other."""
    manager = BlockManager(8, BLOCK_SIZE)
    first = admitted(manager, [1, 2, 3, 4, 5])
    second = admitted(manager, [1, 2, 3, 4, 6])
    shared = first.block_table[0]
    assert second.block_table[0] == shared
    manager.release(first)
    assert manager._num_holders[shared] == 1
    third = admitted(manager, distinct_prompt(0, 21))
    assert shared not in third.block_table


def test_without_prefix_cache_nothing_is_found() -> None:
    """`has_prefix_cache=False` computes every prompt from its first token."""
    manager = BlockManager(8, BLOCK_SIZE, has_prefix_cache=False)
    prompt = list(range(9))
    manager.release(admitted(manager, prompt))
    again = make_sequence(prompt)
    assert manager.admit(again)
    assert again.num_computed_tokens == 0
    assert manager.num_prefix_hits == 0


def test_least_recently_released_prefix_goes_first() -> None:
    """Of the cached prefixes the one released longest ago makes room; use makes it the newest."""
    manager = BlockManager(8, BLOCK_SIZE)
    prompts = [distinct_prompt(number, BLOCK_SIZE + 1) for number in range(4)]
    sequences = [admitted(manager, prompt, max_tokens=1) for prompt in prompts]
    for number in (2, 0, 3, 1):
        manager.release(sequences[number])
    manager.release(admitted(manager, prompts[2], max_tokens=1))  # used again: the newest now

    def cached() -> set[int]:
        known = set()
        for number, prompt in enumerate(prompts):
            if manager._cached_prefix(make_sequence(prompt)):
                known.add(number)
        return known

    assert cached() == {0, 1, 2, 3}
    # Four blocks remember nothing and go first, then 0, 3, 1, 2.
    expected = [{0, 1, 2, 3}] * 4 + [{1, 2, 3}, {1, 2}, {2}, set()]
    for left, number in zip(expected, range(10, 18), strict=True):
        assert manager.admit(make_sequence(distinct_prompt(number, 1), max_tokens=1))
        assert cached() == left


def test_a_prefix_outlives_what_was_built_on_it() -> None:
    """Of one sequence's cached blocks the last is reused first."""
    manager = BlockManager(4, BLOCK_SIZE)
    prompt = list(range(13))
    manager.release(admitted(manager, prompt, max_tokens=1))
    admitted(manager, distinct_prompt(0, 5), max_tokens=1)  # takes the open block and the third
    again = make_sequence(prompt)
    assert len(manager._cached_prefix(again)) == 2


def test_growing_sequences_keep_to_consecutive_blocks() -> None:
    """While sixteen others grow beside it, each sequence's table stays one run of ids."""
    manager = BlockManager(17 * 8, BLOCK_SIZE)
    sequences = [
        admitted(manager, distinct_prompt(number, 6), max_tokens=26) for number in range(17)
    ]
    for _ in range(25):
        for sequence in sequences:
            sequence.append(3)
            assert manager.grow(sequence)
            compute(manager, sequence)
    assert all(len(sequence.block_table) == 8 for sequence in sequences)
    for sequence in sequences:
        assert all(b == a + 1 for a, b in pairwise(sequence.block_table))


def test_newcomers_take_the_room_of_those_that_left() -> None:
    """Room is kept free for growth only as long as the sequence that may grow is there."""
    manager = BlockManager(16, BLOCK_SIZE, has_prefix_cache=False)
    first = admitted(manager, distinct_prompt(0, 3), max_tokens=29)
    second = admitted(manager, distinct_prompt(1, 3), max_tokens=29)
    assert (first.block_table, second.block_table) == ([0], [8])
    manager.release(first)
    third = admitted(manager, distinct_prompt(2, 31), max_tokens=1)
    assert third.block_table == list(range(8))


def test_claimed_room_is_used_when_there_is_no_other() -> None:
    """Growth room is a preference: a sequence that fits is never refused for it."""
    manager = BlockManager(8, BLOCK_SIZE)
    admitted(manager, distinct_prompt(0, 3), max_tokens=29)
    second = make_sequence(distinct_prompt(1, 27), max_tokens=1)
    assert manager.admit(second)
    assert sorted(second.block_table) == list(range(1, 8))


def test_admission_leaves_the_headroom_free() -> None:
    """What would leave fewer than `headroom` blocks is not admitted, and takes nothing."""
    manager = BlockManager(4, BLOCK_SIZE)
    sequence = make_sequence(list(range(11)))
    assert not manager.admit(sequence, headroom=2)
    assert (manager.num_free_blocks, sequence.block_table) == (4, [])
    assert manager.admit(sequence, headroom=1)


def test_reviving_cached_blocks_counts_as_taking_them() -> None:
    """A cached block that nobody holds is free, so using it again uses up a free block."""
    manager = BlockManager(4, BLOCK_SIZE)
    prompt = list(range(9))
    manager.release(admitted(manager, prompt, max_tokens=1))
    admitted(manager, distinct_prompt(0, 5), max_tokens=1)  # the third block and the free one
    again = make_sequence(prompt)
    assert not manager.admit(again)
    assert manager.num_free_blocks == 2
