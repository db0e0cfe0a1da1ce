"""Who holds which block of the KV cache, and which blocks can be used again as they are.

Knows block ids only; the attention backend knows where they lie in memory.
"""

from __future__ import annotations

import hashlib
from array import array
from itertools import islice

from .sequence import Sequence

RUN_CANDIDATES = 32  # how many free blocks are looked at for the start of a new run


class BlockManager:
    """Hands out blocks, counts their holders, and remembers the full ones for prefix reuse.

    Invariants: a block is held by `_num_holders[block]` sequences, and when by none, either
    `_blank` or `_cached`; a block held by more than one is full and never written again;
    `_block_of_hash` and `_hash_of_block` are inverse. Blank blocks are used before cached ones,
    and of those the least recently released first.

    Where a sequence's blocks follow one another the CPU backend reads them without a copy, so a
    sequence grows into the next id when that is free, and new sequences keep out of the room
    (`_growth`) that running ones may still need, while there is any other.
    """

    def __init__(self, num_blocks: int, block_size: int, *, has_prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.has_prefix_cache = has_prefix_cache
        self.num_prefix_queries = 0  # tokens asked for
        self.num_prefix_hits = 0  # tokens found
        self.num_shared_blocks = 0  # held by more than one
        self._num_holders = [0] * num_blocks
        self._blank: dict[int, None] = dict.fromkeys(range(num_blocks))  # free, remember nothing
        self._cached: dict[int, None] = {}  # free, remember a prefix; least recent release first
        self._block_of_hash: dict[bytes, int] = {}
        self._hash_of_block: dict[int, bytes] = {}
        self._growth: dict[Sequence, range] = {}
        self._num_claims = [0] * num_blocks  # growth ranges that a block is in

    @property
    def num_free_blocks(self) -> int:
        return len(self._blank) + len(self._cached)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def admit(self, sequence: Sequence, *, headroom: int = 0) -> bool:
        """Gives the sequence blocks for all its tokens and the next one; False if too few.

        Cached prefix blocks are shared and their tokens count as computed. `headroom` blocks stay
        free for those already running.
        """
        assert not sequence.block_table, "admitted twice"
        cached = self._cached_prefix(sequence)
        num_needed = self.num_blocks_for(sequence.num_tokens + 1) - len(cached)
        num_revived = sum(block in self._cached for block in cached)
        if num_needed + num_revived + headroom > self.num_free_blocks:
            return False
        for block in cached:
            self._hold(block)
        sequence.block_table = cached
        sequence.num_known_blocks = len(cached)
        sequence.num_computed_tokens = len(cached) * self.block_size
        self.num_prefix_queries += sequence.num_tokens
        self.num_prefix_hits += sequence.num_computed_tokens
        self._append_run(sequence, num_needed)
        return True

    def has_room(self, sequence: Sequence) -> bool:
        """Whether all its tokens have a place in its blocks."""
        return self.room(sequence) >= 0

    def room(self, sequence: Sequence) -> int:
        """For how many more tokens its blocks have a place; below 0 where they lack one."""
        return len(sequence.block_table) * self.block_size - sequence.num_planned_tokens

    def grow(self, sequence: Sequence) -> bool:
        """Makes room for the sequence's last token; False when no block is free."""
        if self.has_room(sequence):
            return True
        if not self.num_free_blocks:
            return False
        following = sequence.block_table[-1] + 1
        is_free = following < self.num_blocks and not self._num_holders[following]
        self._take(sequence, following if is_free else self._pick_start(1, 1))
        return True

    def commit(self, sequence: Sequence) -> None:
        """Remembers the blocks that the computed tokens have filled since the last call."""
        if not self.has_prefix_cache:
            return
        num_known = min(sequence.num_computed_tokens, sequence.num_tokens)  # one may be pending
        num_full = num_known // self.block_size
        for index in range(sequence.num_known_blocks, num_full):
            digest, block = self._digest(sequence, index), sequence.block_table[index]
            if digest not in self._block_of_hash:
                self._block_of_hash[digest] = block
                self._hash_of_block[block] = digest
        sequence.num_known_blocks = num_full

    def release(self, sequence: Sequence) -> None:
        """Takes all blocks back; known prefixes stay until their block is needed."""
        # The tail goes first, so that a prefix outlives what was built on it.
        for block in reversed(sequence.block_table):
            self._num_holders[block] -= 1
            self.num_shared_blocks -= self._num_holders[block] == 1
            if self._num_holders[block] == 0:
                free = self._cached if block in self._hash_of_block else self._blank
                free[block] = None
        sequence.block_table = []
        sequence.num_known_blocks = 0
        self._set_growth(sequence, range(0))

    def next_block(self, sequence: Sequence) -> bytes | None:
        """The digest of the first full block that a running sequence has yet to compute."""
        index = sequence.num_computed_tokens // self.block_size
        if not self.has_prefix_cache or index >= sequence.num_tokens // self.block_size:
            return None
        return self._digest(sequence, index)

    def missing_block(self, sequence: Sequence) -> bytes | None:
        """The digest of the first block that a waiting sequence would share, but nobody has."""
        index = len(self._cached_prefix(sequence))
        if not self.has_prefix_cache or index >= sequence.max_cached_tokens // self.block_size:
            return None
        return self._digest(sequence, index)

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the sequence's first tokens, as far as those need not be computed."""
        blocks: list[int] = []
        if not self.has_prefix_cache:
            return blocks
        for index in range(sequence.max_cached_tokens // self.block_size):
            block = self._block_of_hash.get(self._digest(sequence, index))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _digest(self, sequence: Sequence, index: int) -> bytes:
        """Of the sequence's full block `index`, chained to its predecessor's and the first to the
        salt: equal digests mean equal salts, and equal tokens from the very first on. Computed
        once, however long the sequence waits."""
        digests = sequence.block_digests
        while len(digests) <= index:
            start = len(digests) * self.block_size
            tokens = array("I", sequence.token_ids[start : start + self.block_size])
            parent = digests[-1] if digests else _root(sequence.cache_salt)
            digests.append(hashlib.sha256(parent + tokens.tobytes()).digest())
        return digests[index]

    def _append_run(self, sequence: Sequence, count: int) -> None:
        """`count` blocks, one after the other where possible, with room behind to grow."""
        num_expected = self.num_blocks_for(sequence.max_num_tokens) - len(sequence.block_table)
        block = self._pick_start(count, num_expected)
        room = range(block, min(block + num_expected, self.num_blocks))
        for left in range(count, 0, -1):
            if not self._is_open(block):
                block = self._pick_start(left, left)
            self._take(sequence, block)
            block += 1
        self._set_growth(sequence, room)

    def _set_growth(self, sequence: Sequence, room: range) -> None:
        for block in self._growth.pop(sequence, ()):
            self._num_claims[block] -= 1
        for block in room:
            self._num_claims[block] += 1
        if room:
            self._growth[sequence] = room

    def _pick_start(self, count: int, room: int) -> int:
        """Where a run of free, unclaimed blocks begins, as long as possible up to `room`.

        One of blank blocks if it holds `count`; else what was released least recently goes first.
        """
        for kind, least in ((self._blank, count), (self._cached, 1)):
            unclaimed = (block for block in kind if not self._num_claims[block])
            starts = list(islice(unclaimed, RUN_CANDIDATES))
            is_blank = kind is self._blank
            lengths = [self._run_length(start, room, is_blank=is_blank) for start in starts]
            longest = max(lengths, default=0)
            if longest >= least:
                return starts[lengths.index(longest)]
        return next(iter(self._blank or self._cached))

    def _is_open(self, block: int) -> bool:
        """Free, and in nobody's room to grow."""
        is_free = block in self._blank or block in self._cached
        return is_free and not self._num_claims[block]

    def _run_length(self, start: int, room: int, *, is_blank: bool) -> int:
        """How many free, unclaimed blocks follow one another from `start` on, up to `room`."""
        stop = min(start + room, self.num_blocks)
        for block in range(start, stop):
            is_free = block in self._blank or (not is_blank and block in self._cached)
            if not is_free or self._num_claims[block]:
                return block - start
        return stop - start

    def _take(self, sequence: Sequence, block: int) -> None:
        """A free block, for the sequence alone; what it remembered is forgotten."""
        digest = self._hash_of_block.pop(block, None)
        if digest is not None:
            del self._block_of_hash[digest]
        self._hold(block)
        sequence.block_table.append(block)

    def _hold(self, block: int) -> None:
        self._blank.pop(block, None)
        self._cached.pop(block, None)
        self._num_holders[block] += 1
        self.num_shared_blocks += self._num_holders[block] == 2


def _root(salt: bytes) -> bytes:
    """What a chain of digests begins with. Of another hash than the blocks' have, so that nobody
    can choose a salt that stands for somebody else's first blocks."""
    return hashlib.blake2b(salt, digest_size=32).digest() if salt else b""
