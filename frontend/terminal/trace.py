"""`chairlift trace`: some seconds of steps and requests, in a file for Perfetto."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import urllib.request
from pathlib import Path

import msgspec
import structlog
from pydantic import AliasChoices, Field, FilePath
from typing_extensions import TypeAliasType

from ...shared.errors import ChairliftError, InvalidRequestError
from ...shared.logs import configure_logs
from ...shared.settings import Seconds, load_settings
from ..client import AsyncClient
from ..timeline import HttpRequest, Timeline
from .flags import FlagSettings

log = structlog.get_logger("chairlift.trace")

SILENCE_S = 5.0  # of a frontend, which speaks every second
MAX_LINE_BYTES = 4 << 20
LAST_NEWS_S = 1.2  # until a quiet frontend has told of what has just ended


URL = TypeAliasType("URL", tuple[str, ...])  # by this name --help shows it


class TraceSettings(FlagSettings):
    """Some seconds of what the worker and its HTTP frontends do, written for Perfetto."""

    seconds: Seconds = Field(default=10.0, description="How long to watch.")
    output: Path = Field(
        default=Path("trace.json"),
        validation_alias=AliasChoices("output", "o"),
        description="The file; open it at https://ui.perfetto.dev.",
    )
    frontend: URL = Field(
        default=(), description="URL of an HTTP frontend whose requests to add; may be repeated."
    )
    api_key_file: FilePath | None = Field(
        default=None, description="File whose first line is an API key of the frontends."
    )


class WatchError(ChairliftError):
    """A frontend can't be watched."""


def main(arguments: list[str]) -> int:
    """The exit code."""
    settings = load_settings(TraceSettings, "trace", arguments)
    configure_logs(settings.log_format, settings.log_level)
    timeline = asyncio.run(_watch(settings))
    settings.output.write_text(json.dumps(timeline.as_json()), "utf-8")
    told = f"steps: {timeline.num_steps}"
    if settings.frontend:
        told += f", requests of frontends: {timeline.num_requests}"
    print(f"{settings.output}: {told}; open it at https://ui.perfetto.dev", file=sys.stderr)
    return 0


async def _watch(settings: TraceSettings) -> Timeline:
    """Raises ChairliftError for a worker or a frontend that does not answer."""
    _check_writable(settings.output)
    timeline, key = Timeline(), _key(settings.api_key_file)
    async with AsyncClient(settings.address, curve=settings.load_curve()) as client:
        await client.connect()
        frontends = [_Frontend(url, key) for url in settings.frontend]
        try:
            async with asyncio.timeout(settings.seconds), client.watch() as feed:
                async for steps in feed:
                    timeline.add_steps(steps)
        except TimeoutError:
            pass
    told = await asyncio.gather(*(asyncio.to_thread(one.finish) for one in frontends))
    for frontend, requests in zip(frontends, told, strict=True):
        timeline.add_requests(frontend.url, requests)
        if frontend.failure:
            log.warning("a frontend told no more", url=frontend.url, why=frontend.failure)
    return timeline


def _check_writable(path: Path) -> None:
    """Before the time is spent, not after. Raises InvalidRequestError."""
    try:
        path.open("a").close()
    except OSError as error:
        raise InvalidRequestError(
            f"can't write {path}: {error.strerror}: name another -o"
        ) from None


def _key(path: Path | None) -> str:
    return path.read_text("utf-8").partition("\n")[0].strip() if path else ""


class _Frontend:
    """Reads the `requests` events of an HTTP frontend's GET /watch, on a thread of its own."""

    def __init__(self, url: str, key: str) -> None:
        """Raises WatchError."""
        self.url = url.rstrip("/")
        self.failure = ""
        self._requests: list[HttpRequest] = []
        self._is_over = threading.Event()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            request = urllib.request.Request(f"{self.url}/watch", headers=headers)
            self._answer = urllib.request.urlopen(request, timeout=SILENCE_S)
        except (OSError, ValueError) as error:
            raise WatchError(f"no frontend to watch at {url}: {error}") from None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def finish(self) -> list[HttpRequest]:
        """All that ended meanwhile, the last of it as well."""
        time.sleep(LAST_NEWS_S)
        self._is_over.set()
        self._thread.join(SILENCE_S)
        return self._requests

    def _read(self) -> None:
        """Until it is over, or the frontend has gone or talks nonsense."""
        try:
            with self._answer:
                self._read_events()
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            self.failure = str(error)

    def _read_events(self) -> None:
        name = ""
        while not self._is_over.is_set() and (line := self._answer.readline(MAX_LINE_BYTES)):
            field, _, value = line.decode("utf-8").rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data" and name == "requests":
                self._requests += msgspec.json.decode(value, type=list[HttpRequest])
