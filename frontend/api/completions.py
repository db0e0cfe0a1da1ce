"""POST /v1/completions: text or token ids in, their continuations out.

Reference: https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from starlette.responses import Response

from ...shared.errors import InvalidRequestError
from ..response_id import Endpoint
from .answer import GeneratedAnswer
from .body import read_json, validated
from .choices_request import ChoicesRequest
from .context import Context
from .opening import submission
from .prompts import Prompts, encoded
from .reply_plan import ReplyPlan
from .request_body import U31
from .schema import documented

MAX_BEST_OF = 20
DEFAULT_MAX_TOKENS = 16


class CompletionRequest(ChoicesRequest):
    """POST /v1/completions."""

    endpoint: ClassVar[Endpoint] = "completions"

    prompt: Annotated[
        Prompts, Field(description="Text or token ids, or several of them for a choice each.")
    ]
    max_tokens: Annotated[
        int | None,
        Field(
            ge=0,
            le=U31,
            description=f"Without it {DEFAULT_MAX_TOKENS}. 0 goes with echo: the prompt alone.",
        ),
    ] = None
    logprobs: Annotated[
        int | None,
        Field(
            ge=0,
            le=5,
            description="Tell each token's log probability, and so many of the likeliest.",
        ),
    ] = None
    echo: Annotated[bool, Field(description="Tell the prompt before the answer.")] = False
    best_of: Annotated[
        int | None,
        Field(ge=1, le=MAX_BEST_OF, description="Generate so many, and tell the n likeliest."),
    ] = None

    @model_validator(mode="after")
    def _best_are_enough(self) -> Self:
        if self.best_of is not None and self.best_of < self.n:
            message = f"best_of {self.best_of} is less than n {self.n}"
            raise InvalidRequestError(message, param="best_of")
        if self.num_candidates > self.n and self.stream:
            message = "best_of is not for streams: the best are known when all are complete"
            raise InvalidRequestError(message, param="best_of")
        if self.max_tokens == 0 and not self.echo:
            message = "max_tokens 0 asks for nothing: ask for echo, or for tokens"
            raise InvalidRequestError(message, param="max_tokens")
        return self

    @property
    def num_candidates(self) -> int:
        return self.n if self.best_of is None else self.best_of

    @property
    def echoes(self) -> bool:
        return self.echo

    @property
    def num_told_logprobs(self) -> int:
        return -1 if self.logprobs is None else self.logprobs

    @property
    def num_logprobs(self) -> int:
        return max(self.num_told_logprobs, 0 if self.num_candidates > self.n else -1)

    @property
    def num_prompt_logprobs(self) -> int:
        of_echo = self.num_told_logprobs if self.echo else -1
        at_least = 0 if self.max_tokens == 0 else -1  # what makes the worker read the prompt
        return max(super().num_prompt_logprobs, of_echo, at_least)

    @property
    def default_max_tokens(self) -> int:
        return DEFAULT_MAX_TOKENS


def completions_router(context: Context) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions", **documented(CompletionRequest))
    async def create_completion(request: Request) -> Response:
        """Continue a prompt."""
        asked = validated(CompletionRequest, await read_json(request, context.settings))
        served = context.served(asked.model)
        prompts = await encoded(asked.prompt, served, param="prompt")
        plan = ReplyPlan(grammar=asked.grammar, grammar_param=asked.grammar_param)
        return GeneratedAnswer(context, submission(served, request, asked, prompts, plan))

    return router
