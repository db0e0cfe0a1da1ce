"""The shape of a small model's attention, whichever kernels compute it."""

from __future__ import annotations

from chairlift.worker.attention.backend import AttentionShape


def shape_of(
    num_kv_heads: int = 2, group: int = 2, head_dim: int = 16, window: int | None = None
) -> AttentionShape:
    """Two layers, of which the second may have a window."""
    return AttentionShape(
        num_layers=2,
        num_heads=num_kv_heads * group,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        sliding_windows=(None, window),
    )
