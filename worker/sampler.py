"""One token for every row of logits, as each row's SamplingParams want it.

Rows don't influence one another: which bucket a row falls into, and every reduction, depend on
the row alone. Randomness is one number per (seed, output index), so that a token can be drawn
again, by any process, at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ..shared.sampling_params import SamplingParams
from .faults import error_of
from .grammar import Constraint
from .logits_processors import LogitsProcessor, process
from .sequence import Sequence

MASKED = float("-inf")
BLOCK = 128  # vocabulary entries summed together in the two-level inverse CDF
TOP_BLOCK = 64  # ... and looked at together in the two-stage top-k
CANDIDATES = (64, 256, 1024)  # how many tokens are sorted, tried in turn before all of them

_U64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def uniform(seed: int, index: int) -> float:
    """The random number in [0, 1) of output token `index` of a request with this seed.

    Two rounds of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
    OOPSLA 2014), so that neighbouring seeds share nothing.
    """
    return (_mix(_mix(seed + _GOLDEN) + (index + 1) * _GOLDEN) >> 11) * 2.0**-53


def _mix(state: int) -> int:
    state &= _U64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _U64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _U64
    return state ^ (state >> 31)


@dataclass(frozen=True, slots=True)
class LogitRow:
    """Whose row it is: it predicts the token after the sequence's own and `num_drafts` drafts."""

    sequence: Sequence
    num_drafts: int = 0

    @property
    def params(self) -> SamplingParams:
        return self.sequence.params

    @property
    def output_index(self) -> int:
        return self.sequence.num_output_tokens + self.num_drafts


class Sampler:
    """Chooses tokens; `eos_token_ids` are what min_tokens keeps away, and the processors are the
    operator's."""

    def __init__(
        self, eos_token_ids: frozenset[int], processors: tuple[LogitsProcessor, ...] = ()
    ) -> None:
        self.eos_token_ids = eos_token_ids
        self._processors = processors

    @property
    def has_processors(self) -> bool:
        return bool(self._processors)

    @torch.inference_mode()
    def sample(
        self, logits: torch.Tensor, rows: list[LogitRow]
    ) -> list[int | BaseException | None]:
        """The token that each row predicts; None where the model's numbers are no numbers, and what
        a row's grammar or parameters raise instead of it.

        `logits` is float32 [len(rows), vocab_size] and is overwritten. The sequences are as they
        were before, so that it may be called again.
        """
        errors = [
            error_of(partial(self._adjust, values, row.sequence))
            for values, row in zip(logits, rows, strict=True)
        ]
        is_number = torch.isfinite(logits.amax(dim=-1)).tolist()
        buckets: dict[Callable[..., torch.Tensor], list[int]] = {}
        for number, row in enumerate(rows):
            buckets.setdefault(_method(row.params), []).append(number)
        tokens = np.zeros(len(rows), dtype=np.int64)
        for method, numbers in buckets.items():
            is_all = len(numbers) == len(rows)
            chosen = method(logits if is_all else logits[numbers], [rows[n] for n in numbers])
            tokens[numbers] = chosen.cpu().numpy()
        return [
            error if error is not None else int(token) if ok else None
            for token, ok, error in zip(tokens, is_number, errors, strict=True)
        ]

    def _adjust(self, row: torch.Tensor, sequence: Sequence) -> None:
        if self._processors:
            output = sequence.token_ids[sequence.num_prompt_tokens :]
            for processor in self._processors:
                process(processor, output, row)
        adjust_logits(row, sequence, self.eos_token_ids)


def _method(params: SamplingParams) -> Callable[..., torch.Tensor]:
    if params.is_greedy:
        return pick_greedy
    return pick_among_top if params.top_k or params.top_p < 1 else pick_from_all


def adjust_logits(row: torch.Tensor, sequence: Sequence, eos_token_ids: frozenset[int]) -> None:
    """Applies logit_bias, penalties, min_tokens, bad_words and grammar to a row, in place.

    Repetition penalty: Keskar et al. 2019 (CTRL), over prompt and output; presence and frequency
    penalties: OpenAI's API reference, over the output. Raises GrammarError.
    """
    params = sequence.params
    if params.logit_bias:
        ids, biases = zip(*params.logit_bias, strict=True)
        row.index_add_(0, torch.tensor(ids), torch.tensor(biases))
    if params.has_penalties:
        _penalise(row, sequence)
    if sequence.num_output_tokens < params.min_tokens:
        row[[*eos_token_ids, *params.stop_token_ids]] = MASKED
    if params.bad_words:
        row[_ends_of_bad_words(sequence)] = MASKED
    if sequence.constraint is not None:
        _forbid(row, sequence.constraint)


