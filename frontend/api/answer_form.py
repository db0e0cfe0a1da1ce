"""How one HTTP request's answer looks, whichever frontend writes it."""

from __future__ import annotations

import hashlib
import time
from importlib.metadata import version
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ...shared.errors import StreamNotFoundError
from ...shared.messages import MAX_CONTEXT_BYTES, Greeting
from ...shared.sampling_params import NumLogprobs
from ..response_id import Endpoint, ResponseId

MAX_CHOICES = 128  # of one request, far less than all may have in flight

MAX_TOOLS = 128
MAX_TOOL_NAME = 64

MAX_REPEATED_BYTES = 4096  # what else is in a form leaves more than this, at its largest
# What may be too large for a form, and what is told instead.
MAY_BE_LARGE: dict[str, Any] = {
    "instructions": None,
    "metadata": {},
    "text": None,
    "tool_choice": "auto",
    "tools": [],
}

ToolName = Annotated[str, Meta(max_length=MAX_TOOL_NAME)]
Json = dict[str, Any]


class AnswerForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Travels with the request as its context, so that another frontend can go on writing."""

    endpoint: Endpoint
    created: int  # Unix seconds
    model: Annotated[str, Meta(max_length=256)]
    system_fingerprint: Annotated[str, Meta(max_length=64)]
    num_choices: Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)]  # choices for each prompt
    num_prompt_tokens: int  # of all prompts
    num_best: Annotated[int, Meta(ge=0, le=MAX_CHOICES)] = 0  # told for each prompt; 0: all
    has_usage: bool = False  # in a stream
    has_receipt: bool = False  # in the usage
    tells_cached: bool = False  # how much of the prompts was cached
    survives_hangup: bool = False
    body_digest: Annotated[str, Meta(max_length=64)] = ""  # of what came with an Idempotency-Key
    echo: bool = False  # the prompt, before the answer
    num_logprobs: NumLogprobs = -1  # of the answer's tokens, and the echo's
    num_prompt_logprobs: NumLogprobs = -1
    returns_token_ids: bool = False
    skips_special_tokens: bool = True
    tool_format: Annotated[str, Meta(max_length=32)] = ""  # how calls of tools are written
    tool_names: Annotated[tuple[ToolName, ...], Meta(max_length=MAX_TOOLS)] = ()  # to be called
    reasoning_format: Annotated[str, Meta(max_length=32)] = ""
    is_reasoning: bool = False  # the prompt ends amid thoughts
    grammar_param: Annotated[str, Meta(max_length=32)] = ""  # which field constrains the output
    repeated: Json = {}  # of the request, in the answer; as `what_fits` makes it

    @property
    def tells_tokens(self) -> bool:
        return self.tells_prompt or self.num_logprobs >= 0

    @property
    def tells_prompt(self) -> bool:
        return self.echo or self.returns_token_ids or self.num_prompt_logprobs >= 0

    def encode(self) -> bytes:
        context = msgspec.json.encode(self)
        assert len(context) <= MAX_CONTEXT_BYTES, "every field is bounded"
        return context

    @classmethod
    def decode(cls, context: bytes) -> AnswerForm:
        """Raises StreamNotFoundError for what no frontend of this version wrote."""
        try:
            return msgspec.json.decode(context, type=cls)
        except msgspec.DecodeError:
            raise StreamNotFoundError(
                "this request was not made over HTTP, or by another version of chairlift"
            ) from None

    def head(self, response_id: ResponseId) -> Json:
        """What every chunk repeats; `object` is for the shape to say."""
        return {
            "id": str(response_id),
            "object": "",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


def what_fits(repeated: Json) -> Json:
    """For a form: without the largest, until the rest is small enough."""
    kept = dict(repeated)
    large = {name: len(msgspec.json.encode(kept[name])) for name in MAY_BE_LARGE if name in kept}
    for name in sorted(large, key=large.__getitem__, reverse=True):
        if len(msgspec.json.encode(kept)) <= MAX_REPEATED_BYTES:
            break
        kept[name] = MAY_BE_LARGE[name]
    return kept


def now() -> int:
    return int(time.time())


def system_fingerprint(greeting: Greeting) -> str:
    """Changes with whatever may change the answers."""
    served = (
        f"{version('chairlift')} {greeting.model} {greeting.max_model_len} "
        f"{greeting.tokenizer.hex()} {greeting.chat_template.hex()}"
    )
    return "fp_" + hashlib.sha256(served.encode()).hexdigest()[:10]
