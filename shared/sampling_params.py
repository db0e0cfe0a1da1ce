"""How a request wants its tokens chosen and when it wants to end."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .errors import InvalidRequestError

MAX_STOP_STRINGS = 16
MAX_LOGIT_BIAS = 1024
MAX_SEED = 2**63 - 1
MAX_LOGPROBS = 20
MAX_GRAMMAR_BYTES = 64 << 10
MAX_BAD_WORD_TOKENS = 32

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
NumLogprobs = Annotated[int, Meta(ge=-1, le=MAX_LOGPROBS)]
GrammarKind = Literal["json_schema", "regex", "lark", "choice"]


class Grammar(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the output has to look like.

    `source` is a JSON schema, a regular expression, a grammar in Lark's notation as llguidance
    reads it, or a JSON list of strings to choose from. A `frame` is what stands around it, in
    Lark's notation, where `@output` is the place of it. Raises ValueError when one of both has more
    than MAX_GRAMMAR_BYTES of UTF-8.
    """

    kind: GrammarKind
    source: Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_BYTES)]
    frame: Annotated[str, Meta(max_length=MAX_GRAMMAR_BYTES)] = ""

    def __post_init__(self) -> None:
        if max(len(self.source.encode()), len(self.frame.encode())) > MAX_GRAMMAR_BYTES:
            raise ValueError(f"a grammar has at most {MAX_GRAMMAR_BYTES} bytes")

    @property
    def num_bytes(self) -> int:
        return len(self.source.encode()) + len(self.frame.encode())


class SamplingParams(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True
):
    """Immutable; the same type is checked by the client and again by the worker.

    Filters apply in this order: the operator's processors, logit_bias, penalties, min_tokens,
    bad_words, grammar, temperature, min_p, top_k, top_p. `top_k` 0 and `temperature` 0 mean no
    limit and greedy. `seed` and the index of the output token are all the randomness there is.
    `max_tokens` 0 asks for what the model makes of the prompt alone. A number of logprobs tells how
    many of the likeliest tokens come with each token's own, -1 that none are wanted.
    """

    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)] = 0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=2)] = 1.0  # less would overflow
    logit_bias: Annotated[tuple[tuple[TokenId, Bias], ...], Meta(max_length=MAX_LOGIT_BIAS)] = ()
    stop: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...],
        Meta(max_length=MAX_STOP_STRINGS),
    ] = ()
    stop_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=128)] = ()
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    ignore_eos: bool = False
    num_logprobs: NumLogprobs = -1
    num_prompt_logprobs: NumLogprobs = -1
    bad_words: Annotated[
        tuple[
            Annotated[tuple[TokenId, ...], Meta(min_length=1, max_length=MAX_BAD_WORD_TOKENS)], ...
        ],
        Meta(max_length=128),
    ] = ()  # token sequences that don't come
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    grammar: Grammar | None = None

    @property
    def contradiction(self) -> str:
        """What can't be had together; empty when everything can."""
        if self.grammar is None:
            return ""
        others = {
            "min_tokens": self.min_tokens > 0,
            "ignore_eos": self.ignore_eos,
            "bad_words": bool(self.bad_words),
        }
        names = ", ".join(name for name, is_set in others.items() if is_set)
        return f"grammar: alone it says when the output ends, so leave out {names}" if names else ""

    @property
    def is_greedy(self) -> bool:
        """Temperatures below 1e-5 would only overflow fp32 on the way to the same token."""
        return self.temperature < 1e-5

    @property
    def has_penalties(self) -> bool:
        return bool(
            self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        )


def checked_sampling_params(**values: Any) -> SamplingParams:
    """SamplingParams from plain values; raises InvalidRequestError naming the parameter."""
    unknown = sorted(values.keys() - set(SamplingParams.__struct_fields__))
    if unknown:
        known = ", ".join(SamplingParams.__struct_fields__)
        raise InvalidRequestError(
            f"unknown sampling parameter {unknown[0]!r}; known are {known} (priorities and time "
            "limits are RequestOptions, which `generate` takes)",
            param=unknown[0],
            code="unknown_parameter",
        )
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    if isinstance(values.get("logit_bias"), dict):
        values["logit_bias"] = tuple(values["logit_bias"].items())
    try:
        return checked(SamplingParams(**values))
    except TypeError as error:
        raise InvalidRequestError(str(error)) from None


def checked(params: SamplingParams) -> SamplingParams:
    """The same, since a constructor checks nothing; raises InvalidRequestError."""
    try:
        converted = msgspec.convert(msgspec.to_builtins(params), SamplingParams)
    except msgspec.ValidationError as error:
        raise _named(error) from None
    if converted.contradiction:
        raise InvalidRequestError(converted.contradiction, param="grammar")
    return converted


def _named(error: msgspec.ValidationError) -> InvalidRequestError:
    """msgspec tells a position, `$[3]...`; the caller wants to hear a name."""
    message, _, path = str(error).partition(" - at `$[")
    position = re.match(r"\d+", path)
    if position is None:
        return InvalidRequestError(str(error))
    name = SamplingParams.__struct_fields__[int(position.group())]
    return InvalidRequestError(f"{name}: {message}".replace("`", ""), param=name)
