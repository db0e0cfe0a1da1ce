"""Engines over random weights, built of a worker's own parts, and what they are asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import MIN_CHUNK_TOKENS, WorkerSettings
from chairlift.worker.block_manager import BlockManager
from chairlift.worker.cuda.attention_variants import TILE
from chairlift.worker.cuda.executor import GpuExecutor
from chairlift.worker.cuda.platform import CudaPlatform
from chairlift.worker.engine import Engine
from chairlift.worker.executor import Executor, Flight
from chairlift.worker.models.decoder import Decoder
from chairlift.worker.pace import Pace
from chairlift.worker.sampler import Sampler
from chairlift.worker.scheduler import ContinuousScheduler, Plan
from chairlift.worker.sequence import Sequence as EngineSequence
from chairlift.worker.step_times import StepTimes

from .work import StepWork

EOS = frozenset({0})


class MeteredExecutor(Executor):
    """Notes the work of each plan that it hands on."""

    def __init__(self, inner: GpuExecutor, depth: int | None = None) -> None:
        """`depth`: of fewer steps in flight than `inner` can have."""
        self.depth = inner.depth if depth is None else depth
        self.works: list[StepWork] = []
        self._inner = inner

    @property
    def num_sizes(self) -> int:
        """Of steps, each of which is captured."""
        return len(self._inner.sizes.all())

    def launch(self, plan: Plan, times: StepTimes) -> Flight:
        self.works.append(StepWork.of(plan))
        return self._inner.launch(plan, times)

    def idle(self) -> bool:
        return self._inner.idle()

    def warm_up(self, max_num_seqs: int, pace: Pace | None, max_s: float) -> None:
        self._inner.warm_up(max_num_seqs, pace, max_s)


def settings_of(max_num_seqs: int, max_num_batched_tokens: int) -> WorkerSettings:
    """There is room for a block of a prompt beside all that decode."""
    return WorkerSettings(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(max_num_batched_tokens, max_num_seqs + MIN_CHUNK_TOKENS),
    )


def engine_of(
    decoder: Decoder, settings: WorkerSettings, num_blocks: int, depth: int | None = None
) -> tuple[Engine, MeteredExecutor]:
    """Without a pace: whatever fits goes into a step."""
    platform = CudaPlatform(settings, decoder.device)
    dtype, config = decoder.weights.norm.dtype, decoder.config
    kernels = platform.kernels(config.attention_shape, num_blocks, dtype, decoder.max_model_len)
    scheduler = ContinuousScheduler(
        BlockManager(num_blocks, TILE, has_prefix_cache=False),
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
    )
    inner = platform.executor(decoder, kernels, Sampler(EOS))
    assert isinstance(inner, GpuExecutor)
    executor = MeteredExecutor(inner, depth)
    return Engine(scheduler, executor, EOS), executor


def num_blocks_of(lengths: Iterable[int]) -> int:
    """For sequences of so many tokens, all at once."""
    return sum(-(-length // TILE) + 1 for length in lengths)


def sequence_of(number: int, prompt: Sequence[int], params: SamplingParams) -> EngineSequence:
    return EngineSequence(number.to_bytes(16, "big"), list(prompt), params)


def dtype_for(device: torch.device) -> torch.dtype:
    """Of weights: the interpreter's bfloat16 is slow, and nobody's figures."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def warm_up_s(device: torch.device) -> float:
    """Enough to capture what is expected; in the interpreter there is nothing to compile."""
    return 60.0 if device.type == "cuda" else 0.0
