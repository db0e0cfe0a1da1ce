"""What the API is made of: an app has all of it, or those parts that its host wants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter
from pydantic import BaseModel

from ..mount import PartName
from .chat import ChatRequest, chat_router
from .completions import CompletionRequest, completions_router
from .context import Context
from .embeddings import EmbeddingRequest, embeddings_router
from .health import health_router
from .messages import CalledFunction, ChatMessage, ToolCall
from .metrics import metrics_router
from .models import models_router
from .page import page_router
from .responses import responses_router
from .responses_request import RESPONSE_PARTS, ResponsesRequest
from .streams import streams_router
from .tokenize import DetokenizeRequest, TokenizeRequest, tokenize_router
from .watch import watch_router


@dataclass(frozen=True, slots=True)
class Part:
    """Some routes, and the bodies that they read, for the OpenAPI document."""

    router: Callable[[Context], APIRouter]
    bodies: tuple[type[BaseModel], ...] = ()


MESSAGES = (ChatMessage, ToolCall, CalledFunction)
PARTS: dict[PartName, Part] = {
    "completions": Part(completions_router, (CompletionRequest,)),
    "chat": Part(chat_router, (ChatRequest, *MESSAGES)),
    "responses": Part(responses_router, (ResponsesRequest, *RESPONSE_PARTS)),
    "streams": Part(streams_router),
    "embeddings": Part(embeddings_router, (EmbeddingRequest,)),
    "tokenize": Part(tokenize_router, (TokenizeRequest, DetokenizeRequest, *MESSAGES)),
    "models": Part(models_router),
    "watch": Part(watch_router),
    "health": Part(lambda context: health_router(context.client)),
    "metrics": Part(lambda context: metrics_router(context.metrics)),
    "page": Part(lambda _: page_router()),
}
