"""Steps on a GPU, one ahead of the host: everybody has the tokens that they have alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F

from chairlift.shared.errors import ModelError
from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import WorkerSettings
from chairlift.worker import main
from chairlift.worker.cuda import attention_variants, executor, linear
from chairlift.worker.cuda.attention_variants import BatchLimits
from chairlift.worker.cuda.executor import GpuExecutor
from chairlift.worker.cuda.linear import UndividedLinear
from chairlift.worker.cuda.platform import CudaPlatform
from chairlift.worker.engine import Engine
from chairlift.worker.models.loader import load_model
from chairlift.worker.pool import Pool
from chairlift.worker.sequence import Sequence
from tests.checkpoints import make_checkpoint
from tests.fake_engine import CANCELLED, output_of, run_to_the_end
from tests.worker.cuda.device import DEVICE

MAX_MODEL_LEN = 256
SETTINGS = WorkerSettings(
    dtype="float32",
    max_num_seqs=4,
    max_num_batched_tokens=64,
    device="cpu",
    speculation="off",
    target_itl_ms=60_000,  # chunks don't depend on how long steps take
)
MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_checkpoint("llama", folder)
    return folder


@pytest.fixture
def make_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> MakeEngine:
    """Of the kernels, with so many blocks and steps in flight; but that a row alone is multiplied
    as it is among others, or its last bits would differ."""
    monkeypatch.setattr(linear, "multiply_row", F.linear)

    def make(depth: int = 1, num_blocks: int = 16, *, deterministic: bool = False) -> Engine:
        settings = SETTINGS.model_copy(update={"deterministic": deterministic})
        platform = CudaPlatform(settings, DEVICE)
        monkeypatch.setattr(main, "platform_of", lambda device, settings: platform)
        make_linear = platform.linear_factory()
        model = load_model(folder, "float32", MAX_MODEL_LEN, make_linear, DEVICE)
        each = platform.block_bytes(model.config.attention_shape, 4)
        monkeypatch.setattr(platform, "cache_bytes", lambda *_: num_blocks * each)
        engine = main.build_engine(model, settings)
        assert isinstance(engine.executor, GpuExecutor)
        engine.executor.depth = depth
        return engine

    return make


def random_request(random: Random, number: int) -> Sequence:
    """Greedy or not, with penalties, words that must not come, stops, log probabilities."""
    params: dict[str, Any] = {"max_tokens": random.randint(1, 8), "temperature": 0.0}
    if random.random() < 0.5:
        params |= {"temperature": 1.2, "seed": random.randint(0, 1 << 40)}
        params |= random.choice([{}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.05}])
    params |= random.choice(
        [
            {},
            {"presence_penalty": 1.0, "repetition_penalty": 1.2, "min_tokens": 3},
            {"bad_words": ((5,), (7, 9)), "num_logprobs": 2},
            {"stop_token_ids": tuple(range(2, 40, 3))},
            {"num_logprobs": 0, "logit_bias": ((11, 4.0), (12, -100.0))},
        ]
    )
    length = random.choice([1, 3, 60, 64, 65, 100])
    prompt = [4 + (i * i + number % 2) % 50 for i in range(length)]
    return Sequence(number.to_bytes(16, "big"), prompt, SamplingParams(**params))


def outcome(sequence: Sequence) -> tuple[list[int], bytes, str]:
    assert sequence.finish is not None
    return output_of(sequence), bytes(sequence.scores.output), sequence.finish.reason


@pytest.mark.parametrize("seed", range(1 if DEVICE.type == "cpu" else 20))
def test_everybody_has_the_tokens_that_they_have_alone(seed: int, make_engine: MakeEngine) -> None:
    """Random arrivals and cancels, chunks, few blocks, tokens chosen here and there, steps ahead:
    not a token differs from that of a request that runs alone, one step after another."""
    random = Random(seed)
    engine, alone = make_engine(depth=1, num_blocks=6), make_engine(depth=0)
    everybody = []
    for number in range(6):
        sequence = random_request(random, number)
        everybody.append(sequence)
        engine.add(sequence)
        if random.random() < 0.15:
            engine.end(random.choice(everybody), CANCELLED)
        for _ in range(random.randint(0, 3)):
            engine.step()
    run_to_the_end(engine)
    assert engine.scheduler.block_manager.num_free_blocks == 6
    for sequence in everybody:
        again = Sequence(
            sequence.request_id,
            sequence.token_ids[: sequence.num_prompt_tokens],
            sequence.params,
        )
        alone.add(again)
        run_to_the_end(alone)
        if sequence.finish == CANCELLED:
            assert output_of(again)[: sequence.num_output_tokens] == output_of(sequence)
        else:
            tokens, scores, reason = outcome(sequence)
            expected, expected_scores, expected_reason = outcome(again)
            assert (tokens, reason) == (expected, expected_reason)
            assert len(scores) == len(expected_scores)


def row_by_row(layer: UndividedLinear, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([F.linear(row[None], layer.weight) for row in x])


def test_deterministic_answers_have_the_same_bits(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log probabilities to the last bit, alone and among others that cut prompts and take blocks
    away; where a kernel that splits keys would have them in its decodes and not in its chunks.
    Each row is multiplied alone: cuBLAS has other bits for float32 by the number of rows."""
    monkeypatch.setattr(attention_variants, "SPLIT_TILES", 1)
    monkeypatch.setattr(UndividedLinear, "__call__", row_by_row)
    engine = make_engine(depth=1, num_blocks=5, deterministic=True)
    params = SamplingParams(max_tokens=9, temperature=0.0, num_logprobs=0, ignore_eos=True)
    everybody = [
        Sequence(n.to_bytes(16, "big"), [4 + (i * i + n) % 50 for i in range(length)], params)
        for n, length in enumerate((62, 61, 60, 65))
    ]
    for sequence in everybody:
        engine.add(sequence)
        engine.step()
    run_to_the_end(engine)
    preempted = [sequence for sequence in everybody if sequence.journey.num_preemptions]
    assert preempted
    alone = make_engine(depth=0, deterministic=True)
    for sequence in (preempted[0], everybody[-1]):
        prompt = sequence.token_ids[: sequence.num_prompt_tokens]
        again = Sequence(sequence.request_id, prompt, params)
        alone.add(again)
        run_to_the_end(alone)
        assert outcome(again) == outcome(sequence)


