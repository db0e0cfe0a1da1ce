"""What all generating routes take in, and how it becomes sampling parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

from msgspec.structs import replace
from pydantic import Field, model_validator

from ...shared.errors import ContextLengthError, InvalidRequestError
from ...shared.messages import Greeting
from ...shared.sampling_params import (
    MAX_BAD_WORD_TOKENS,
    MAX_SEED,
    SamplingParams,
    checked_sampling_params,
)
from ...shared.tokenizer import Tokenizer
from ..response_id import Endpoint
from .answer_form import MAX_CHOICES, Json
from .parameters import HARMLESS, NEUTRAL, Neutral
from .reply_plan import ReplyPlan
from .request_body import U31, WorkerRequestBody

# Made from other fields or with a second look; the rest passes under its own name.
MAX_SCORES = 1 << 20  # log probabilities of the prompts, of all choices of a request
COMPUTED = frozenset(
    {"max_tokens", "seed", "top_k", "logit_bias", "bad_words", "grammar", "skip_special_tokens"}
)

TokenCount = Annotated[int, Field(ge=1, le=U31)]
TokenId = Annotated[int, Field(ge=0, le=U31)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]


@dataclass(frozen=True, slots=True)
class Choice:
    """One generation of the answer."""

    index: int
    prompt_token_ids: list[int]
    params: SamplingParams


class GenerationRequest(WorkerRequestBody):
    """What all generating routes understand. What only some do they say in its properties."""

    neutral: ClassVar[Neutral] = NEUTRAL
    harmless: ClassVar[frozenset[str]] = HARMLESS
    endpoint: ClassVar[Endpoint]

    stream: Annotated[bool, Field(description="Tell it as events while it comes.")] = False
    temperature: Annotated[float, Field(ge=0, le=2, description="0 takes the likeliest token.")] = (
        1.0
    )
    top_p: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Of the likeliest tokens, as many as have this probability together.",
        ),
    ] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=U31, description="0 and -1: no limit.")] = 0
    min_p: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Only tokens with at least this share of the likeliest one's probability.",
        ),
    ] = 0.0
    seed: Annotated[
        int | None, Field(ge=-(2**63), le=2**63 - 1, description="The same seed, the same answer.")
    ] = None
    presence_penalty: Annotated[Penalty, Field(description="Once for each token that came.")] = 0.0
    frequency_penalty: Annotated[Penalty, Field(description="For every time that it came.")] = 0.0
    repetition_penalty: Annotated[
        float,
        Field(
            ge=0.01,
            le=2,
            description="Above 1, less of what was there, the prompt included.",
        ),
    ] = 1.0
    logit_bias: dict[
        Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Annotated[float, Field(ge=-100, le=100)]
    ] = Field(
        default={},
        max_length=1024,
        description="Added to the logits of these token ids.",
        json_schema_extra={"additionalProperties": False},
    )
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] = Field(
        default=[], description="The answer ends before these."
    )
    stop_token_ids: Annotated[
        list[TokenId], Field(max_length=128, description="The answer ends at these.")
    ] = Field(default=[])
    min_tokens: Annotated[int, Field(ge=0, le=U31, description="No end before so many.")] = 0
    ignore_eos: Annotated[
        bool, Field(description="Go on after the end of the text, up to the limit.")
    ] = False
    bad_words: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]],
        Field(max_length=64, description="Don't come, at the beginning or after a space."),
    ] = Field(default=[])
    skip_special_tokens: Annotated[bool, Field(description="Leave them out of the text.")] = True
    include_stop_str_in_output: Annotated[
        bool, Field(description="Tell the stop string as well.")
    ] = False
    resumable: Annotated[
        bool,
        Field(
            description="Go on when the connection is cut: for a while the stream can be continued "
            "at /v1/streams/{id}. Without it, hanging up cancels."
        ),
    ] = False

    queue_updates: Annotated[
        bool,
        Field(
            description="In a stream: tell its place in the queue while it waits, in comments "
            "(`: queue ...`)."
        ),
    ] = False

    @model_validator(mode="after")
    def _is_stream_where_needed(self) -> Self:
        if self.queue_updates and not self.stream:
            message = "queue_updates is for streams: set stream to true, or leave it out"
            raise InvalidRequestError(message, param="queue_updates")
        if self.resumable and not self.stream:
            message = "resumable is for streams: set stream to true, or send an Idempotency-Key"
            raise InvalidRequestError(message, param="resumable")
        return self

    def check_agrees(self, param: str) -> None:
        """Raises InvalidRequestError for what can't be had when the field `param` constrains the
        output."""
        for name in ("min_tokens", "ignore_eos", "bad_words") if param else ():
            if getattr(self, name):
                message = f"{name} contradicts {param}, which alone says how the output may go on"
                raise InvalidRequestError(message, param=name)

    @property
    def output_limit(self) -> int | None:
        """Tokens, if the caller says how many."""
        return None

    @property
    def has_usage(self) -> bool:
        """Whether the usage was asked for in a stream."""
        return False

    @property
    def num_told(self) -> int:
        """Answers to each prompt."""
        return 1

    @property
    def num_candidates(self) -> int:
        """Generations for each prompt."""
        return self.num_told

    @property
    def echoes(self) -> bool:
        return False

    @property
    def repeated(self) -> Json:
        """What the answer repeats of the request."""
        return {}

    @property
    def returns_token_ids(self) -> bool:
        return False

    @property
    def num_told_logprobs(self) -> int:
        """How many of the likeliest tokens are told with each; -1: no logprobs at all."""
        return -1

    @property
    def num_logprobs(self) -> int:
        """As many are needed."""
        return self.num_told_logprobs

    @property
    def num_told_prompt_logprobs(self) -> int:
        return -1

    @property
    def num_prompt_logprobs(self) -> int:
        """As many are needed."""
        return self.num_told_prompt_logprobs

    @property
    def default_max_tokens(self) -> int:
        """Without a limit of the caller's: the rest of the context."""
        return U31

    def choices(
        self,
        prompts: list[list[int]],
        greeting: Greeting,
        tokenizer: Tokenizer,
        plan: ReplyPlan,
        default_seed: int,
    ) -> list[Choice]:
        """Each with a seed of its own; raises InvalidRequestError."""
        self.check_agrees(plan.grammar_param)
        check_ids("logit_bias", map(int, self.logit_bias), greeting.vocab_size)
        check_ids("stop_token_ids", self.stop_token_ids, greeting.vocab_size)
        n = self.num_candidates
        if len(prompts) * n > MAX_CHOICES:
            message = f"{len(prompts)} prompts times n {n} is more than {MAX_CHOICES} answers"
            raise InvalidRequestError(f"{message}: send several requests", param="n")
        seed = default_seed if self.seed is None else self.seed
        common = self._params(tokenizer, plan)
        num_scores = n * sum(map(len, prompts)) * (common.num_prompt_logprobs + 1)
        if num_scores > MAX_SCORES:
            message = f"{num_scores} log probabilities of prompts are more than {MAX_SCORES}"
            raise InvalidRequestError(
                f"{message}: send fewer prompts, or ask for fewer", param=self.prompt_field
            )
        choices = []
        for number, prompt in enumerate(prompts):
            max_tokens = self._room(prompt, greeting.max_model_len)
            for i in range(n):
                params = replace(common, max_tokens=max_tokens, seed=(seed + i) & MAX_SEED)
                choices.append(Choice(number * n + i, prompt, params))
        return choices

    def _room(self, prompt: list[int], max_model_len: int) -> int:
        """Tokens to generate; what the caller asks for must fit, a default is cut to fit."""
        if not prompt:
            raise InvalidRequestError("the prompt has no tokens", param=self.prompt_field)
        asked = self.output_limit
        room = max_model_len - len(prompt)
        if room < (1 if asked is None else asked):
            wanted = f" and {asked} were asked for" if asked else ""
            raise ContextLengthError(
                f"this model takes {max_model_len} tokens, prompt and answer together; the prompt "
                f"has {len(prompt)}{wanted}: shorten the prompt or the answer",
                param=self.prompt_field,
            )
        return min(room, self.default_max_tokens) if asked is None else asked

    @property
    def prompt_field(self) -> str:
        return "prompt"

    def _params(self, tokenizer: Tokenizer, plan: ReplyPlan) -> SamplingParams:
        """Without what the choices differ in."""
        names = set(SamplingParams.__struct_fields__) - COMPUTED
        values = {name: getattr(self, name) for name in names}
        values["top_k"] = max(self.top_k, 0)
        values["logit_bias"] = {int(key): bias for key, bias in self.logit_bias.items()}
        values["bad_words"] = _token_sequences(self.bad_words, tokenizer)
        values["grammar"] = plan.grammar
        values["skip_special_tokens"] = self.skip_special_tokens and not plan.has_special_tags
        return checked_sampling_params(max_tokens=0, **values)


def _token_sequences(words: Iterable[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Of the words as they begin a text, and as they come after a space."""
    sequences: dict[tuple[int, ...], None] = {}
    for number, word in enumerate(words):
        for text in (word, f" {word.lstrip()}"):
            ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
            if len(ids) > MAX_BAD_WORD_TOKENS:
                limits = f"{len(ids)} tokens, at most {MAX_BAD_WORD_TOKENS} may be"
                raise InvalidRequestError(f"bad_words[{number}] has {limits}", param="bad_words")
            if ids:
                sequences[tuple(ids)] = None
    return tuple(sequences)


def check_ids(param: str, token_ids: Iterable[int], vocab_size: int) -> None:
    """Raises InvalidRequestError for an id that the model has no token for."""
    for token_id in token_ids:
        if token_id >= vocab_size:
            message = f"{param}: token id {token_id} is not below the vocabulary's {vocab_size}"
            raise InvalidRequestError(message, param=param)
