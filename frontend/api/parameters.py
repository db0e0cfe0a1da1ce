"""Parameters that we have no use for: which values of them change nothing, which are refused.

A parameter that would change the answer is refused by name unless its value is the one that
changes nothing; what can't change the answer is accepted whatever it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from ...shared.errors import InvalidRequestError

Neutral = Mapping[str, tuple[Any, ...]]

HAS_NO_EFFECT = "Accepted, and changes nothing."  # what the documentation says of them
HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
    }
)

# fmt: off
_WITHOUT_NEUTRAL_VALUE = (
    "add_special_tokens", "allowed_token_ids", "audio", "chat_template",
    "guided_decoding_backend", "json_schema", "lora_path", "moderation", "prediction", "reasoning",
    "regex", "truncate_prompt_tokens", "verbosity", "web_search_options",
)
_NEUTRAL_WHEN_FALSE = (
    "continue_final_message", "early_stopping", "echo", "return_tokens_as_token_ids", "store",
    "use_beam_search",
)
_NEUTRAL_WHEN_EMPTY = ("documents", "functions", "logits_processors", "tools")
# fmt: on

# The values under which the parameter says nothing; null always is one of them.
NEUTRAL: Neutral = {
    **dict.fromkeys(_WITHOUT_NEUTRAL_VALUE, ()),
    **dict.fromkeys(_NEUTRAL_WHEN_FALSE, (False,)),
    **dict.fromkeys(_NEUTRAL_WHEN_EMPTY, ([],)),
    "add_generation_prompt": (True,),
    "chat_template_kwargs": ({},),
    "dry_multiplier": (0,),
    "function_call": ("none",),
    "grammar": ("",),
    "include_reasoning": (True, False),
    "length_penalty": (1,),
    "mirostat": (0,),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "top_logprobs": (0,),
    "typical_p": (1,),
    "xtc_probability": (0,),
}

# In an assistant message that a client sends back as it came.
NEUTRAL_IN_MESSAGE: Neutral = {
    **dict.fromkeys(("audio", "function_call", "refusal"), ()),
    "annotations": ([],),
}
HARMLESS_IN_MESSAGE = frozenset({"id", "parsed"})  # as the official client's `parse` adds
HARMLESS_IN_CALL = frozenset({"index", "parsed_arguments"})


def without_neutral(
    values: Mapping[str, Any],
    known: frozenset[str],
    neutral: Neutral = NEUTRAL,
    harmless: frozenset[str] = HARMLESS,
) -> dict[str, Any]:
    """Less what changes nothing: null means the default. Unknown names stay for the schema.

    Raises InvalidRequestError for a parameter that asks for something we don't do.
    """
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if name in known:
            if value is not None:
                kept[name] = value
        elif name in neutral:
            if value is not None and not any(_is_same(value, one) for one in neutral[name]):
                raise InvalidRequestError(
                    f"{name} is not supported here: leave it out",
                    param=name,
                    code="unsupported_parameter",
                )
        elif name not in harmless:
            kept[name] = value
    return kept


class Part(BaseModel):
    """An object in a request. The same holds for its fields as for those of a body."""

    model_config = ConfigDict(strict=True, extra="forbid")
    neutral: ClassVar[Neutral] = {}
    harmless: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        known = frozenset(one.alias or name for name, one in cls.model_fields.items())
        try:
            return without_neutral(values, known, cls.neutral, cls.harmless)
        except InvalidRequestError as error:
            told = {"message": str(error), "field": error.param}
            raise PydanticCustomError("unsupported_parameter", "{message}", told) from None


def problem_at(field: str, message: str) -> PydanticCustomError:
    """For a validator of an object that has found one of its fields to be wrong."""
    return PydanticCustomError("misplaced", "{message}", {"message": message, "field": field})


def _is_same(value: Any, neutral: Any) -> bool:
    """As JSON has it: 1 is 1.0, but to Python it is True as well."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
