"""What is asked of the model: requests with given lengths and random token ids."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import starmap

from .errors import BenchmarkError

FIRST_ORDINARY_ID = 1  # 0 is the synthetic models' end of text
MAX_WARM_UP_LEN = 32
REQUESTS_PER_SEAT = 4
MIN_REQUESTS = 8


@dataclass(frozen=True, slots=True)
class Range:
    """Lengths, both ends included."""

    low: int
    high: int

    def log_uniform(self, count: int) -> list[int]:
        """The `count` quantiles in the middle of equal shares of probability."""
        ratio = self.high / self.low
        return [round(self.low * ratio ** ((i + 0.5) / count)) for i in range(count)]


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that arrive as soon as one of `concurrency` others is done.

    The seed decides on the order of the lengths and on the token ids, not on how many tokens
    there are: the lengths are the quantiles of their distribution.
    """

    num_requests: int
    seed: int
    prompt: Range
    output: Range
    concurrency: int

    def under(self, load: int) -> Workload:
        """Its lengths, `load` requests at a time and enough of them for each."""
        num_requests = max(MIN_REQUESTS, REQUESTS_PER_SEAT * load)
        return replace(self, num_requests=num_requests, concurrency=load)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, answered greedily with exactly `num_output_tokens`."""

    prompt_token_ids: list[int]
    num_output_tokens: int

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + self.num_output_tokens


WORKLOADS = {
    "W1": Workload(64, 0, Range(16, 512), Range(16, 256), concurrency=16),
    "W3": Workload(4, 3, Range(128, 128), Range(128, 128), concurrency=1),
    "decode-heavy": Workload(128, 1, Range(16, 64), Range(16, 512), concurrency=16),
    "decode": Workload(16, 5, Range(32, 32), Range(96, 96), concurrency=16),
    "512/128": Workload(500, 6, Range(512, 512), Range(128, 128), concurrency=500),  # for a GPU
    "tiny": Workload(8, 4, Range(4, 24), Range(4, 16), concurrency=3),  # for the tests
    "8/4": Workload(2, 6, Range(8, 8), Range(4, 4), concurrency=2),  # for those that interpret
}


def draw(workload: Workload, vocab_size: int, limit: int | None = None) -> list[Request]:
    """The workload's requests, or the first `limit` of them."""
    rng = random.Random(workload.seed)
    prompts = workload.prompt.log_uniform(workload.num_requests)
    outputs = workload.output.log_uniform(workload.num_requests)
    rng.shuffle(prompts)
    rng.shuffle(outputs)
    pairs = list(zip(prompts, outputs, strict=True))[:limit]
    return list(starmap(lambda p, o: Request(_token_ids(rng, p, vocab_size), o), pairs))


def warm_up(workload: Workload, vocab_size: int) -> list[Request]:
    """A few short requests with other tokens, so that nothing is done for the first time later."""
    rng = random.Random(-1 - workload.seed)
    prompt = min(workload.prompt.high, MAX_WARM_UP_LEN)
    output = min(workload.output.high, MAX_WARM_UP_LEN)
    lengths = [(prompt, max(1, output - i)) for i in range(workload.concurrency)]
    return [Request(_token_ids(rng, p, vocab_size), o) for p, o in lengths]


def check_fits(requests: list[Request], max_model_len: int) -> None:
    """Raises BenchmarkError when one is longer than the model takes."""
    longest = max(request.num_tokens for request in requests)
    if longest > max_model_len:
        raise BenchmarkError(
            f"the workload has a request of {longest} tokens, prompt and answer together, and the "
            f"model takes {max_model_len}: raise --max-model-len or choose another workload"
        )


def _token_ids(rng: random.Random, count: int, vocab_size: int) -> list[int]:
    return [rng.randrange(FIRST_ORDINARY_ID, vocab_size) for _ in range(count)]
