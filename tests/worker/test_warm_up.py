"""What a worker finds out about its machine before the first request."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import WorkerSettings
from chairlift.worker.main import build_engine
from chairlift.worker.model_runner import PADDED_ROWS
from chairlift.worker.models.loader import load_model
from chairlift.worker.scheduler import Plan, ScheduledSequence
from chairlift.worker.sequence import Sequence
from chairlift.worker.warm_up import warm_up_plans
from tests.checkpoints import make_checkpoint
from tests.fake_engine import host_executor


@pytest.mark.parametrize(
    ("readings", "num_rows"),
    [
        ((0.0, 0.1, 1.0, 6.0, 10.0, 11.0), PADDED_ROWS),
        ((0.0, 0.1, 1.0, 2.0, 10.0, 15.0), 1),
        ((0.0, 9.0), 1),
    ],
)
def test_tiny_batches_are_padded_where_that_is_faster(
    readings: tuple[float, ...], num_rows: int, tmp_path: Path
) -> None:
    """And the padding changes not a bit of a row's logits; a slow model is not kept waiting."""
    make_checkpoint("llama", tmp_path)
    runner = host_executor(
        build_engine(load_model(tmp_path), WorkerSettings())
    ).runner  # oneDNN's products
    sequence = Sequence(bytes(16), [7], SamplingParams(max_tokens=1))
    sequence.block_table = [0]
    single = Plan((ScheduledSequence.next_of(sequence, 1),))
    expected = runner.run(runner.prepare(single)).logits
    clock = iter(readings)
    runner.tune(single, lambda: next(clock), max_s=1.0)
    prepared = runner.prepare(single)
    assert prepared.batch.num_rows == num_rows
    assert torch.equal(runner.run(prepared).logits, expected)


@pytest.mark.parametrize("max_model_len", [1, 20, 64])
def test_no_step_of_the_warm_up_goes_beyond_the_models_positions(max_model_len: int) -> None:
    """However short they are."""
    plans = [*warm_up_plans(8, max_model_len, null_block=3)]
    assert [plan.num_rows for plan in plans[:4]] == [1, 2, 4, 8]
    lengths = [entry.num_tokens for plan in plans for entry in plan.entries]
    assert max(lengths) <= max_model_len
