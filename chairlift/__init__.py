"""chairlift: large language models served by continuous batching.

    async with chairlift.AsyncClient() as client:
        async for delta in client.stream("Once upon a time", max_tokens=64):
            print(delta.text, end="", flush=True)

or, for programs without an event loop:

    with chairlift.Client() as client:
        print(client.complete("Once upon a time", max_tokens=64).text)

`frontend`, `worker` and `shared` in this folder are links to the folders beside it, so that one
checkout can be edited, type-checked and run under the import name `chairlift`; the wheel and the
sdist are built from the real folders.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .frontend.client import AsyncClient
    from .frontend.embedding import Embedding
    from .frontend.mount import asgi_app
    from .frontend.request_options import RequestOptions
    from .frontend.results import Completion, Delta
    from .frontend.sse import sse
    from .frontend.step_feed import StepFeed
    from .frontend.sync_client import Client
    from .frontend.token_stream import TokenStream
    from .shared.curve import FrontendCurve
    from .shared.errors import (
        ChairliftError,
        ClientClosedError,
        ContextLengthError,
        DeadlineExceededError,
        InvalidRequestError,
        OverloadedError,
        RequestFailedError,
        StreamNotFoundError,
        TokenizerMismatchError,
        WorkerUnavailableError,
    )
    from .shared.queue_place import QueuePlace
    from .shared.sampling_params import SamplingParams

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "ChairliftError",
    "Client",
    "ClientClosedError",
    "Completion",
    "ContextLengthError",
    "DeadlineExceededError",
    "Delta",
    "Embedding",
    "FrontendCurve",
    "InvalidRequestError",
    "OverloadedError",
    "QueuePlace",
    "RequestFailedError",
    "RequestOptions",
    "SamplingParams",
    "StepFeed",
    "StreamNotFoundError",
    "TokenStream",
    "TokenizerMismatchError",
    "WorkerUnavailableError",
    "__version__",
    "asgi_app",
    "sse",
]

_HOMES = {
    "AsyncClient": "frontend.client",
    "ChairliftError": "shared.errors",
    "Client": "frontend.sync_client",
    "ClientClosedError": "shared.errors",
    "Completion": "frontend.results",
    "ContextLengthError": "shared.errors",
    "DeadlineExceededError": "shared.errors",
    "Delta": "frontend.results",
    "Embedding": "frontend.embedding",
    "FrontendCurve": "shared.curve",
    "InvalidRequestError": "shared.errors",
    "OverloadedError": "shared.errors",
    "QueuePlace": "shared.queue_place",
    "RequestFailedError": "shared.errors",
    "RequestOptions": "frontend.request_options",
    "SamplingParams": "shared.sampling_params",
    "StepFeed": "frontend.step_feed",
    "StreamNotFoundError": "shared.errors",
    "TokenStream": "frontend.token_stream",
    "TokenizerMismatchError": "shared.errors",
    "WorkerUnavailableError": "shared.errors",
    "asgi_app": "frontend.mount",
    "sse": "frontend.sse",
}


def __getattr__(name: str) -> Any:
    """Imports at the first use, so that a worker never loads a client nor a client a worker."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
