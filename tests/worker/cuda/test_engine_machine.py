"""The engine's machine around the GPU's executor: not a token differs from that of a request alone,
one step after another, on the CPU.

How many rows a matrix product has may change its last bits on a device, and so a token that is
about as likely as another. So the model is of float32, and its prompts are such that none is: the
first test reads every answer that the machine can ask for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

from chairlift.shared.logprobs import TokenLogprob, unpack_logprobs
from chairlift.shared.settings import WorkerSettings
from chairlift.worker.block_manager import BlockManager
from chairlift.worker.cuda.executor import GpuExecutor
from chairlift.worker.cuda.platform import CudaPlatform
from chairlift.worker.engine import Engine
from chairlift.worker.executor import Executor, Flight
from chairlift.worker.main import build_engine, eos_token_ids_of
from chairlift.worker.models.linear import Linear, LinearFactory
from chairlift.worker.models.loader import LoadedModel, load_model
from chairlift.worker.sampler import Sampler
from chairlift.worker.scheduler import Plan
from chairlift.worker.sequence import Sequence
from chairlift.worker.step_times import StepTimes
from tests.checkpoints import make_checkpoint
from tests.fake_engine import Size, Wish, make_wish, output_of, run_to_the_end
from tests.worker.cuda.device import DEVICE
from tests.worker.engine_machine import EngineMachine, Kind

MAX_MODEL_LEN = 256
SETTINGS = WorkerSettings(dtype="float32", device="cpu", speculation="off")
CPU = torch.device("cpu")
MAX_TOKENS = 12
LEAST_LEAD = 0.0004  # of a token's log probability before all others'


class FailingExecutor(Executor):
    """Launches what `error_in` has nothing against, with so many steps in flight."""

    def __init__(
        self, inner: GpuExecutor, depth: int, error_in: Callable[[Plan], Exception | None]
    ) -> None:
        self.depth = inner.depth = depth
        self._inner = inner
        self._error_in = error_in

    def launch(self, plan: Plan, times: StepTimes) -> Flight:
        error = self._error_in(plan)
        if error is not None:
            raise error
        return self._inner.launch(plan, times)


class GpuEngineMachine(EngineMachine):
    """Prompts of up to four blocks, and steps of a few rows up to those of a whole prompt."""

    kinds = (
        Kind("one step after another"),
        Kind("one ahead", depth=1),
    )
    block_size = CudaPlatform.block_size
    unit = 8

    def make_engine(
        self, size: Size, kind: Kind, error_in: Callable[[Plan], Exception | None]
    ) -> Engine:
        return make_engine(size, kind, error_in)

    def answer_alone(self, wish: Wish) -> list[int]:
        return answer_alone(wish)

    def prompt(self, first: int, length: int) -> list[int]:
        return prompt(first, length)


def prompt(first: int, length: int) -> list[int]:
    """One of those whose answers have no two tokens about as likely."""
    return [4 + (133 * first + i * i) % 150 for i in range(length)]


def all_wishes() -> Iterator[Wish]:
    """The longest answers to all prompts that the machine asks for."""
    units = {GpuEngineMachine.unit, FewSteps.unit}
    lengths = {unit * n - fewer for unit in units for n in range(1, 31) for fewer in range(4)}
    for length in sorted(lengths - {-1, 0}):
        for first in (7, 8):
            yield make_wish(prompt(first, length), max_tokens=MAX_TOKENS, num_logprobs=2)


def make_engine(
    size: Size, kind: Kind, error_in: Callable[[Plan], Exception | None] = lambda plan: None
) -> Engine:
    """On the GPU, or on the interpreter's, with as many blocks as `size` says."""
    changes = {"max_num_seqs": size.max_num_seqs, "max_num_batched_tokens": size.budget}
    platform, model = CudaPlatform(SETTINGS.model_copy(update=changes), DEVICE), gpu_model()
    shape, eos_token_ids = model.config.attention_shape, eos_token_ids_of(model)
    kernels = platform.kernels(shape, size.num_blocks, model.dtype, MAX_MODEL_LEN)
    blocks = BlockManager(
        size.num_blocks, platform.block_size, has_prefix_cache=size.has_prefix_cache
    )
    scheduler = kind.policy(
        blocks, max_num_seqs=size.max_num_seqs, max_num_batched_tokens=size.budget
    )
    executor = platform.executor(model.decoder, kernels, Sampler(eos_token_ids))
    assert isinstance(executor, GpuExecutor)
    return Engine(scheduler, FailingExecutor(executor, kind.depth, error_in), eos_token_ids)


