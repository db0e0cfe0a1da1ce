"""What differs with the hardware that a worker runs on. A GPU's is in cuda/."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch

from ..shared.errors import ModelError
from ..shared.settings import MIN_CHUNK_TOKENS, WorkerSettings
from .attention.backend import AttentionShape
from .attention.native import BLOCK_SIZE
from .executor import Executor, HostExecutor
from .kernels.choice import Kernels, available_kernels, cpu_kernels
from .memory import CACHE_SHARE, block_bytes, usable_memory_bytes
from .model_runner import ModelRunner
from .models.config import ModelConfig
from .models.decoder import Decoder
from .models.linear import LinearFactory
from .models.linear_choice import linear_factory
from .sampler import Sampler

CPU = torch.device("cpu")
GPU_TOKENS = 2048  # of one step, and sequences, if nobody says
GPU_SEQS = 256


class Platform(ABC):
    """Sizes, matrices and kernels of one device."""

    device: torch.device
    block_size: int

    @abstractmethod
    def linear_factory(self) -> LinearFactory:
        """What makes a model's matrices, on the device. Raises ModelError and NativeKernelError."""

    @abstractmethod
    def block_bytes(self, shape: AttentionShape, item_bytes: int) -> int:
        """Of a block's keys and values in all layers."""

    @abstractmethod
    def cache_bytes(self, config: ModelConfig, item_bytes: int) -> int:
        """How much memory the KV cache may have, the model being there, if nobody says."""

    @abstractmethod
    def kernels(
        self, shape: AttentionShape, num_blocks: int, dtype: torch.dtype, max_model_len: int
    ) -> Kernels:
        """With the KV cache. Raises NativeKernelError."""

    @abstractmethod
    def executor(self, decoder: Decoder, kernels: Kernels, sampler: Sampler) -> Executor:
        """Of a model's steps."""


class CpuPlatform(Platform):
    """torch and kernels of our own in C."""

    device = CPU
    block_size = BLOCK_SIZE

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings

    def linear_factory(self) -> LinearFactory:
        return linear_factory(self._settings.quantize, self._settings.kernels)

    def block_bytes(self, shape: AttentionShape, item_bytes: int) -> int:
        return block_bytes(shape, BLOCK_SIZE, item_bytes)

    def cache_bytes(self, config: ModelConfig, item_bytes: int) -> int:
        return int(CACHE_SHARE * usable_memory_bytes())

    def kernels(
        self, shape: AttentionShape, num_blocks: int, dtype: torch.dtype, max_model_len: int
    ) -> Kernels:
        return cpu_kernels(self._settings.kernels, shape, num_blocks, dtype)

    def executor(self, decoder: Decoder, kernels: Kernels, sampler: Sampler) -> Executor:
        return HostExecutor(ModelRunner(decoder, kernels, CPU), sampler)


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Raises ModelError where the one that is wanted isn't there."""
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise ModelError(
            f"there is no CUDA device that torch {torch.__version__} can use: run with --device "
            "cpu, or install torch for the device and its driver"
        )
    return torch.device("cuda") if has_cuda and wanted != "cpu" else CPU


def settings_for(device: torch.device, settings: WorkerSettings) -> WorkerSettings:
    """As given; where nothing was, what is sensible for the device. Raises NativeKernelError for
    kernels that are asked for and can't be had."""
    if device == CPU:
        return settings.model_copy(update={"kernels": available_kernels(settings.kernels)})
    given = settings.model_dump(include=settings.model_fields_set)
    num_tokens = given.get("max_num_batched_tokens", GPU_TOKENS)
    num_seqs = given.get("max_num_seqs", min(GPU_SEQS, num_tokens - MIN_CHUNK_TOKENS))
    sizes = {"max_num_batched_tokens": num_tokens, "max_num_seqs": num_seqs}
    return settings.model_copy(update=sizes)


def platform_of(device: torch.device, settings: WorkerSettings) -> Platform:
    """Raises ModelError for settings that the device knows nothing of."""
    if device.type == "cpu":
        return CpuPlatform(settings)
    try:
        from .cuda.platform import CudaPlatform
    except ImportError as error:
        raise ModelError(
            f"a GPU needs Triton, and {error}: install chairlift[gpu], or run with --device cpu"
        ) from error
    return CudaPlatform(settings, device)
