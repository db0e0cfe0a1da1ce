"""`chairlift tap`: one answer, read along while it is made."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Annotated

from pydantic import Field
from pydantic_settings import CliPositionalArg

from ...shared.errors import InvalidRequestError
from ...shared.logs import configure_logs, short_hash
from ...shared.settings import load_settings
from ..client import AsyncClient
from ..replies.chunk import Chunk
from ..response_id import SHAPE, ResponseId
from ..results import Delta, exception_for
from .broken_pipe import forget_output
from .flags import FlagSettings
from .plain_answer import PlainAnswer
from .receipt_words import in_words

DIGITS = re.compile(r"[0-9a-f]{32}")


class TapSettings(FlagSettings):
    """Reads one answer from its first token on, whoever asked for it, and leaves it alone."""

    request_id: CliPositionalArg[str] = Field(
        description="The answer's id (chatcmpl-..., cmpl-..., resp_...) or its 32 digits alone; "
        "- reads it from standard input, where no other user of the machine can see it."
    )
    choice: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="Which choice of an answer that has several."
    )


def main(arguments: list[str]) -> int:
    """The exit code. Raises ChairliftError for an answer that is not found or ends badly."""
    settings = load_settings(TapSettings, "tap", arguments)
    configure_logs(settings.log_format, settings.log_level)
    given = settings.request_id
    request_id = parse_id(sys.stdin.readline() if given == "-" else given, settings.choice)
    try:
        last = asyncio.run(_read(settings, request_id))
    except BrokenPipeError:
        forget_output()
        return 1
    error = exception_for(last.finish) if last.finish else None
    if error is not None:
        raise error
    print(_ending(request_id, last), file=sys.stderr)
    return 0


def parse_id(text: str, choice: int) -> bytes:
    """The request id of one generation of the answer. Raises InvalidRequestError."""
    text = text.strip()
    if DIGITS.fullmatch(text):
        return ResponseId("completions", bytes.fromhex(text)).of_choice(choice)
    if SHAPE.fullmatch(text):
        return ResponseId.parse(text).of_choice(choice)
    raise InvalidRequestError(
        "this is no id of an answer: give it as the answer has it, like chatcmpl-1a2b..., or its "
        "32 hex digits; the 8 digits in logs are a hash of it, and open nothing"
    )


async def _read(settings: TapSettings, request_id: bytes) -> Delta:
    """The last Delta. Raises StreamNotFoundError and WorkerUnavailableError."""
    last = Delta([], "")
    async with AsyncClient(settings.address, curve=settings.load_curve()) as client:
        stream = await client.attach(request_id, takes_over=False)
        async with stream:
            with PlainAnswer(sys.stdout) as paper:
                async for last in stream:
                    paper.add(Chunk(content=last.text))
    return last


def _ending(request_id: bytes, last: Delta) -> str:
    reason = last.finish.reason if last.finish else "unknown"
    receipt = f": {in_words(last.receipt)}" if last.receipt else ""
    return f"{short_hash(request_id)} ended with {reason}{receipt}"
