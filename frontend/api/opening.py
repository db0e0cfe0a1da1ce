"""How the generations of an answer come to run for us: submitted, or attached to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, replace

from starlette.requests import Request

from ...shared.errors import InvalidRequestError, RequestIdConflictError, StreamNotFoundError
from ...shared.tokenizer import Tokenizer
from ..client import AsyncClient
from ..request_options import RequestOptions
from ..response_id import ResponseId
from ..token_stream import TokenStream
from .answer_form import AnswerForm, Json, now, system_fingerprint, what_fits
from .context import Served
from .generation_request import Choice, GenerationRequest
from .idempotency import HEADER, body_digest, key_reused
from .position import Position
from .receipts import wants_receipt
from .reply_plan import ReplyPlan


@dataclass(frozen=True, slots=True)
class OpenedAnswer:
    """The streams of an answer's choices, less those that are gone and that the reader has."""

    response_id: ResponseId
    form: AnswerForm
    streams: dict[int, TokenStream]
    is_resumable: bool  # the worker keeps them when we go
    prompts: dict[int, list[int]]  # of the choices
    repeated: Json  # of the request, in the answer
    is_watched: bool = False  # by a reader who must not stop them
    is_new: bool = True  # timed from the start


@dataclass(frozen=True, slots=True)
class Submission:
    """What one POST asks of the worker."""

    response_id: ResponseId
    form: AnswerForm
    choices: list[Choice]
    options: RequestOptions
    is_stream: bool
    repeated: Json  # of the request, in the answer
    tokenizer: Tokenizer  # of the prompts

    def open(self, client: AsyncClient) -> OpenedAnswer:
        """Raises what `AsyncClient.generate` raises, then nothing of it runs; HttpError when the
        key is that of another request."""
        streams: dict[int, TokenStream] = {}
        try:
            for choice in self.choices:
                request_id = self.response_id.of_choice(choice.index)
                options = replace(self.options, request_id=request_id)
                streams[choice.index] = client.generate(
                    choice.prompt_token_ids, choice.params, options
                )
        except BaseException as error:
            for stream in streams.values():
                (stream.detach if self.form.body_digest else stream.cancel)()
            if isinstance(error, RequestIdConflictError):
                raise key_reused() from None
            raise
        prompts = {choice.index: choice.prompt_token_ids for choice in self.choices}
        is_resumable = self.options.is_resumable
        return OpenedAnswer(
            self.response_id, self.form, streams, is_resumable, prompts, self.repeated
        )


def submission(
    served: Served,
    request: Request,
    asked: GenerationRequest,
    prompts: list[list[int]],
    plan: ReplyPlan,
) -> Submission:
    """Raises InvalidRequestError or HttpError for what can't be."""
    context, greeting, tokenizer = served.context, served.greeting, served.tokenizer
    tenant = request.scope["chairlift.caller"].tenant
    key = request.headers.get(HEADER)
    has_key = key is not None
    response_id = (
        ResponseId.draw(asked.endpoint)
        if key is None
        else context.idempotency.response_id(asked.endpoint, tenant, key)
    )
    has_receipt = wants_receipt(request.headers)
    options = asked.options(context, tenant)
    choices = asked.choices(prompts, greeting, tokenizer, plan, response_id.seed)
    form = AnswerForm(
        endpoint=asked.endpoint,
        created=now(),
        model=greeting.model,
        system_fingerprint=system_fingerprint(greeting),
        num_choices=len(choices),
        n=asked.num_candidates,
        num_best=asked.num_told if asked.num_told < asked.num_candidates else 0,
        num_prompt_tokens=sum(map(len, prompts)),
        has_usage=asked.has_usage or has_receipt,
        has_receipt=has_receipt,
        tells_cached=not context.has_tenants or bool(options.cache_salt),
        survives_hangup=asked.resumable or has_key,
        body_digest=body_digest(asked.endpoint, asked) if has_key else "",
        echo=asked.echoes,
        num_logprobs=asked.num_told_logprobs,
        num_prompt_logprobs=asked.num_told_prompt_logprobs,
        returns_token_ids=asked.returns_token_ids,
        skips_special_tokens=choices[0].params.skip_special_tokens,
        tool_format=plan.tool_format.name if plan.tool_format else "",
        tool_names=plan.tool_names,
        reasoning_format=plan.reasoning_format.name if plan.reasoning_format else "",
        is_reasoning=plan.is_reasoning,
        grammar_param=plan.grammar_param,
        repeated=what_fits(asked.repeated),
    )
    options = replace(
        options,
        context=form.encode(),
        is_resumable=asked.stream or form.survives_hangup,
        tokenizer=tokenizer.fingerprint,
        wants_queue_news=asked.queue_updates,
    )
    return Submission(response_id, form, choices, options, asked.stream, asked.repeated, tokenizer)


@dataclass(frozen=True, slots=True)
class Attachment:
    """What one GET asks: to read on an answer that was asked for before."""

    response_id: ResponseId
    after: Position | None
    takes_over: bool

    async def open(self, client: AsyncClient) -> OpenedAnswer:
        """Raises StreamNotFoundError, WorkerUnavailableError, and InvalidRequestError for a
        position in another stream."""
        form = await self._look(client)
        streams: dict[int, TokenStream] = {}
        try:
            choices = range(form.num_choices)
            await _all(self._attach_if_kept(client, index, streams) for index in choices)
        except BaseException:
            for stream in streams.values():
                stream.detach()
            raise
        return OpenedAnswer(
            self.response_id,
            form,
            streams,
            is_resumable=True,
            prompts={index: stream.prompt_token_ids for index, stream in streams.items()},
            repeated=form.repeated,
            is_watched=not self.takes_over,
            is_new=False,
        )

    async def _look(self, client: AsyncClient) -> AnswerForm:
        """By watching: whoever asks wrongly must not have taken anything from its reader."""
        request_id = self.response_id.of_choice(self._first_index())
        watch = await client.attach(request_id, takes_over=False)
        try:
            return self._form_of(watch, client)
        finally:
            watch.detach()

    def _first_index(self) -> int:
        """A choice that must be there: one of which the reader does not have all."""
        num_choices = len(self.after.choices) if self.after else 0
        return next((i for i in range(num_choices) if not self._has_all(i)), 0)

    def _has_all(self, index: int) -> bool:
        return self.after is not None and self.after.is_finished(index)

    def _form_of(self, stream: TokenStream, client: AsyncClient) -> AnswerForm:
        form = AnswerForm.decode(stream.context)
        if form.num_best:
            message = "an answer made with best_of is no stream: repeat the request with its key"
            raise InvalidRequestError(message)
        if form.endpoint != self.response_id.endpoint:
            raise StreamNotFoundError("the answer with this number has another prefix")
        if self.after:
            max_tokens = client.worker.max_model_len if client.worker else None
            self.after.check_fits(form.num_choices, max_tokens)
        return form

    async def _attach_if_kept(
        self, client: AsyncClient, index: int, streams: dict[int, TokenStream]
    ) -> None:
        request_id = self.response_id.of_choice(index)
        try:
            streams[index] = await client.attach(request_id, takes_over=self.takes_over)
        except StreamNotFoundError:
            if not self._has_all(index):
                raise


async def _all(attempts: Iterable[Awaitable[None]]) -> None:
    """Raises what one of them raised, once none goes on."""
    for result in await asyncio.gather(*attempts, return_exceptions=True):
        if result is not None:
            raise result
