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
from .response_id import Endpoint, ResponseId

MAX_CHOICES = 128  # of one request, far less than all may have in flight

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
    has_usage: bool = False  # in a stream
    tells_cached: bool = False  # how much of the prompts was cached
    survives_hangup: bool = False
    body_digest: Annotated[str, Meta(max_length=64)] = ""  # of what came with an Idempotency-Key

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


def now() -> int:
    return int(time.time())


def system_fingerprint(greeting: Greeting) -> str:
    """Changes with whatever may change the answers."""
    served = (
        f"{version('chairlift')} {greeting.model} {greeting.max_model_len} "
        f"{greeting.tokenizer.hex()} {greeting.chat_template.hex()}"
    )
    return "fp_" + hashlib.sha256(served.encode()).hexdigest()[:10]
