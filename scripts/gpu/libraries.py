"""What the installed torch offers for attention over blocks: its signature, and what it says."""

from __future__ import annotations

import inspect

import torch

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 8, 2, 128, 256


def facts(device: torch.device) -> dict[str, str]:
    """By what was asked."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        return {"varlen_attn": f"none: {error}"}
    parameters = inspect.signature(varlen_attn).parameters
    found = {"varlen_attn takes": ", ".join(parameters)}
    if "block_table" in parameters:
        found["varlen_attn over blocks"] = _paged(device, "enable_gqa" in parameters)
    return found


def _paged(device: torch.device, has_gqa: bool) -> str:
    """One sequence of one block and one query; "accepted", or why not."""
    from torch.nn.attention.varlen import varlen_attn

    num_kv_heads = NUM_KV_HEADS if has_gqa else NUM_HEADS
    query = torch.randn(1, NUM_HEADS, HEAD_DIM, device=device, dtype=torch.bfloat16)
    cache = torch.randn(
        2, 1, BLOCK_SIZE, num_kv_heads, HEAD_DIM, device=device, dtype=torch.bfloat16
    )
    given = {
        "cu_seq_q": torch.tensor([0, 1], dtype=torch.int32, device=device),
        "cu_seq_k": None,
        "max_q": 1,
        "max_k": BLOCK_SIZE,
        "seqused_k": torch.tensor([BLOCK_SIZE], dtype=torch.int32, device=device),
        "block_table": torch.zeros(1, 1, dtype=torch.int32, device=device),
        **({"enable_gqa": True} if has_gqa else {}),
    }
    try:
        varlen_attn(query, cache[0], cache[1], **given)
    except Exception as error:  # of any kind: what it says is what is wanted
        return f"refused: {type(error).__name__}: {str(error).splitlines()[0][:100]}"
    return "accepted"
