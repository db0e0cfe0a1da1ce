"""The token streams of one client; several may read one request."""

from __future__ import annotations

from ..shared.finishes import CANCELLED, TAKEN_OVER
from .connection import Connection
from .protocol import Opened, Output
from .results import Delta
from .token_stream import TokenStream


class Readers:
    """Owns every TokenStream without an end.

    The worker sees one reader, whose news goes to all of a request's streams; one that comes later
    is first given what was received so far. At most one of them is the owner.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._streams: dict[bytes, list[TokenStream]] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, request_id: bytes) -> bool:
        return request_id in self._streams

    def add(self, request_id: bytes, context: bytes = b"", *, may_own: bool) -> TokenStream:
        """A reader of a request that the protocol has just opened."""
        stream = TokenStream(request_id, self._leave, context, may_own=may_own)
        stream.is_owner = may_own
        self._streams[request_id] = [stream]
        return stream

    def join(self, request_id: bytes, *, may_own: bool) -> TokenStream:
        """One more reader of a request that is read here already."""
        readers = self._streams[request_id]
        stream = TokenStream(request_id, self._leave, readers[0].context, may_own=may_own)
        protocol = self._connection.protocol
        if readers[0].is_open or protocol.owns(request_id):
            stream.open(readers[0].context, protocol.prompt_of(request_id))
        so_far = protocol.so_far(request_id)
        if so_far.token_ids:
            stream.put(_delta(so_far))
        readers.append(stream)
        return stream

    def take_over(self, request_id: bytes) -> TokenStream:
        """As `join`, instead of those who might own the request; who only watches stays."""
        stream = self.join(request_id, may_own=True)
        for former in [r for r in self._streams[request_id] if r.may_own and r is not stream]:
            self._streams[request_id].remove(former)
            former.put(Delta([], "", TAKEN_OVER))
        stream.is_owner = True
        return stream

    def put(self, output: Output) -> None:
        readers = self._streams.get(output.request_id, ())
        if output.finish is not None:
            self._streams.pop(output.request_id, None)
        for stream in readers:
            stream.put(_delta(output))

    def open(self, opened: Opened) -> None:
        for stream in self._streams.get(opened.request_id, ()):
            stream.open(opened.context, opened.prompt_token_ids)

    def close(self) -> None:
        """Ends all with an abort."""
        for streams in [*self._streams.values()]:
            for stream in [*streams]:
                stream.put(Delta([], "", CANCELLED))
                self._leave(stream, may_go_on=False)

    def _leave(self, stream: TokenStream, may_go_on: bool) -> None:
        """An owner passes the request on to another who may own it. Who only watches sees it end
        when its owner stops it."""
        request_id = stream.request_id
        readers = self._streams.get(request_id)
        if readers is None or stream not in readers:
            return
        readers.remove(stream)
        heir = next((reader for reader in readers if reader.may_own), None)
        is_stopped = stream.is_owner and not may_go_on and heir is None
        if heir is not None:
            heir.is_owner |= stream.is_owner
        if readers and not is_stopped:
            return
        del self._streams[request_id]
        for watcher in readers:
            watcher.put(Delta([], "", CANCELLED))
        protocol = self._connection.protocol
        (protocol.cancel if is_stopped else protocol.detach)(request_id)
        self._connection.flush()


def _delta(output: Output) -> Delta:
    return Delta(
        output.token_ids,
        output.text,
        output.finish,
        output.logprobs,
        output.prompt_logprobs,
        output.embedding,
        output.queue,
        output.receipt,
    )
