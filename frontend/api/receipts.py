"""X-Chairlift-Receipt: how a request fared among the others, told with its usage."""

from __future__ import annotations

from starlette.datastructures import Headers

from ...shared.errors import InvalidRequestError
from ...shared.steps import Receipt
from .answer_form import Json

HEADER = "X-Chairlift-Receipt"


def wants_receipt(headers: Headers) -> bool:
    """Raises InvalidRequestError."""
    given = headers.get(HEADER, "0")
    if given not in ("0", "1"):
        message = f"{HEADER} is 1 for a receipt and 0 for none, not {given[:40]!r}"
        raise InvalidRequestError(message, param=HEADER)
    return given == "1"


def receipt_json(request: str, receipt: Receipt, *, tells_cached: bool) -> Json:
    """`request` is the hash that feeds and logs know it by. How much of a prompt was cached tells
    what others have asked, so it may be no business of who reads this."""
    return {
        "request": request,
        "queued_ms": receipt.queued_us / 1000,
        "ttft_ms": None if receipt.first_token_us is None else receipt.first_token_us / 1000,
        "total_ms": receipt.total_us / 1000,
        "max_gap_ms": receipt.max_gap_us / 1000,
        "num_prompt_tokens": receipt.num_prompt_tokens,
        "num_cached_tokens": receipt.num_cached_tokens if tells_cached else None,
        "num_output_tokens": receipt.num_output_tokens,
        "num_resumed_tokens": receipt.num_resumed_tokens,
        "num_steps": receipt.num_steps,
        "num_chunks": receipt.num_chunks,
        "num_recomputed_tokens": receipt.num_recomputed_tokens,
        "num_preemptions": receipt.num_preemptions,
        "mean_mates": round(receipt.mean_mates, 2),
        "max_mates": receipt.max_mates,
    }