def _ends_of_bad_words(sequence: Sequence) -> list[int]:
    """The last tokens of those whose others are what the output ends with."""
    start, token_ids = sequence.num_prompt_tokens, sequence.token_ids
    return [
        word[-1]
        for word in sequence.params.bad_words
        if tuple(token_ids[max(start, len(token_ids) - len(word) + 1) :]) == word[:-1]
    ]


def _forbid(row: torch.Tensor, constraint: Constraint) -> None:
    """The model's vocabulary may be larger than the tokenizer's, and the other way round."""
    forbidden = torch.from_numpy(constraint.forbidden())[: len(row)].to(row.device)
    row[: len(forbidden)].masked_fill_(forbidden, MASKED)
    row[len(forbidden) :] = MASKED


def _penalise(row: torch.Tensor, sequence: Sequence) -> None:
    params = sequence.params
    if params.repetition_penalty != 1.0:
        seen = torch.from_numpy(np.unique(sequence.token_ids))
        values = row[seen]
        factor = params.repetition_penalty
        row[seen] = torch.where(values > 0, values / factor, values * factor)
    if sequence.output_counts:
        ids = torch.tensor(list(sequence.output_counts))
        counts = torch.tensor(list(sequence.output_counts.values()), dtype=torch.float32)
        row[ids] -= params.frequency_penalty * counts + params.presence_penalty


def pick_greedy(logits: torch.Tensor, rows: list[LogitRow]) -> torch.Tensor:
    """The highest logit of each row [num_rows]; block maxima first, as argmax is slow."""
    num_rows, vocab_size = logits.shape
    if vocab_size % TOP_BLOCK:
        return logits.argmax(dim=-1)
    blocks = logits.view(num_rows, -1, TOP_BLOCK)
    best = blocks.amax(dim=-1).argmax(dim=-1)
    inside = blocks[torch.arange(num_rows), best].argmax(dim=-1)
    return best * TOP_BLOCK + inside


def pick_from_all(logits: torch.Tensor, rows: list[LogitRow]) -> torch.Tensor:
    """Temperature and min_p alone [num_rows]: inverse CDF over the vocabulary, in two levels."""
    weights = _weights(_scaled(logits, rows), rows)
    every = torch.arange(len(weights))
    sums = weights.sum(dim=-1).double().cumsum(dim=-1)  # [num_rows, num_blocks]
    target = _uniforms(rows) * sums[:, -1]
    block = _first_above(sums, target)
    inside = weights[every, block].double()  # [num_rows, BLOCK]
    before = torch.where(block > 0, sums[every, block - 1], 0.0)
    share = (target - before) / (sums[every, block] - before)
    cumulative = inside.cumsum(dim=-1)
    index = _first_above(cumulative, share * cumulative[:, -1])
    last = (torch.arange(BLOCK) * (inside > 0)).amax(dim=-1)
    return block * BLOCK + torch.minimum(index, last)


def pick_among_top(logits: torch.Tensor, rows: list[LogitRow]) -> torch.Tensor:
    """Rows with top_k or top_p [num_rows]: sorts as few candidates as decide the row."""
    scaled = _scaled(logits, rows)
    mass = _weights(scaled, rows).sum(dim=-1).double().sum(dim=-1)  # [num_rows]
    chosen = torch.zeros(len(rows), dtype=torch.int64)
    undecided = torch.arange(len(rows))
    vocab_size = scaled.shape[-1]
    for num_candidates in (*(c for c in CANDIDATES if c < vocab_size), vocab_size):
        values, ids = _top(scaled[undecided], num_candidates)
        group = [rows[number] for number in undecided.tolist()]
        index, is_decided = _pick_sorted(values, mass[undecided], group)
        is_decided |= num_candidates == vocab_size
        picked = ids.gather(1, index[:, None])[:, 0]
        chosen[undecided[is_decided]] = picked[is_decided]
        undecided = undecided[~is_decided]
        if not len(undecided):
            break
    return chosen


