"""A GPU: Triton's kernels between the products of cuBLAS."""

from __future__ import annotations

import torch

from ...shared.errors import ModelError
from ...shared.settings import WorkerSettings
from ..attention.backend import AttentionShape
from ..executor import Executor
from ..kernels.choice import Kernels
from ..models.config import ModelConfig
from ..models.decoder import Decoder
from ..models.linear import LinearFactory
from ..platform import Platform
from ..sampler import Sampler
from ..scoring import SLICE_ROWS
from .attention import TritonAttention
from .attention_variants import NUM_SPLIT_ITEMS, TILE, BatchLimits
from .executor import DEPTH, GpuExecutor
from .linear import CudaLinear, UndividedLinear, check_rows, leave_sums_undivided
from .operations import TritonOperations
from .variant import next_power_of_2

CACHE_SHARE = 0.95  # of the memory that the model and a step's tensors leave


class CudaPlatform(Platform):
    """Everything is on one device."""

    block_size = TILE

    def __init__(self, settings: WorkerSettings, device: torch.device) -> None:
        """Raises ModelError for settings that are for a CPU."""
        if settings.quantize != "none":
            raise ModelError(
                f"--quantize {settings.quantize} is for CPUs: leave it out, or use --device cpu"
            )
        if settings.policy == "static":  # whose steps know no limit, and whose plans read tokens
            raise ModelError("--policy static is for CPUs: leave it out, or use --device cpu")
        self.device = device
        self._settings = settings
        if settings.deterministic:
            leave_sums_undivided()

    def linear_factory(self) -> LinearFactory:
        kind = UndividedLinear if self._settings.deterministic else CudaLinear
        return lambda weight, bias: kind(weight, bias, self.device)

    def block_bytes(self, shape: AttentionShape, item_bytes: int) -> int:
        return shape.num_layers * 2 * shape.num_kv_heads * TILE * shape.head_dim * item_bytes

    def cache_bytes(self, config: ModelConfig, item_bytes: int) -> int:
        num_free, _ = torch.cuda.mem_get_info(self.device)
        num_left = num_free - step_bytes(config, self._settings, item_bytes)
        return max(0, int(CACHE_SHARE * num_left))

    def kernels(
        self, shape: AttentionShape, num_blocks: int, dtype: torch.dtype, max_model_len: int
    ) -> Kernels:
        settings = self._settings
        limits = BatchLimits(
            settings.max_num_seqs,
            settings.max_num_batched_tokens,
            max_model_len,
            max_decode_rows=0 if settings.deterministic else 1,
        )
        attention = TritonAttention(shape, num_blocks, dtype, limits, self.device)
        return Kernels(attention, TritonOperations())

    def executor(self, decoder: Decoder, kernels: Kernels, sampler: Sampler) -> Executor:
        executor = GpuExecutor(decoder, kernels, sampler)
        if self._settings.deterministic and self.device.type == "cuda":
            sizes = executor.sizes.all()
            check_rows(decoder.products, {size.num_rows for size in sizes})
            scored = range(1, SLICE_ROWS + 1)  # of a prompt, at a time
            check_rows([decoder.weights.head], {*scored, *(size.num_logit_rows for size in sizes)})
        return executor


def step_bytes(config: ModelConfig, settings: WorkerSettings, item_bytes: int) -> int:
    """Of a step's own tensors: those of its rows twice, since a graph's memory is its own; the
    sampler's, which are float32 and int32; and what splits of attention leave to be merged."""
    num_seqs, num_rows = settings.max_num_seqs, 1.25 * settings.max_num_batched_tokens
    heads = config.num_heads + config.num_kv_heads
    width = 4 * config.hidden_size + 3 * config.intermediate_size + 2 * heads * config.head_dim
    of_vocabulary = item_bytes + 4 + 4 * (1 + DEPTH)  # logits, adjusted ones, counts
    num_splits = next_power_of_2(NUM_SPLIT_ITEMS // config.num_kv_heads)
    partials = num_seqs * num_splits * 4 * config.num_heads * (config.head_dim + 2)
    sampling = num_seqs * config.vocab_size * of_vocabulary
    return int(2 * num_rows * width * item_bytes) + sampling + partials
