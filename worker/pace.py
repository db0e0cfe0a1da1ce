"""How much of prompts a step may carry beside decodes, so that no stream falters meanwhile."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

AUTO_STRETCH = 1.75  # a step with prompts may take so many times as long as its decodes alone
AUTO_FLOOR_S = 0.020  # ... or this long, which no reader feels
SMOOTHING = 0.25  # the weight of the newest step in its class
HALF_LIFE_STEPS = 500.0  # after which what a class knows counts half as much
MAX_SURPRISE = 3.0  # times what was expected: more than that was the machine's doing


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

    @property
    def features(self) -> NDArray[np.float64]:
        """[4], each of the order of one."""
        return np.array(
            (1.0, self.num_prompt_tokens / 64, self.num_decodes / 8, self.num_keys / 8192)
        )

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
    """Seconds of a step, linear in its Work; learned from every step.

    A mean is kept for each class of sizes, and the line is fitted through the means. So hours of
    decodes don't make it forget what prompts cost, and a rare outlier moves one mean a little.
    """

    _classes: dict[tuple[int, int], _Class] = field(default_factory=dict)
    _num_steps: int = 0
    _weights: NDArray[np.float64] | None = None  # None when steps have come since the fit

    @property
    def is_taught(self) -> bool:
        return bool(self._classes)

    def learn(self, work: Work, seconds: float) -> None:
        """A step of this work took so long."""
        self._num_steps += 1
        known = self._classes.get(work.size_class)
        if known is None:
            self._classes[work.size_class] = _Class(work.features, seconds, self._num_steps)
        else:
            seconds = min(seconds, MAX_SURPRISE * known.seconds)
            known.features += SMOOTHING * (work.features - known.features)
            known.seconds += SMOOTHING * (seconds - known.seconds)
            known.last_step = self._num_steps
        self._weights = None

    def seconds(self, work: Work) -> float:
        """Expected; 0 before anything was learned."""
        return float(self._fitted() @ work.features)

    def seconds_more(self, num_prompt_tokens: int, num_keys: int) -> float:
        """That a step takes longer for a chunk."""
        _, per_token, _, per_key = self._fitted()
        return float(per_token * num_prompt_tokens / 64 + per_key * num_keys / 8192)

    def _fitted(self) -> NDArray[np.float64]:
        if self._weights is None:
            self._weights = self._fit()
        return self._weights

    def _fit(self) -> NDArray[np.float64]:
        """Least squares of the relative errors, and nothing takes less than no time: what would is
        left out and the rest fitted again."""
        weights = np.zeros(4)
        if not self._classes:
            return weights
        classes = [*self._classes.values()]
        seconds = np.array([c.seconds for c in classes])
        ages = self._num_steps - np.array([c.last_step for c in classes])
        importance = 1 / (1 + ages / HALF_LIFE_STEPS) / np.maximum(seconds, 1e-9)
        x = np.stack([c.features for c in classes]) * importance[:, None]
        y = seconds * importance
        kept = [*range(4)]
        while kept:
            a = x[:, kept]
            ridge = 1e-6 * np.eye(len(kept))
            found = np.linalg.solve(a.T @ a + ridge, a.T @ y)
            if found.min() >= 0:
                weights[kept] = found
                break
            del kept[int(found.argmin())]
        return weights


class Pace:
    """Says how long a chunk of a prompt may be beside a step's decodes.

    Owns the model of the step's time. With `target_itl_s` a step with decodes shall take no longer
    than that; by default no longer than AUTO_STRETCH times what the decodes take alone, or
    AUTO_FLOOR_S. A chunk of `least_chunk` tokens is never too long: however many decode, prompts go
    on.
    """

    def __init__(self, target_itl_s: float | None = None, least_chunk: int = 8) -> None:
        self.model = StepTimeModel()
        self.least_chunk = least_chunk
        self._target_itl_s = target_itl_s

    def spare_s(self, decodes: Work) -> float:
        """Seconds that prompts may add to a step; infinite where nobody would wait for them."""
        if not decodes.num_decodes or not self.model.is_taught:
            return math.inf
        alone_s = self.model.seconds(decodes)
        target_s = self._target_itl_s or max(AUTO_STRETCH * alone_s, AUTO_FLOOR_S)
        return max(0.0, target_s - alone_s)

    def cost_s(self, first: int, count: int) -> float:
        """Of computing `count` tokens after `first` that have been."""
        return self.model.seconds_more(count, _num_keys(first, count))

    def num_tokens_in(self, spare_s: float, first: int, most: int) -> int:
        """How many tokens after the `first` can be computed in that time; at most `most`."""
        if math.isinf(spare_s):
            return most
        each_s = self.cost_s(first, 1)
        half_key_s = self.model.seconds_more(0, 1) / 2  # cost is each * n + half_key * n (n - 1)
        if each_s <= 0:
            return most
        if half_key_s * most <= 1e-9 * each_s:
            count = spare_s / each_s
        else:
            linear = each_s - half_key_s
            root = math.sqrt(linear**2 + 4 * half_key_s * spare_s)
            count = (root - linear) / (2 * half_key_s)
        return min(most, int(count))


def _num_keys(first: int, count: int) -> int:
    """That `count` tokens attend to, each to itself and all before it."""
    return count * first + count * (count + 1) // 2
