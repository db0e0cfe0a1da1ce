"""What the sampling kernels compute, slowly: one row at a time, by sorting it, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chairlift.shared.sampling_params import SamplingParams

_MASK = np.uint64(0xFFFFFFFF)
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)
NUM_ROUNDS = 10


def philox(counters: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Philox-4x32-10 of counters [num, 4] under a key [2], as the paper's figure 2 has it."""
    left, right = counters[:, [0, 2]], counters[:, [1, 3]]
    for number in range(NUM_ROUNDS):
        products = left * _MULTIPLIERS  # of 32 bits each: exact in 64
        keys = (key + np.uint64(number) * _WEYL) & _MASK
        high, low = products >> np.uint64(32), products & _MASK
        left, right = high[:, ::-1] ^ right ^ keys, low[:, ::-1]
    return np.stack([left[:, 0], right[:, 0], left[:, 1], right[:, 1]], axis=1)


def random_bits(num_tokens: int, output_index: int, seed: int) -> NDArray[np.uint64]:
    """32 random bits for each of the tokens from 0 on [num_tokens]."""
    groups = np.arange(-(-num_tokens // 4), dtype=np.uint64)
    counters = np.zeros((len(groups), 4), dtype=np.uint64)
    counters[:, 0], counters[:, 1] = groups, output_index
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint64)
    return philox(counters, key).ravel()[:num_tokens]


def gumbels(num_tokens: int, output_index: int, seed: int) -> NDArray[np.float64]:
    """A Gumbel variate for each token [num_tokens]."""
    bits = random_bits(num_tokens, output_index, seed)
    v = np.minimum((bits.astype(np.float64) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    return -np.log(-np.log1p(-v))


@dataclass(frozen=True, slots=True)
class Choice:
    """What a row's adjusted logits make of its parameters."""

    is_kept: NDArray[np.bool_]  # [vocab_size]
    scores: NDArray[np.float64]  # [vocab_size], of a draw; minus infinity where not kept

    @property
    def token_id(self) -> int:
        return int(self.scores.argmax())


def choose(logits: NDArray[np.float32], params: SamplingParams, output_index: int) -> Choice:
    """Of adjusted logits [vocab_size]; equals are kept by ascending token id."""
    size = len(logits)
    distances = (logits.max() - logits).astype(np.float64)
    if params.is_greedy:
        return Choice(distances == 0, np.where(distances == 0, 0.0, -np.inf))
    weights = np.exp(-distances / params.temperature)
    order = np.lexsort((np.arange(size), distances))
    is_kept = (weights[order] >= params.min_p) & np.isfinite(distances[order])
    if params.top_k:
        is_kept[params.top_k :] = False
    kept = np.where(is_kept, weights[order], 0.0)
    before = kept.cumsum() - kept
    if params.top_p < 1:
        is_kept &= before < params.top_p * kept.sum()
    is_kept[0] = True
    result = np.zeros(size, dtype=np.bool_)
    result[order] = is_kept
    noise = gumbels(size, output_index, params.seed)
    scores = np.where(result, noise - distances / params.temperature, -np.inf)
    return Choice(result, scores)
