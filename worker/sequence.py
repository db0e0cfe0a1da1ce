"""One request as the worker sees it while it runs."""

from __future__ import annotations

from collections import Counter
from enum import Enum

from ..shared.messages import Finish
from ..shared.sampling_params import SamplingParams
from .detokenizer import Detokenizer, NoText


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """The mutable state of one request.

    Owns its tokens (prompt, then output), its text and its place in the KV cache. There is no
    prefill and no decode: `num_computed_tokens` catches up with `num_tokens`, and when it has,
    the next token is sampled. `block_table` is written by the BlockManager alone.
    """

    def __init__(
        self,
        request_id: bytes,
        prompt_token_ids: list[int],
        params: SamplingParams,
        detokenizer: Detokenizer | NoText | None = None,
        cache_salt: bytes = b"",
    ) -> None:
        assert prompt_token_ids, "an empty prompt has nothing to continue"
        self.request_id = request_id
        self.params = params
        self.cache_salt = cache_salt
        self.num_prompt_tokens = len(prompt_token_ids)
        self.token_ids = list(prompt_token_ids)
        self.detokenizer = detokenizer or NoText()
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0  # of the prompt, found in the prefix cache when first admitted
        self.block_table: list[int] = []
        self.block_digests: list[bytes] = []  # of full blocks, as far as anybody asked
        self.num_known_blocks = 0  # of the table: those that the prefix cache has seen
        self.status = Status.WAITING
        self.is_suspect = False  # was in a step that killed the worker: first has to run alone
        self.is_protected = False  # preempted, and no new token since: not to be hit again
        self.output_counts: Counter[int] = Counter()
        self.finish: Finish | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def max_num_tokens(self) -> int:
        """Prompt and the longest output that the request may have."""
        return self.num_prompt_tokens + self.params.max_tokens

    def append(self, token_id: int) -> None:
        """Takes the next output token."""
        self.token_ids.append(token_id)
        self.output_counts[token_id] += 1
        self.is_protected = False
