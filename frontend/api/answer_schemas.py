"""What answers look like, for the OpenAPI document. Nothing is made of these classes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls"]


class Queue(BaseModel):
    """The place in the queue that a request had, or would have had, when it was refused."""

    position: int  # requests ahead
    expected_wait_ms: int


class Problem(BaseModel):
    """What is wrong, for people and for programs."""

    message: str
    type: str
    param: str | None
    code: str | None
    queue: Queue | None = None


class ErrorBody(BaseModel):
    """Every failure has this shape."""

    error: Problem


class Told(BaseModel):
    """What answers are made of. They are written as plain dicts: these classes only document them,
    and tests hold the answers against them."""

    model_config = ConfigDict(extra="forbid")


class PromptTokensDetails(Told):
    cached_tokens: int


class CompletionTokensDetails(Told):
    reasoning_tokens: int


class ToldReceipt(Told):
    """How a generation fared at the worker; times in milliseconds. docs/api.md explains."""

    request: str
    queued_ms: float
    ttft_ms: float | None
    total_ms: float
    max_gap_ms: float
    num_prompt_tokens: int
    num_cached_tokens: int | None  # null where the usage does not tell it either
    num_output_tokens: int
    num_resumed_tokens: int
    num_steps: int
    num_chunks: int
    num_recomputed_tokens: int
    num_preemptions: int
    mean_mates: float
    max_mates: int


class Usage(Told):
    """A prompt counts once, however many choices were asked for."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
    receipt: list[ToldReceipt] | None = None  # of each choice, where it was asked for


class Head(Told):
    id: str
    created: int
    model: str
    system_fingerprint: str


class PromptScore(Told):
    logprob: float
    decoded_token: str
    rank: int | None = None


class OfPrompt(Told):
    """What is told of the prompt when it was asked for."""

    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, PromptScore] | None] | None = None


class CompletionLogprobs(Told):
    """A prompt's first token has no log probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(OfPrompt):
    index: int
    text: str
    token_ids: list[int] | None = None
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class CompletionPart(OfPrompt):
    index: int
    text: str
    token_ids: list[int] | None = None
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(Head):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(Head):
    """The usage comes in a last chunk without choices, when it was asked for."""

    object: Literal["text_completion"]
    choices: list[CompletionPart]
    usage: Usage | None = None


class Function(Told):
    """The arguments are a JSON object, as text."""

    name: str
    arguments: str


class Call(Told):
    id: str
    type: Literal["function"]
    function: Function


class Message(Told):
    """The content is null where all there is are calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None


class FunctionDelta(Told):
    name: str | None = None
    arguments: str


class CallDelta(Told):
    """The first of a call names it, all of them together have its arguments."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(Told):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallDelta] | None = None


class Token(Told):
    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(Token):
    top_logprobs: list[Token]


class ChatLogprobs(Told):
    content: list[TokenLogprob]
    refusal: None


class ChatChoice(Told):
    index: int
    message: Message
    token_ids: list[int] | None = None
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason


class ChatPart(Told):
    index: int
    delta: Delta
    token_ids: list[int] | None = None
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None


class ChatCompletion(Head, OfPrompt):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class ChatCompletionChunk(Head, OfPrompt):
    """The usage comes in a last chunk without choices, when it was asked for."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatPart]
    usage: Usage | None = None


class Model(Told):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(Told):
    object: Literal["list"]
    data: list[Model]


class EmbeddingUsage(Told):
    prompt_tokens: int
    total_tokens: int


class Embedding(Told):
    """Numbers, or base64 of them as float32 in little-endian order."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(Told):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Tokens(Told):
    """The strings are the vocabulary's own spelling, and there when they were asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Text(Told):
    prompt: str


class Health(Told):
    """`ok`, or why no requests should be sent here now."""

    status: str


class Version(Told):
    version: str
