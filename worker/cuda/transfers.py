"""What goes between the host and a device. Nothing waits for it but who asks for a result."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


class Transfers:
    """Copies by memory that the device reaches by itself; torch hands none of it out again before
    the copy has been made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_gpu = device.type == "cuda"

    def to_device(self, array: NDArray[np.int32]) -> torch.Tensor:
        """In the order of what is launched; the array may change at once."""
        tensor = torch.from_numpy(array)
        if not self._is_gpu:
            return tensor.clone()
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def to_host(self, *tensors: torch.Tensor) -> Arriving:
        """Of what was launched so far."""
        if not self._is_gpu:
            return Arriving([tensor.clone() for tensor in tensors], None)
        targets = [torch.empty_like(x, device="cpu", pin_memory=True) for x in tensors]
        for target, tensor in zip(targets, tensors, strict=True):
            target.copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
        event.record()
        return Arriving(targets, event)


class Arriving:
    """Tensors on their way to the host."""

    def __init__(self, tensors: list[torch.Tensor], event: torch.cuda.Event | None) -> None:
        self._tensors = tensors
        self._event = event

    def wait(self) -> list[torch.Tensor]:
        if self._event is not None:
            self._event.synchronize()
        return self._tensors
