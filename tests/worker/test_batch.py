"""How long a batch is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from chairlift.worker.batch import make_batch
from chairlift.worker.pace import padded_length
from chairlift.worker.scheduler import Plan, ScheduledSequence
from tests.fake_engine import make_wish

NULL_SLOT = 999


def rounded_up(num_tokens: int) -> int:
    return int(padded_length(np.array(num_tokens)))


@given(st.integers(1, 10_000))
def test_lengths_are_rounded_up_by_little(num_tokens: int) -> None:
    """Never down, by less than a quarter, and what is rounded stays."""
    length = rounded_up(num_tokens)
    assert num_tokens <= length < 1.25 * num_tokens
    assert rounded_up(length) == length


def test_there_are_few_lengths() -> None:
    """Each costs memory for good: a budget of 512 tokens a step has 56."""
    assert len({rounded_up(n) for n in range(1, 513)}) == 32 + 12 + 12


def test_the_end_is_padding() -> None:
    """Rows beyond the sequences write where nobody reads, and nothing is sampled after them."""
    sequence = make_wish([*range(1, 36)]).sequence()
    sequence.block_table = [0, 1]
    batch = make_batch(
        Plan((ScheduledSequence.next_of(sequence, 35),)), 32, NULL_SLOT, torch.device("cpu")
    )
    assert batch.num_rows == len(batch.positions) == len(batch.slot_mapping) == 40
    assert batch.slot_mapping.tolist() == [*range(35), *[NULL_SLOT] * 5]
    assert batch.logit_rows.tolist() == [34]
    assert [(s.start, s.num_rows) for s in batch.segments] == [(0, 35)]


def test_drafts_follow_their_sequence() -> None:
    """At the positions that come next, with a row of logits for each; neighbours move along."""
    first, second = make_wish([1, 2, 3]).sequence(), make_wish([4]).sequence()
    first.block_table, first.num_computed_tokens, second.block_table = [2], 2, [0]
    entry = replace(ScheduledSequence.next_of(first, 1), drafts=(7, 8))
    plan = Plan((entry, ScheduledSequence.next_of(second, 1)))
    batch = make_batch(plan, 32, NULL_SLOT, torch.device("cpu"))
    assert batch.input_ids.tolist() == [3, 7, 8, 4]
    assert batch.positions.tolist() == [2, 3, 4, 0]
    assert batch.slot_mapping.tolist() == [66, 67, 68, 0]
    assert batch.logit_rows.tolist() == [0, 1, 2, 3]
    assert [(s.start, s.num_rows, s.context_len) for s in batch.segments] == [
        (0, 3, 5),
        (3, 1, 1),
    ]
    assert plan.num_rows == 4
    assert (plan.work.num_prompt_tokens, plan.work.num_decodes) == (0, 4)
    assert plan.work.num_keys == 3 + 4 + 5 + 1
