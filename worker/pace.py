"""How much of prompts a step may carry beside decodes, so that no stream falters meanwhile."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

AUTO_STRETCH = 0.65  # of its decodes' time may a step take longer for each prompt in line
MAX_STRETCH = 2.5  # ... and for all of them
AUTO_FLOOR_S = 0.020  # or it may last this long, which no reader feels
LEAST_CHUNK = 8
SMOOTHING = 0.25  # the weight of the newest step in its class
KNOTS = (8, 16, 32, 64)  # rows at which one more may begin to cost more
REFIT_STEPS = 8  # a fit takes 0.15 ms
HALF_LIFE_STEPS = 500.0  # after which what a class knows counts half as much
MAX_SURPRISE = 3.0  # times what was expected: more than that was the machine's doing

NUM_FEATURES = 4 + len(KNOTS)

N = TypeVar("N", int, NDArray[np.int_])


@dataclass(frozen=True, slots=True)
class Work:
    """What a step computes, as far as its time depends on it."""

    num_prompt_tokens: int = 0  # all rows in chunks
    num_decodes: int = 0  # rows that are a sequence's only one
    num_keys: int = 0  # that rows attend to, summed over rows

    @classmethod
    def of(cls, spans: Iterable[tuple[int, int]]) -> Work:
        """Of chunks (tokens computed before, tokens to compute)."""
        num_prompt_tokens = num_decodes = num_keys = 0
        for first, count in spans:
            num_keys += _num_keys(first, count)
            if count == 1:
                num_decodes += 1
            else:
                num_prompt_tokens += count
        return cls(num_prompt_tokens, num_decodes, num_keys)

    def __add__(self, other: Work) -> Work:
        return Work(
            self.num_prompt_tokens + other.num_prompt_tokens,
            self.num_decodes + other.num_decodes,
            self.num_keys + other.num_keys,
        )

    @property
    def num_rows(self) -> int:
        return self.num_prompt_tokens + self.num_decodes

    @property
    def features(self) -> NDArray[np.float64]:
        """[num_features]"""
        sizes = (self.num_rows, self.num_decodes, self.num_keys)
        return _features(*map(np.array, sizes))

    @property
    def size_class(self) -> tuple[int, int]:
        return self.num_prompt_tokens.bit_length(), self.num_decodes.bit_length()


@dataclass(slots=True)
class _Class:
    """Steps of about the same size: the running means of what they were and took."""

    features: NDArray[np.float64]
    seconds: float
    last_step: int


@dataclass(slots=True)
class StepTimeModel:
    """Seconds of a step, from its Work; learned from every step.

    Linear in decodes and keys, and in rows between KNOTS, where it may grow steeper: few rows take
    as long as one, for reading the weights takes that long, and from some number on each costs the
    same. A mean is kept for each class of sizes, and the curve is fitted through the means. So
    hours of decodes don't make it forget what prompts cost, and a rare outlier moves one mean a
    little.
    """

    _classes: dict[tuple[int, int], _Class] = field(default_factory=dict)
    _num_steps: int = 0
    _weights: NDArray[np.float64] | None = None  # None when it is time to fit them anew

    @property
    def is_taught(self) -> bool:
        return bool(self._classes)

    def learn(self, work: Work, seconds: float) -> None:
        """A step of this work took so long."""
        self._num_steps += 1
        known = self._classes.get(work.size_class)
        if known is None or self._num_steps % REFIT_STEPS == 0:
            self._weights = None
        if known is None:
            self._classes[work.size_class] = _Class(work.features, seconds, self._num_steps)
        else:
            seconds = min(seconds, MAX_SURPRISE * known.seconds)
            known.features += SMOOTHING * (work.features - known.features)
            known.seconds += SMOOTHING * (seconds - known.seconds)
            known.last_step = self._num_steps

    def seconds(self, work: Work) -> float:
        """Expected; 0 before anything was learned."""
        return float(self._fitted() @ work.features)

    def seconds_with(self, work: Work, first: int, most: int) -> NDArray[np.float64]:
        """Expected of a step that does `work` and a chunk besides, of one to `most` tokens after
        the `first` of their sequence: never decreasing [most]."""
        counts = np.arange(1, most + 1)
        decodes = np.full(most, work.num_decodes)
        keys = work.num_keys + _num_keys(first, counts)
        return _features(work.num_rows + counts, decodes, keys) @ self._fitted()

    def seconds_with_decodes(self, work: Work, most: int) -> NDArray[np.float64]:
        """Expected of a step that does `work` and none to `most` decodes besides, which have as
        many keys as its own on average: never decreasing [most + 1]."""
        counts = np.arange(most + 1)
        keys = work.num_keys + counts * (work.num_keys // max(1, work.num_decodes))
        features = _features(work.num_rows + counts, work.num_decodes + counts, keys)
        return features @ self._fitted()

    def _fitted(self) -> NDArray[np.float64]:
        if self._weights is None:
            self._weights = self._fit()
        return self._weights

    def _fit(self) -> NDArray[np.float64]:
        """Least squares of the relative errors, and nothing takes less than no time: what would is
        left out and the rest fitted again."""
        weights = np.zeros(NUM_FEATURES)
        if not self._classes:
            return weights
        classes = [*self._classes.values()]
        seconds = np.array([c.seconds for c in classes])
        ages = self._num_steps - np.array([c.last_step for c in classes])
        importance = (1 + ages / HALF_LIFE_STEPS) ** -0.5 / np.maximum(seconds, 1e-9)
        x = np.stack([c.features for c in classes]) * importance[:, None]
        y = seconds * importance
        kept = [*range(NUM_FEATURES)]
        while kept:
            a = x[:, kept]
            products = a.T @ a
            ridge = 1e-9 * products.trace() * np.eye(len(kept))
            found = np.linalg.solve(products + ridge, a.T @ y)
            if found.min() >= 0:
                weights[kept] = found
                break
            del kept[int(found.argmin())]
        return weights


class Pace:
    """Says how long the chunks of prompts may be beside a step's decodes.

    Owns the model of the step's time. With `target_itl_s` a step with decodes shall take no longer
    than that. By default one prompt may stretch what the decodes take alone by AUTO_STRETCH, and
    each further one in line by as much again, up to MAX_STRETCH: small steps serve fewer tokens a
    second, and whoever waits to begin waits too. AUTO_FLOOR_S is never too long, nor is a first
    chunk of `least_chunk` tokens: however many decode, prompts go on. Chunks end at multiples of
    `chunk_unit`.
    """

    def __init__(self, target_itl_s: float | None = None, chunk_unit: int = 1) -> None:
        self.model = StepTimeModel()
        self.chunk_unit = chunk_unit
        self._target_itl_s = target_itl_s

    @property
    def least_chunk(self) -> int:
        return max(LEAST_CHUNK, self.chunk_unit)

    def limit_s(self, decodes: Work, num_prompts: int = 1) -> float:
        """Seconds that a step with these decodes may take, where so many prompts want to go on;
        infinite where nobody would wait."""
        if not decodes.num_decodes or not self.model.is_taught:
            return math.inf
        alone_s = self.model.seconds(decodes)
        stretch = 1 + min(AUTO_STRETCH * num_prompts, MAX_STRETCH)
        return max(alone_s, self._target_itl_s or max(stretch * alone_s, AUTO_FLOOR_S))

    def num_tokens_in(self, limit_s: float, work: Work, first: int, most: int) -> int:
        """How many tokens after the `first` of a sequence a step that does `work` may compute as
        well without taking longer than `limit_s`; at most `most`."""
        if math.isinf(limit_s) or most <= 0:
            return most
        seconds = self.model.seconds_with(work, first, most)
        return int(seconds.searchsorted(limit_s, side="right"))


def padded_length(rows: NDArray[np.int_]) -> NDArray[np.int_]:
    """What the matrix kernels compute for so many rows: one of the lengths that batches have, all
    up to 32, then steps of 8, from 128 on of 32."""
    step = np.where(rows <= 32, 1, np.where(rows <= 128, 8, 32))
    return -(-rows // step) * step


def _features(
    rows: NDArray[np.int_], decodes: NDArray[np.int_], keys: NDArray[np.int_]
) -> NDArray[np.float64]:
    """[..., NUM_FEATURES] of these [...], each of the order of one."""
    rows = padded_length(rows)
    columns = [np.ones(rows.shape), rows / 64]
    columns += [np.maximum(rows - knot, 0) / 64 for knot in KNOTS]
    columns += [decodes / 8, keys / 8192]
    return np.stack(columns, axis=-1)


def _num_keys(first: int, count: N) -> N:
    """That `count` tokens attend to, each to itself and all before it."""
    return count * first + count * (count + 1) // 2
