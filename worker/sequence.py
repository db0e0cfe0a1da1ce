"""One request as the worker sees it while it runs."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from functools import cached_property

from ..shared.messages import Extras, Finish
from ..shared.sampling_params import SamplingParams
from ..shared.steps import Receipt, request_hash
from .detokenizer import Detokenizer, NoText
from .grammar import Constraint
from .journey import Journey
from .pool import Pool
from .scores import Scores


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
        self.constraint: Constraint | None = None  # what its grammar allows, once it is compiled
        self.scores = Scores(params, len(prompt_token_ids))
        self.pool: Pool | None = None  # where an embedding is wanted
        self.num_computed_tokens = 0  # by steps that have landed or are in flight
        self.num_pending_tokens = 0  # sampled in flight: there, but not known yet
        self.num_flights = 0  # steps in flight that it is in
        self.num_served_tokens = 0  # computed for it in all, once more after a preemption
        self.num_cached_tokens = 0  # of the prompt, found in the prefix cache when first admitted
        self.block_table: list[int] = []
        self.block_digests: list[bytes] = []  # of full blocks, as far as anybody asked
        self.num_known_blocks = 0  # of the table: those that the prefix cache has seen
        self.status = Status.WAITING
        self.priority = 0  # lower goes first
        self.tenant = b""  # on whose account it runs
        self.place: tuple[float, int] = (0, 0)  # the least goes first; written by the Scheduler
        self.is_suspect = False  # was in a step that killed the worker: first has to run alone
        self.is_protected = False  # preempted, and no new token since: not to be hit again
        self.output_counts: Counter[int] = Counter()
        self.journey = Journey()
        self.finish: Finish | None = None

    @cached_property
    def request_hash(self) -> bytes:
        return request_hash(self.request_id)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def waits_to_begin(self) -> bool:
        """Whether nothing was computed for it yet; one that was preempted has begun."""
        is_waiting = self.status is Status.WAITING and not self.is_protected
        return is_waiting and self.finish is None

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_bytes(self) -> int:
        """About what its tokens, its text and their scores take."""
        characters = len(self.detokenizer.text)
        return 16 * self.num_tokens + characters + self.scores.num_bytes

    @property
    def num_ready_tokens(self) -> int:
        """Output tokens that may be handed out: with log probabilities, if those are wanted."""
        if self.finish is not None:
            return self.num_output_tokens
        return self.scores.num_ready(self.num_output_tokens)

    def extras(self, start: int, end: int) -> Extras | None:
        """What output tokens `start` to `end` have besides their text; before the last mostly
        nothing is wanted."""
        params = self.params
        is_first, is_last = start == 0, self.finish is not None
        wants_scores = max(params.num_logprobs, params.num_prompt_logprobs) >= 0
        if not (is_last or wants_scores or self.pool is not None):
            return None
        extras = Extras(
            self.scores.of_output(start, end),
            self.scores.of_prompt if is_first else b"",
            self.embedding if is_last else b"",
            self.receipt if is_last else None,
        )
        return extras if is_last or extras.logprobs or extras.prompt_logprobs else None

    @property
    def receipt(self) -> Receipt | None:
        """Of one that an engine has ended; a ghost of static batching has none."""
        if self.journey.ended is None:
            return None
        return self.journey.receipt(
            self.num_prompt_tokens, self.num_cached_tokens, self.num_output_tokens
        )

    @property
    def num_planned_tokens(self) -> int:
        """Those that it has, and those that are pending."""
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Nothing is left to compute where the pending token is its last, whatever it turns out to
        be; nor, for the time being, where the next one can't be chosen without knowing it."""
        if self.num_pending_tokens and (self.is_full_with_pending or self.reads_its_tokens):
            return 0
        if self.num_flights and self.lacks_scores:
            return 0
        return self.num_planned_tokens - self.num_computed_tokens

    @property
    def lacks_scores(self) -> bool:
        """Whether tokens that it has are to be told with their log probabilities, and are not yet:
        which ones a step owes is counted by what has landed."""
        index = self.scores.next_index
        return index is not None and index < self.num_tokens

    @property
    def is_full_with_pending(self) -> bool:
        return self.num_planned_tokens >= self.max_num_tokens

    @property
    def reads_its_tokens(self) -> bool:
        """Whether the worker's own code has to see each token before the next can be chosen."""
        params = self.params
        return params.grammar is not None or bool(params.bad_words)

    @property
    def is_prompt_all(self) -> bool:
        """Whether no token is wanted: the prompt's scores are, or its embedding."""
        return self.params.max_tokens == 0

    @property
    def wants_score(self) -> bool:
        """Whether the next token is to be told with its log probability."""
        return self.params.num_logprobs >= 0

    @property
    def embedding(self) -> bytes:
        """Empty unless one is wanted."""
        return self.pool.embedding(self.num_tokens) if self.pool is not None else b""

    @property
    def max_cached_tokens(self) -> int:
        """How many of its first tokens may be found in the prefix cache instead of computed."""
        if self.pool is not None and self.pool.pooling == "mean":
            return 0
        if self.scores.next_index is not None:
            return min(self.scores.next_index, self.num_tokens) - 1
        return self.num_tokens - 1

    @property
    def max_num_tokens(self) -> int:
        """Prompt and the longest output that the request may have."""
        return self.num_prompt_tokens + self.params.max_tokens

    def append(self, token_id: int) -> None:
        """Takes the next output token."""
        self.token_ids.append(token_id)
        self.output_counts[token_id] += 1
        self.is_protected = False
