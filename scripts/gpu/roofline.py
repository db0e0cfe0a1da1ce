"""The fastest that a device can be, by what it was seen to do and by what its maker says."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .timing import seconds_per_call


@dataclass(frozen=True, slots=True)
class Roofline:
    """Bytes to and from memory, and operations of bfloat16 matrix products."""

    bytes_per_s: float
    flops_per_s: float

    def __str__(self) -> str:
        speed = f"{self.flops_per_s / 1e12:,.0f} TFLOP/s"
        return f"{self.bytes_per_s / 1e9:,.0f} GB/s and {speed}"

    def seconds(self, num_bytes: float, num_flops: float) -> float:
        """The least time for so much, if the one goes on while the other does."""
        return max(num_bytes / self.bytes_per_s, num_flops / self.flops_per_s)

    def bound(self, num_bytes: float, num_flops: float) -> str:
        is_memory = num_bytes / self.bytes_per_s >= num_flops / self.flops_per_s
        return "memory" if is_memory else "products"


# Of the data sheets, without sparsity; by torch's name of the device.
DATASHEETS = {
    "NVIDIA H200": Roofline(4.8e12, 989e12),
    "NVIDIA H100 80GB HBM3": Roofline(3.35e12, 989e12),
    "NVIDIA A100-SXM4-80GB": Roofline(2.039e12, 312e12),
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of what is measured."""

    copied_bytes: int = 2**30
    matrix_size: int = 8192


def sizes(*, is_tiny: bool) -> Sizes:
    return Sizes(2**20, 128) if is_tiny else Sizes()


def measured(device: torch.device, sizes: Sizes) -> Roofline:
    """What a copy and a large product attain here and now: the ceilings of all other figures."""
    return Roofline(_copy_bytes_per_s(device, sizes), _product_flops_per_s(device, sizes))


def datasheet(device: torch.device) -> Roofline | None:
    """None of a device that isn't listed."""
    if device.type != "cuda":
        return None
    return DATASHEETS.get(torch.cuda.get_device_name(device))


def _copy_bytes_per_s(device: torch.device, sizes: Sizes) -> float:
    """By a kernel: a copy in a graph is the copy engines', which were a third slower."""
    source = torch.randn(sizes.copied_bytes // 4, device=device)
    target = torch.empty_like(source)
    moved_bytes = 2 * sizes.copied_bytes  # read and written
    return moved_bytes / seconds_per_call([lambda: torch.neg(source, out=target)], device)


def _product_flops_per_s(device: torch.device, sizes: Sizes) -> float:
    """Of normal numbers: zeros would draw less power, and so run at a higher clock."""
    size = sizes.matrix_size
    left, right, out = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(3))
    seconds = seconds_per_call([lambda: torch.mm(left, right.t(), out=out)], device)
    return 2 * size**3 / seconds


def host_copy_bytes_per_s(device: torch.device, sizes: Sizes) -> float:
    """To the device, from memory that it reaches by itself."""
    is_gpu = device.type == "cuda"
    source = torch.empty(sizes.copied_bytes, dtype=torch.uint8, pin_memory=is_gpu)
    target = torch.empty_like(source, device=device)
    return sizes.copied_bytes / seconds_per_call(
        [lambda: target.copy_(source, non_blocking=True)], device
    )