def _pick_sorted(
    values: torch.Tensor, mass: torch.Tensor, rows: list[LogitRow]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of the chosen candidate of each row, and whether the candidates sufficed for it.

    `values` [num_rows, num_candidates] descend; `mass` is the whole row's weight after min_p.
    """
    top_k, top_p, min_p = _columns(rows, "top_k", "top_p", "min_p")
    rank = torch.arange(values.shape[-1])
    weights = (values - values[:, :1]).double().exp()
    limit_k = torch.where(top_k > 0, top_k, torch.inf)[:, None]
    is_cut = (weights < min_p[:, None]) | (rank >= limit_k)
    cumulative = weights.masked_fill(is_cut, 0.0).cumsum(dim=-1)
    is_complete = is_cut[:, -1] | (top_k == len(rank))
    total = torch.where(is_complete, cumulative[:, -1], mass)
    reaches_p = cumulative >= (top_p * total)[:, None]  # the one that reaches it still counts
    is_decided = is_complete | ((top_k == 0) & reaches_p[:, -1]) | ~torch.isfinite(mass)
    num_kept = torch.minimum((~reaches_p).sum(dim=-1) + 1, (~is_cut).sum(dim=-1)).clamp_(min=1)
    kept = cumulative.gather(1, num_kept[:, None] - 1)[:, 0]
    index = _first_above(cumulative, _uniforms(rows) * kept)
    return torch.minimum(index, num_kept - 1), is_decided


def _top(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest of each row and their ids, descending.

    In two stages where that is fewer to sort: they all lie in the `count` blocks with the highest
    maxima.
    """
    num_rows, vocab_size = values.shape
    if vocab_size % TOP_BLOCK or count * TOP_BLOCK >= vocab_size:
        found = values.topk(count, dim=-1)
        return found.values, found.indices
    blocks = values.view(num_rows, -1, TOP_BLOCK)
    best = blocks.amax(dim=-1).topk(count, dim=-1).indices  # [num_rows, count]
    inside = blocks[torch.arange(num_rows)[:, None], best].flatten(1)
    found = inside.topk(count, dim=-1)
    block = best.gather(1, found.indices // TOP_BLOCK)
    return found.values, block * TOP_BLOCK + found.indices % TOP_BLOCK


def _scaled(logits: torch.Tensor, rows: list[LogitRow]) -> torch.Tensor:
    """Differences to the highest logit, which is 0 then, over the temperature; in place."""
    (temperature,) = _columns(rows, "temperature")
    return logits.sub_(logits.amax(dim=-1, keepdim=True)).div_(temperature.float()[:, None])


def _weights(scaled: torch.Tensor, rows: list[LogitRow]) -> torch.Tensor:
    """Unnormalised probabilities after min_p, 1 at the highest [num_rows, num_blocks, BLOCK].

    Summing blocks keeps every reduction within its row: torch splits the sum of a single long
    row over threads, and its last bits with it.
    """
    num_rows, vocab_size = scaled.shape
    weights = scaled.new_zeros(num_rows, -(-vocab_size // BLOCK) * BLOCK)
    inside = weights[:, :vocab_size]
    inside.copy_(scaled)
    for row in inside:  # one by one: torch cuts many rows between threads wherever it likes
        row.exp_()
    (min_p,) = _columns(rows, "min_p")
    if min_p.any():
        inside.masked_fill_(inside < min_p.float()[:, None], 0.0)
    return weights.view(num_rows, -1, BLOCK)


def _columns(rows: list[LogitRow], *names: str) -> list[torch.Tensor]:
    """One float64 tensor [num_rows] for each named parameter."""
    return [
        torch.tensor([getattr(row.params, name) for row in rows], dtype=torch.float64)
        for name in names
    ]


def _uniforms(rows: list[LogitRow]) -> torch.Tensor:
    numbers = [uniform(row.params.seed, row.output_index) for row in rows]
    return torch.tensor(numbers, dtype=torch.float64)


def _first_above(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Index of the first entry above `target` in each ascending row [num_rows]."""
    index = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    return index.clamp_(max=cumulative.shape[-1] - 1)
