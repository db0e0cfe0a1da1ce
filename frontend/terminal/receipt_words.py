"""A receipt, for someone to read."""

from __future__ import annotations

from ...shared.steps import Receipt


def milliseconds(microseconds: float) -> str:
    """As exact as it is worth reading."""
    ms = microseconds / 1000
    return f"{ms:.2f}" if ms < 1 else f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}"


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def in_words(receipt: Receipt) -> str:
    """In one line; what did not happen is left out."""
    told = [f"queued {milliseconds(receipt.queued_us)} ms"]
    if receipt.first_token_us is not None:
        told.append(f"first token after {milliseconds(receipt.first_token_us)} ms")
    told += [
        f"{counted(receipt.num_output_tokens, 'token')} in {milliseconds(receipt.total_us)} ms",
        f"{counted(receipt.num_steps, 'step')} beside {receipt.mean_mates:.1f} others",
        f"longest gap {milliseconds(receipt.max_gap_us)} ms",
        f"{receipt.num_cached_tokens:,} of {counted(receipt.num_prompt_tokens, 'prompt token')} "
        "cached",
    ]
    if receipt.num_preemptions:
        told.append(counted(receipt.num_preemptions, "preemption"))
    if receipt.num_resumed_tokens:
        told.append(f"{counted(receipt.num_resumed_tokens, 'token')} of another worker")
    return ", ".join(told)
