"""What a step of the worker was: the ragged batch row by row, and where its time went.

Requests appear by a hash: their ids are the keys to their streams.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

HASH_BYTES = 4
MAX_WAITING_TOLD = 64
PHASES = ("arrivals", "schedule", "forward", "sample", "commit", "publish")

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
PackedHashes = Annotated[bytes, Meta(max_length=HASH_BYTES * 4096)]


def request_hash(request_id: bytes) -> bytes:
    """What feeds and logs know a request by."""
    return hashlib.sha256(request_id).digest()[:HASH_BYTES]


def split_hashes(packed: bytes) -> list[str]:
    """In hexadecimal digits, as logs have them."""
    digits, width = packed.hex(), 2 * HASH_BYTES
    return [digits[i : i + width] for i in range(0, len(digits), width)]


class Receipt(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How one request fared at its worker, in microseconds, tokens and steps.

    The first token's time is None where none came. A mate is another row of one of its steps.
    """

    queued_us: Count = 0  # until its first step began
    first_token_us: Count | None = None
    total_us: Count = 0
    max_gap_us: Count = 0  # between the ends of two steps that it was in
    num_prompt_tokens: Count = 0
    num_cached_tokens: Count = 0
    num_output_tokens: Count = 0
    num_resumed_tokens: Count = 0  # of the output, that another worker had made
    num_steps: Count = 0
    num_chunks: Count = 0  # steps that read its prompt, or read it again
    num_recomputed_tokens: Count = 0  # since it had lost its blocks
    num_preemptions: Count = 0
    num_mates: Count = 0  # summed over its steps
    max_mates: Count = 0

    @property
    def mean_mates(self) -> float:
        return self.num_mates / self.num_steps if self.num_steps else 0.0


class Row(msgspec.Struct, frozen=True):
    """One row of a batch."""

    request: str  # hash
    num_tokens: int  # computed in the step: of a decode one, of a chunk of the prompt more
    num_prompt_tokens: int  # of these
    num_drafts: int  # guessed, and computed beside them
    num_new_tokens: int  # of output
    num_computed_tokens: int  # after the step
    num_total_tokens: int  # prompt and output after the step
    num_blocks: int  # held after the step

    @property
    def is_chunk(self) -> bool:
        """Of a prompt, or of what is read again, and no decode."""
        return self.num_tokens > 1 or self.num_prompt_tokens > 0


class Ended(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A request that was in the batch and is no more."""

    request: Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
    reason: str
    receipt: Receipt


class StepRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One step, its rows in columns as `Row` has them."""

    number: Count
    began_us: Count  # since 1970
    phases_us: Annotated[tuple[Count, ...], Meta(min_length=len(PHASES), max_length=len(PHASES))]
    num_waiting: Count
    waiting: PackedHashes  # the first of them
    num_free_blocks: Count
    num_shared_blocks: Count  # held by more than one request
    preempted: PackedHashes
    requests: PackedHashes
    num_tokens: list[Count]
    num_prompt_tokens: list[Count]
    num_drafts: list[Count]
    num_new_tokens: list[Count]
    num_computed_tokens: list[Count]
    num_total_tokens: list[Count]
    num_blocks: list[Count]

    def __post_init__(self) -> None:
        """Raises ValueError, which the codec tells as a malformed message."""
        num_rows = len(self.requests) // HASH_BYTES
        packed = self.requests, self.waiting, self.preempted
        if any(len(hashes) % HASH_BYTES for hashes in packed):
            raise ValueError(f"hashes are {HASH_BYTES} bytes each")
        if any(len(column) != num_rows for column in self.columns.values()):
            raise ValueError("the columns of a step disagree")

    @property
    def duration_us(self) -> int:
        return sum(self.phases_us)

    @property
    def columns(self) -> dict[str, list[int]]:
        """All but the hashes, in the order of a Row's fields."""
        return {name: getattr(self, name) for name in Row.__struct_fields__[1:]}

    def rows(self) -> Iterator[Row]:
        columns = zip(split_hashes(self.requests), *self.columns.values(), strict=True)
        return (Row(*row) for row in columns)
