"""Parameters that we have no use for: which values of them change nothing, which are refused.

A parameter that would change the answer is refused by name unless its value is the one that
changes nothing; what can't change the answer is accepted whatever it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...shared.errors import InvalidRequestError

HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",  # tools themselves are refused
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
    }
)

# The values under which the parameter says nothing; null always is one of them.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (),
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "cache_salt": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "dry_multiplier": (0, 0.0),
    "early_stopping": (False,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "grammar": ("",),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_reasoning": (True, False),
    "include_stop_str_in_output": (False,),
    "json_schema": (),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "logprobs": (False,),
    "lora_path": (),
    "mirostat": (0,),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "priority": (0,),
    "prompt_logprobs": (),
    "reasoning": (),
    "reasoning_effort": ("none",),
    "regex": (),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "typical_p": (1, 1.0),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
    "xtc_probability": (0, 0.0),
}

# In an assistant message that a client sends back as it came.
NEUTRAL_IN_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning_content": ("",),
    "refusal": (),
    "tool_calls": ([],),
}


def without_neutral(
    values: Mapping[str, Any],
    known: frozenset[str],
    neutral: Mapping[str, tuple[Any, ...]] = NEUTRAL,
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


def _is_same(value: Any, neutral: Any) -> bool:
    """Equal and of one type: to Python, 0 is False and 1 is True."""
    return type(value) is type(neutral) and value == neutral
