"""Every error that chairlift raises on purpose.

ChairliftError
├── InvalidRequestError        the request can't be served as it is; `param` names the field
│   └── ContextLengthError     prompt and answer together don't fit
├── OverloadedError            refused for now; `retry_after_s` says when to try again
├── WorkerUnavailableError     no worker answers
├── StreamNotFoundError        no request under this id, or no longer
├── RequestIdConflictError     another request runs under this id
├── RequestFailedError         accepted, and the worker could not finish it
│   └── DeadlineExceededError  ... in the time that it was given
├── ProtocolError              bytes that are no message, or another protocol version
├── TokenizerMismatchError     client and worker would not speak of the same token ids
├── ModelError                 a checkpoint that can't be loaded
├── AddressError               an address that can't be bound or connected
├── NotInstalledError          a package that has to be installed first
└── ClientClosedError          the client was closed, or belongs to another process or event loop
"""

from __future__ import annotations

from .queue_place import QueuePlace


class ChairliftError(Exception):
    """Base of all; its text says what to change."""


class InvalidRequestError(ChairliftError):
    """The caller's request is at fault; `code` is machine-readable, `param` the field or None."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str = "invalid_value"
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(InvalidRequestError):
    """Prompt plus requested output exceed what the model or the cache can hold."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class OverloadedError(ChairliftError):
    """Refused to protect those already served; worth another try after `retry_after_s`. `queue` is
    where it stood, or would have stood, if the queue was the reason."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float,
        code: str = "overloaded",
        queue: QueuePlace | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s
        self.queue = queue


class WorkerUnavailableError(ChairliftError):
    """No worker answers at the address."""


class RequestFailedError(ChairliftError):
    """The worker accepted the request and could not finish it; `code` says why."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class DeadlineExceededError(RequestFailedError):
    """The request's time was over before its end."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="deadline_exceeded")


class StreamNotFoundError(ChairliftError):
    """No request runs under this id, or was kept until now."""


class RequestIdConflictError(ChairliftError):
    """Another request runs under this id, and nobody gets an answer to what he did not ask."""


class ProtocolError(ChairliftError):
    """The bytes received are no message of this protocol version."""


class TokenizerMismatchError(ChairliftError):
    """The tokenizer given to the client is not the worker's."""


class ModelError(ChairliftError):
    """The checkpoint can't be loaded; the text names the file, tensor or setting."""


class AddressError(ChairliftError):
    """The address is malformed, taken, or not allowed."""


class NotInstalledError(ChairliftError):
    """What was asked for is no part of this installation; the text names what is missing."""


class ClientClosedError(ChairliftError):
    """The client can't be used here: closed, forked, or bound to another event loop."""
