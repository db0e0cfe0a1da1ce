"""The engine with a real model: what a request gives does not depend on who rides along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import WorkerSettings
from chairlift.worker.attention.native import BLOCK_SIZE
from chairlift.worker.engine import Engine
from chairlift.worker.main import build_engine
from chairlift.worker.memory import block_bytes
from chairlift.worker.model_runner import ModelRunner, PreparedStep, StepOutput
from chairlift.worker.models.linear_choice import linear_factory
from chairlift.worker.models.loader import DtypeChoice, LoadedModel, load_model
from chairlift.worker.scheduler import Plan
from chairlift.worker.sequence import Sequence
from tests.fake_engine import host_executor
from tests.vnni import needs_vnni

NUM_OUTPUT_TOKENS = 40


class Recorder:
    """Runs the model and keeps the logits of every request's every output token."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._sampled: list[Sequence] = []
        self.logits: dict[bytes, list[torch.Tensor]] = {}

    def prepare(self, plan: Plan) -> PreparedStep:
        self._sampled = plan.sampled
        return self._runner.prepare(plan)

    def run(self, step: PreparedStep) -> StepOutput:
        output = self._runner.run(step)
        for sequence, row in zip(self._sampled, output.logits, strict=True):
            self.logits.setdefault(sequence.request_id, []).append(row.clone())
        return output


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, tiny_model: Path) -> LoadedModel:
    return load_model(tiny_model, request.param, 256, linear_factory("none", "native"))


def engine_for(
    model: LoadedModel, num_blocks: int | None = None, **settings: Any
) -> tuple[Engine, Recorder]:
    if num_blocks is not None:
        num_bytes = block_bytes(model.config.attention_shape, BLOCK_SIZE, model.dtype.itemsize)
        settings["kv_cache_bytes"] = num_blocks * num_bytes
    values = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 4096,
        "prefix_caching": False,
        "kernels": "native",
        "speculation": "off",  # a row for each token; drafts are in test_speculation.py
    }
    engine = build_engine(model, WorkerSettings(**{**values, **settings}))
    recorder = Recorder(host_executor(engine).runner)
    host_executor(engine).runner = recorder  # type: ignore[assignment]
    return engine, recorder


def sequence(number: int, length: int, *, temperature: float) -> Sequence:
    prompt = [1 + (number * 37 + i * i) % 500 for i in range(length)]
    params = SamplingParams(
        max_tokens=NUM_OUTPUT_TOKENS, temperature=temperature, seed=number, ignore_eos=True
    )
    return Sequence(bytes([number]) * 16, prompt, params)


def riders(temperature: float) -> list[Sequence]:
    lengths = (3, 100, 33, 64, 17, 150, 1, 40)
    return [sequence(i, length, temperature=temperature) for i, length in enumerate(lengths)]


def run(engine: Engine, sequences: list[Sequence], *, stagger: int = 0) -> None:
    """Adds one every `stagger` steps (0: all at once) and runs to the end."""
    waiting, step = list(sequences), 0
    while waiting or engine.scheduler.has_work:
        if waiting and (not stagger or step % stagger == 0):
            for arrival in waiting[: 1 if stagger else None]:
                engine.add(arrival)
                waiting.remove(arrival)
        engine.step()
        step += 1
        assert step < 5000, "the engine does not come to an end"


def alone(
    model: LoadedModel, temperature: float, **settings: Any
) -> tuple[list[Sequence], dict[bytes, list[torch.Tensor]]]:
    """Every rider in an engine of its own."""
    sequences, logits = riders(temperature), {}
    for rider in sequences:
        engine, recorder = engine_for(model, **settings)
        run(engine, [rider])
        logits |= recorder.logits
    return sequences, logits


def are_equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_are_bitwise_those_of_a_lonely_run(
    model: LoadedModel, temperature: float, kernels: str
) -> None:
    """Alone or in a batch of 8, whole prompts: not a bit of the logits differs."""
    expected, expected_logits = alone(model, temperature, kernels=kernels)
    engine, recorder = engine_for(model, kernels=kernels)
    sequences = riders(temperature)
    run(engine, sequences)
    for rider, lonely in zip(sequences, expected, strict=True):
        assert rider.token_ids == lonely.token_ids
        rid = rider.request_id
        assert are_equal(recorder.logits[rid], expected_logits[rid])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("settings", "stagger"),
    [
        pytest.param({"max_num_batched_tokens": 40}, 0, id="chunked"),
        pytest.param({"max_num_batched_tokens": 64}, 3, id="staggered arrivals"),
        pytest.param({"num_blocks": 15}, 0, id="preempted"),
    ],
)
def test_logits_are_bitwise_those_of_a_lonely_run_however_it_is_cut(
    model: LoadedModel, temperature: float, settings: dict[str, Any], stagger: int
) -> None:
    """Other chunks, other arrivals, preemption."""
    expected, expected_logits = alone(model, temperature)
    engine, recorder = engine_for(model, **settings)
    sequences = riders(temperature)
    run(engine, sequences, stagger=stagger)
    for rider, lonely in zip(sequences, expected, strict=True):
        assert rider.token_ids == lonely.token_ids
        rid = rider.request_id
        assert are_equal(recorder.logits[rid], expected_logits[rid])
    if "num_blocks" in settings:
        assert engine.scheduler.num_preemptions > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_prefixes_change_no_bit(model: LoadedModel, temperature: float) -> None:
    """The second run of the same requests finds its prompts in the cache and says the same."""
    expected, expected_logits = alone(model, temperature)
    engine, recorder = engine_for(model, prefix_caching=True)
    run(engine, riders(temperature))
    recorder.logits.clear()
    again = riders(temperature)
    run(engine, again)
    for rider, lonely in zip(again, expected, strict=True):
        assert rider.token_ids == lonely.token_ids
        rid = rider.request_id
        assert are_equal(recorder.logits[rid], expected_logits[rid])
    assert sum(rider.num_cached_tokens for rider in again) > 300


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_resumed_requests_change_no_bit(model: LoadedModel, temperature: float) -> None:
    """Another worker goes on after the tokens that the first one handed out."""
    expected, expected_logits = alone(model, temperature)
    engine, recorder = engine_for(model, max_num_batched_tokens=50)
    resumed = riders(temperature)
    for number, (rider, lonely) in enumerate(zip(resumed, expected, strict=True)):
        engine.add(rider, lonely.token_ids[lonely.num_prompt_tokens :][: 3 * number])
    run(engine, [])
    for number, (rider, lonely) in enumerate(zip(resumed, expected, strict=True)):
        assert rider.token_ids == lonely.token_ids
        rid = rider.request_id
        assert are_equal(recorder.logits[rid], expected_logits[rid][3 * number :])


@needs_vnni
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("settings", "stagger"),
    [
        pytest.param({}, 0, id="whole"),
        pytest.param({"max_num_batched_tokens": 64}, 3, id="staggered arrivals"),
    ],
)
def test_int8_logits_are_bitwise_those_of_a_lonely_run(
    tiny_model: Path, dtype: DtypeChoice, settings: dict[str, Any], stagger: int
) -> None:
    """Quantized too: each token's activations have a scale of their own."""
    model = load_model(tiny_model, dtype, 256, linear_factory("int8", "auto"))
    expected, expected_logits = alone(model, 1.0)
    engine, recorder = engine_for(model, **settings)
    sequences = riders(1.0)
    run(engine, sequences, stagger=stagger)
    for rider, lonely in zip(sequences, expected, strict=True):
        assert rider.token_ids == lonely.token_ids
        rid = rider.request_id
        assert are_equal(recorder.logits[rid], expected_logits[rid])