def load(make_linear: LinearFactory, device: torch.device) -> LoadedModel:
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint("llama", Path(folder))
        return load_model(Path(folder), "float32", MAX_MODEL_LEN, make_linear, device)


@cache
def gpu_model() -> LoadedModel:
    """Where the GPU's kernels find it."""
    return load(CudaPlatform(SETTINGS, DEVICE).linear_factory(), DEVICE)


@cache
def cpu_engine() -> Engine:
    """Of the same model. It gives a request the same bits in whatever company."""
    return build_engine(load(Linear, CPU), SETTINGS)


def ended(engine: Engine, wishes: Iterable[Wish]) -> list[Sequence]:
    sequences = [wish.sequence() for wish in wishes]
    for sequence in sequences:
        engine.add(sequence)
    run_to_the_end(engine)
    return sequences


@cache
def answer_alone(wish: Wish) -> list[int]:
    (sequence,) = ended(cpu_engine(), [wish])
    return output_of(sequence)


def likelihoods(engine: Engine, wishes: Iterable[Wish]) -> list[TokenLogprob]:
    """Of each token of all answers, beside the two likeliest."""
    found = (bytes(sequence.scores.output) for sequence in ended(engine, wishes))
    return [each for records in found for each in unpack_logprobs(records, 2)]


class FewSteps(GpuEngineMachine):
    """Of few rows, each of which takes the interpreter forty milliseconds; the same at each run, so
    that it takes no longer, and what fails isn't made less."""

    unit = 2


TestFewSteps = FewSteps.TestCase
TestFewSteps.settings = settings(
    max_examples=3, stateful_step_count=6, derandomize=True, phases=[Phase.generate]
)

TestOnDevice = pytest.mark.timeout(600)(pytest.mark.gpu(GpuEngineMachine.TestCase))
TestOnDevice.settings = settings(max_examples=60, stateful_step_count=20)


def test_a_history_that_has_everything() -> None:
    """Answers that cross into a block, of which there are too few, all resumed, one suspect, one
    cancelled, one at fault, one without text, and little memory for a while: one step ahead."""
    machine = FewSteps()
    size = Size(num_blocks=5, max_num_seqs=3, budget=195, has_prefix_cache=False, depth=1)
    machine.begin(size, Kind("one ahead", depth=1))
    machine.add(number=3, prompt=(8, 29), max_tokens=12, num_given=5, is_suspect=False)
    machine.step(num_steps=12)
    machine.add(number=1, prompt=(7, 8), max_tokens=6, num_given=1, is_suspect=True)
    machine.add(number=3, prompt=(7, 4), max_tokens=12, num_given=0, is_suspect=False)
    *_, mute, faulty, cancelled = machine.live
    machine.engine.hurry(cancelled)
    machine.step(num_steps=6)
    for sequence, harm in ((cancelled, "cancel"), (faulty, "fault"), (mute, "text")):
        machine.do_harm(sequence, harm)
    machine.change_memory(max_num_tokens=1)
    machine.step(num_steps=2)
    machine.change_memory(max_num_tokens=1_000_000)
    machine.teardown()
    reasons = [sequence.finish.reason for sequence in machine.wishes if sequence.finish]
    assert reasons.count("length") >= 3 and {"abort", "error"} <= set(reasons)
    assert machine.engine.scheduler.num_preemptions


def test_no_answer_hangs_by_a_last_bit() -> None:
    """Each token of any answer that the machines ask for leads by forty times what the kernels'
    log probabilities differ by from those of the CPU."""
    wishes = list(all_wishes())
    leads = [each.top[0][1] - each.top[1][1] for each in likelihoods(cpu_engine(), wishes)]
    assert min(leads) > LEAST_LEAD
    size, some = Size(num_blocks=4, max_num_seqs=2, budget=66), [wishes[0], wishes[60]]
    found = likelihoods(make_engine(size, Kind("alone")), some)
    for kernels, cpu in zip(found, likelihoods(cpu_engine(), some), strict=True):
        assert abs(kernels.logprob - cpu.logprob) < LEAST_LEAD / 40
