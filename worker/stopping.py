"""When a sequence ends."""

from __future__ import annotations

from ..shared.messages import Finish
from .sequence import Sequence


def take_token(sequence: Sequence, token_id: int, eos_token_ids: frozenset[int]) -> None:
    """The sequence's next token; sets `sequence.finish` when it is the last.

    A pure function of the tokens so far, so that a resumed sequence, whose earlier tokens are
    taken again, ends where it would have ended. Raises GrammarError for a token that the request's
    grammar does not allow.
    """
    sequence.append(token_id)
    params, detokenizer = sequence.params, sequence.detokenizer
    cached = sequence.num_cached_tokens
    may_stop = sequence.num_output_tokens >= params.min_tokens
    constraint = sequence.constraint
    is_stop_token = token_id in params.stop_token_ids
    if may_stop and (is_stop_token or (token_id in eos_token_ids and not params.ignore_eos)):
        if constraint is not None and not is_stop_token:
            constraint.end()
        if params.include_stop_str_in_output:
            detokenizer.append(token_id, is_stop_checked=False)
        else:
            detokenizer.skip()
        detokenizer.flush(is_stop_checked=True)
        sequence.finish = Finish("stop", token_id if is_stop_token else None, cached)
        return
    if constraint is not None:
        constraint.take(token_id)
    is_complete = constraint is not None and constraint.is_complete
    stop_string = detokenizer.append(token_id, is_stop_checked=may_stop)
    is_full = sequence.num_output_tokens >= params.max_tokens
    if (is_full or is_complete) and stop_string is None:
        stop_string = detokenizer.flush(is_stop_checked=may_stop)
    if stop_string is not None:
        sequence.finish = Finish("stop", stop_string, cached)
    elif is_complete:
        sequence.finish = Finish("stop", None, cached)
    elif is_full:
        sequence.finish = Finish("length", None, cached)
