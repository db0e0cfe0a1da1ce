"""The log probability of a token, from the logits that it came of."""

from __future__ import annotations

import torch

from ..shared.logprobs import pack_logprob

SLICE_ROWS = 64  # rows of logits that are held at once: a long prompt's would fill the memory


def score(logits: torch.Tensor, token_id: int, num_top: int) -> bytes:
    """One token's record, from the logits that it came of: float32 [vocab_size].

    One row at a time: of many, torch would cut the sums between threads wherever it likes.
    """
    total = logits.logsumexp(dim=-1)
    top = logits.topk(min(num_top, len(logits)))
    ids, logprobs = top.indices.tolist(), (top.values - total).tolist()
    num_missing = num_top - len(ids)  # in a vocabulary of fewer tokens
    return pack_logprob(
        float(logits[token_id] - total),
        ids + [0] * num_missing,
        logprobs + [float("-inf")] * num_missing,
    )
