"""A model without weights whose answers depend on every token that its KV cache holds.

What it "computes" it reads back through block tables and slots, as attention does, so a wrong
slot, a wrong position, a block that somebody else wrote to or a skipped token changes the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from chairlift.worker.batch import make_batch
from chairlift.worker.model_runner import ModelRunner, StepOutput
from chairlift.worker.scheduler import Plan, ScheduledSequence
from chairlift.worker.scoring import score

PEAK = 12.0  # the predicted token's lead over all others


def last_plus_one(token_ids: Sequence[int]) -> int:
    """Easy to predict in a test."""
    return token_ids[-1] + 1


def digest(token_ids: Sequence[int]) -> int:
    """Depends on every token and on its place."""
    state = 17
    for token_id in token_ids:
        state = (state * 1_000_003 + token_id) % 2_147_483_647
    return state


def stuttering(token_ids: Sequence[int]) -> int:
    """Few different ones, which mostly come again in the order that they came in."""
    context = token_ids if len(token_ids) % 7 == 0 else token_ids[-2:]
    return 1 + digest(context) % 6


class FakeModelRunner(ModelRunner):
    """`next_token` of all that came before has the highest logit, modulo `vocab_size`.

    A sequence whose last token is in `poisoned_token_ids` gets NaN. What `error_in` says of a plan
    is raised, after its keys and values were written. `step_sizes` has every attempt.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        vocab_size: int,
        next_token: Callable[[Sequence[int]], int] = last_plus_one,
    ) -> None:
        self.vocab_size = vocab_size
        self.poisoned_token_ids: set[int] = set()
        self.error_in: Callable[[Plan], BaseException | None] = lambda plan: None
        self.num_steps = 0
        self.step_sizes: list[int] = []
        self._next_token = next_token
        self._block_size = block_size
        self._null_slot = num_blocks * block_size
        self._token_ids = torch.full((self._null_slot + 1,), -1)
        self._positions = torch.full((self._null_slot + 1,), -1)

    def prepare(self, plan: Plan) -> Plan:  # type: ignore[override]  # there is nothing to prepare
        return plan

    def run(self, plan: Plan) -> StepOutput:  # type: ignore[override]
        self.num_steps += 1
        self.step_sizes.append(len(plan.entries))
        batch = make_batch(plan, self._block_size, self._null_slot, torch.device("cpu"))
        self._token_ids[batch.slot_mapping] = batch.input_ids
        self._positions[batch.slot_mapping] = batch.positions
        error = self.error_in(plan)
        if error is not None:
            raise error
        contexts = {
            segment.start + segment.num_rows - n: (
                segment.block_table,
                segment.context_len - n + 1,
            )
            for segment in batch.segments
            for n in range(1, segment.num_rows + 1)
        }
        rows = [self._logits(self._read(*contexts[row])) for row in batch.logit_rows.tolist()]
        output = StepOutput(torch.stack(rows) if rows else torch.empty(0, self.vocab_size))
        for number, entry in enumerate(plan.entries):
            if entry.to_score:
                output.scores[number] = self._scores(entry)
            if entry.sequence.pool is not None:
                output.hidden[number] = self._hidden(entry)
        return output

    def _scores(self, entry: ScheduledSequence) -> list[bytes]:
        sequence = entry.sequence
        return [
            score(
                self._logits(self._read(sequence.block_table, index)),
                sequence.token_ids[index],
                sequence.scores.num_top(index),
            )
            for index in entry.to_score
        ]

    def _hidden(self, entry: ScheduledSequence) -> NDArray[np.float32]:
        """A digest of all that comes before each token, and the token [num_tokens, 2]."""
        first = entry.sequence.num_computed_tokens
        rows = []
        for end in range(first + 1, first + entry.num_tokens + 1):
            token_ids = self._read(entry.sequence.block_table, end)
            rows.append([digest(token_ids) % 97, token_ids[-1]])
        return np.array(rows, dtype=np.float32)

    def _read(self, block_table: list[int], context_len: int) -> list[int]:
        blocks = torch.tensor(block_table)[:, None] * self._block_size
        slots = (blocks + torch.arange(self._block_size)).flatten()[:context_len]
        assert self._positions[slots].tolist() == list(range(context_len)), "misplaced keys"
        return [int(token_id) for token_id in self._token_ids[slots]]

    def _logits(self, token_ids: list[int]) -> torch.Tensor:
        if token_ids[-1] in self.poisoned_token_ids:
            return torch.full((self.vocab_size,), torch.nan)
        logits = torch.cos(torch.arange(self.vocab_size) * float(1 + digest(token_ids) % 97))
        logits[self._next_token(token_ids) % self.vocab_size] += PEAK
        return logits
