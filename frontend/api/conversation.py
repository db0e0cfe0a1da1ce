"""What a model is to answer: messages, the tools it may call, and the form its output must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from fastapi import Request
from starlette.responses import Response

from ...shared.errors import InvalidRequestError
from ...shared.sampling_params import Grammar
from ...shared.tokenizer import Tokenizer
from ..replies.reasoning_format import detect_reasoning
from .answer import GeneratedAnswer
from .context import THREAD_CHARACTERS, Served, in_thread_if
from .generation_request import GenerationRequest
from .messages import ChatMessage
from .opening import submission
from .reply_plan import Dialect
from .tools import ToolUse

PIECE_CHARACTERS = 64  # what a template makes of a message or a call besides, about

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Conversation:
    """However it was asked for; `param` is the field that has the messages."""

    param: str
    messages: Sequence[ChatMessage]
    tools: ToolUse
    output: Grammar | None
    output_param: str  # the field that constrains the output, or none
    template_kwargs: Mapping[str, Scalar]
    begins_message: bool = True
    continued: str | None = None  # the final message's text, if the answer goes on with it

    async def encode(self, served: Served) -> list[int]:
        """In a thread when it would hold up other streams; raises ContextLengthError before that
        when the text can't fit, and InvalidRequestError."""
        num_characters = sum(message.num_characters for message in self.messages)
        tokenizer, max_model_len = served.tokenizer, served.greeting.max_model_len
        tokenizer.check_can_fit(num_characters, max_model_len, param=self.param)
        encode = partial(
            tokenizer.encode_chat,
            [message.for_template() for message in self.messages],
            tools=self.tools.shown,
            template_kwargs=self.template_kwargs,
            add_generation_prompt=self.begins_message,
            continue_final_message=self.continued is not None,
        )
        num_pieces = sum(1 + len(message.tool_calls) for message in self.messages)
        weight = num_characters + PIECE_CHARACTERS * num_pieces + self.tools.num_characters
        is_long = weight > THREAD_CHARACTERS
        try:
            return await in_thread_if(is_long, encode)
        except InvalidRequestError as error:
            if error.param == "messages":
                error.param = self.param
            raise


async def answer_to(
    conversation: Conversation,
    asked: GenerationRequest,
    request: Request,
    served: Served,
) -> Response:
    """Raises InvalidRequestError or HttpError for what can't be."""
    prompt = await conversation.encode(served)
    plan = Dialect.of(served.tokenizer, served.context.settings.tool_format).plan(
        prompt,
        conversation.continued,
        conversation.tools,
        conversation.output,
        conversation.output_param,
    )
    return GeneratedAnswer(served.context, submission(served, request, asked, [prompt], plan))


def with_effort(
    effort: ReasoningEffort | None,
    kwargs: Mapping[str, Scalar],
    tokenizer: Tokenizer,
    *,
    param: str,
) -> Mapping[str, Scalar]:
    """The template's arguments; raises InvalidRequestError for an effort that the template can't
    ask the model for."""
    if effort is None:
        return kwargs
    source = tokenizer.chat_template.source
    can_stop = "enable_thinking" in source or not detect_reasoning(source)
    if "reasoning_effort" not in source and not (effort == "none" and can_stop):
        message = f"this model's chat template can't ask for effort {effort!r}: leave {param} out"
        raise InvalidRequestError(message, param=param, code="unsupported_parameter")
    if effort == "none":
        kwargs = {"enable_thinking": False, **kwargs}
    return {"reasoning_effort": effort, **kwargs}
