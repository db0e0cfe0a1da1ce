"""A caller of POST /v1/completions that goes on elsewhere when its frontend is gone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.integration.workload import Record, Request

RETRY_S = 0.1
DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer whose body is still to come."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def lines(self) -> AsyncIterator[str]:
        while line := await self.reader.readline():
            yield line.decode().rstrip("\n")


@asynccontextmanager
async def answered(
    port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> AsyncIterator[Answer]:
    """The connection is closed on leaving, whether the answer was read or not. Raises OSError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        writer.write(_message(method, path, body, headers or {}))
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = [line.partition(": ") for line in head[1:]]
        names = {name.lower(): value for name, _, value in pairs}
        yield Answer(int(head[0].split()[1]), names, reader, writer)
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError("no answer") from error
    finally:
        writer.transport.abort()


def _message(method: str, path: str, body: Any, headers: dict[str, str]) -> bytes:
    """HTTP/1.0, whose answers end with the connection and have no chunks."""
    content = b"" if body is None else json.dumps(body).encode()
    headers = {
        "Host": "127.0.0.1",
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.0\r\n{head}\r\n".encode() + content


def body_of(request: Request, **fields: Any) -> dict[str, Any]:
    """The request as the completions route wants it, streamed."""
    params = dict(request.params)
    if "logit_bias" in params:
        params["logit_bias"] = {str(key): bias for key, bias in params["logit_bias"].items()}
    return {"prompt": request.prompt, "stream": True, **params, **fields}


async def read(number: int, request: Request, ports: list[int]) -> Record:
    """The whole answer, from the first port or, where that fails, from the others in turn."""
    record, last_event_id, attempt = Record(number, time.monotonic()), "", 0
    while record.num_ends == 0:
        port = ports[attempt % len(ports)]
        attempt += 1
        try:
            last_event_id = await _read_on(record, request, port, last_event_id)
        except OSError:
            await asyncio.sleep(RETRY_S)
    return record


async def _read_on(record: Record, request: Request, port: int, last_event_id: str) -> str:
    """Until the end or a cut: the id of the last event."""
    path, method, body = "/v1/completions", "POST", body_of(request)
    headers = {}
    if record.request_id:
        path, method, body = f"/v1/streams/{record.request_id}", "GET", None  # type: ignore[assignment]
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    async with answered(port, method, path, body, headers) as answer:
        if answer.status == 503:
            await asyncio.sleep(RETRY_S)
            return last_event_id
        if answer.status != 200:
            text = await answer.reader.read()
            raise AssertionError(f"{method} {path} {headers}: {answer.status} {text!r}")
        async for line in answer.lines():
            field, _, value = line.partition(": ")
            if field == "id":
                last_event_id = value
            elif field == "data":
                _take(record, value)
    return last_event_id


def _take(record: Record, data: str) -> None:
    if data == DONE:
        record.num_ends += 1
        return
    event = json.loads(data)
    if "error" in event:
        record.reason, record.code = "error", event["error"]["code"]
        record.num_ends += 1
        return
    record.request_id = event["id"]
    for choice in event["choices"]:
        record.text += choice["text"]
        record.arrivals_s.append(round(time.monotonic(), 4))
        record.reason = choice["finish_reason"] or record.reason
