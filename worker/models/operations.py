"""What a decoder computes between its matrix products, in plain torch, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .activation import silu_and_multiply


class Operations:
    """Each works row by row: a row's bits depend neither on other rows nor on threads.

    The slow twin of whatever a device has instead.
    """

    def add_and_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """Adds delta, if any, to x in place, both [num_rows, size]; the root-mean-square norm
        (Zhang and Sennrich, arXiv 1910.07467) of what that makes."""
        if delta is not None:
            x.add_(delta)
        return F.rms_norm(x, x.shape[-1:], eps=eps).mul_(weight)

    def silu_and_multiply(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gates) * ups of [num_rows, 2 * size], gates first: [num_rows, size]."""
        return silu_and_multiply(gate_up)
