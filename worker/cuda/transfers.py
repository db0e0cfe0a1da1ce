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
        self._to_host = torch.cuda.Stream(device) if self._is_gpu else None  # type: ignore[no-untyped-call]

    def to_device(self, array: NDArray[np.int32]) -> torch.Tensor:
        """In the order of what is launched; the array may change at once."""
        tensor = torch.from_numpy(array)
        if not self._is_gpu:
            return tensor.clone()
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def wait(self) -> None:
        """For all that was launched. Raises what went wrong with it."""
        if self._is_gpu:
            torch.cuda.synchronize(self._device)

    def to_host(self, *tensors: torch.Tensor) -> Arriving:
        """Of what was launched so far, beside what is launched next, which must not write to these
        tensors."""
        stream = self._to_host
        if stream is None:
            return Arriving([tensor.clone() for tensor in tensors], None)
        stream.wait_stream(torch.cuda.current_stream())
        targets = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in tensors]
        with torch.cuda.stream(stream):
            for target, tensor in zip(targets, tensors, strict=True):
                target.copy_(tensor, non_blocking=True)
                tensor.record_stream(stream)
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