def test_what_a_prompt_is_asked_for_comes_with_its_steps(make_engine: MakeEngine) -> None:
    """Log probabilities of a prompt, and its embedding, beside a stream."""
    engine = make_engine()
    stream = Sequence(bytes(16), [5, 6, 7], SamplingParams(max_tokens=5, temperature=0.0))
    scored = Sequence(
        bytes([1]) * 16, list(range(5, 90)), SamplingParams(max_tokens=1, num_prompt_logprobs=1)
    )
    pooled = Sequence(bytes([2]) * 16, list(range(9, 90)), SamplingParams(max_tokens=0))
    pooled.pool = Pool("mean")
    for sequence in (stream, scored, pooled):
        engine.add(sequence)
    run_to_the_end(engine)
    assert stream.num_output_tokens <= 5 and stream.finish is not None
    assert scored.scores.of_prompt and pooled.embedding


def test_numbers_that_are_none_end_a_request_alone(make_engine: MakeEngine) -> None:
    """And the step that is in flight by then harms nobody."""
    engine = make_engine()
    bad = Sequence(bytes(16), [3, 3, 3], SamplingParams(max_tokens=5, temperature=0.0))
    good = Sequence(bytes([1]) * 16, [5, 6], SamplingParams(max_tokens=5, temperature=0.0))
    embedding = engine.executor._decoder.weights.embedding  # type: ignore[attr-defined]
    with torch.no_grad():
        embedding[3] = torch.nan
    for sequence in (bad, good):
        engine.add(sequence)
    run_to_the_end(engine)
    assert bad.finish is not None and bad.finish.code == "model_output_not_finite"
    assert good.finish is not None and good.finish.reason in ("length", "stop")


@pytest.mark.parametrize("is_introduced", [True, False])
def test_a_launch_that_fails_halfway_leaves_nothing_behind(
    is_introduced: bool, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory for a request's counts, or for its logits when its token has been counted
    already: the tokens are those that it has alone, and no penalty is somebody else's."""
    params = SamplingParams(max_tokens=6, seed=7, presence_penalty=2.0, num_logprobs=0)

    def request(number: int) -> Sequence:
        return Sequence(number.to_bytes(16, "big"), [5 + number, 6, 7], params)

    alone = []
    for number in range(4):
        engine = make_engine(depth=0)
        engine.add(request(number))
        alone += run_to_the_end(engine)[-1:]
    engine = make_engine()
    everybody = [request(number) for number in range(4)]
    for sequence in everybody[:2]:
        engine.add(sequence)
    run_to_the_end(engine)
    assert isinstance(engine.executor, GpuExecutor)
    owner, name = (
        (engine.executor._sampler, "start") if is_introduced else (engine.executor, "_logits_of")
    )
    inner, num_calls = getattr(owner, name), 0

    def fail_at_times(*arguments: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls in (2, 3):  # beside a step in flight, and again without
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(*arguments)

    monkeypatch.setattr(owner, name, fail_at_times)
    for sequence in everybody[2:]:
        engine.add(sequence)
        engine.step()
    run_to_the_end(engine)
    assert num_calls > 3
    for sequence, expected in zip(everybody, alone, strict=True):
        assert output_of(sequence) == output_of(expected)


def test_tables_that_int32_can_not_address_are_refused(make_engine: MakeEngine) -> None:
    """Before anything is allocated."""
    executor = make_engine().executor
    assert isinstance(executor, GpuExecutor)
    attention = executor._step._attention
    limits = BatchLimits(4096, 8192, 1 << 18)
    kernels = Mock(attention=Mock(spec=attention, limits=limits, variants=attention.variants))
    with pytest.raises(ModelError, match="lower --max-num-seqs"):
        GpuExecutor(executor._decoder, kernels, executor._host_sampler)


def test_results_that_cannot_be_read_end_one_request(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No memory for the log probabilities of a prompt, beside a stream; the device is asked whether
    it is still there."""
    engine, checks = make_engine(), []
    stream = Sequence(bytes(16), [5, 6, 7], SamplingParams(max_tokens=5, temperature=0.0))
    scored = Sequence(
        bytes([1]) * 16, [*range(5, 20)], SamplingParams(max_tokens=3, num_prompt_logprobs=1)
    )

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(executor, "scores_of", fail)
    monkeypatch.setattr(engine.executor, "check", lambda: checks.append(1))
    for sequence in (stream, scored):
        engine.add(sequence)
    run_to_the_end(engine)
    assert scored.finish is not None and scored.finish.code == "out_of_memory"
    assert stream.finish is not None and stream.finish.reason in ("length", "stop")
    assert checks == [1]
    assert engine.scheduler.block_manager.num_free_blocks == 16
