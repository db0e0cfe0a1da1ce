"""Takes an answer's text apart while it arrives. Sans-IO: text in, chunks out.

What comes out depends on the text alone and not on how it is cut: so a stream can be continued
anywhere, by reading again what its reader has. Nothing is lost but tags and the white space next
to them: what looked like a call and is none comes out as content.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from ...shared.messages import FinishReason
from .call_reader import BARE, CallReader
from .chunk import Chunk
from .pieces import Pieces
from .reasoning_format import ReasoningFormat
from .tape import SPACE, Reading, Tape
from .tool_format import ToolFormat


class PlainReply:
    """Of a model that neither thinks aloud nor calls tools: all is content."""

    num_reasoning_characters = 0

    def feed(self, text: str) -> Chunk:
        return Chunk(content=text)

    def finish(self) -> Chunk:
        return Chunk()

    def finish_reason(self, reason: FinishReason) -> str:
        return reason


class Reply:
    """One choice's answer."""

    def __init__(
        self,
        reasoning_format: ReasoningFormat | None = None,
        tool_format: ToolFormat | None = None,
        tool_names: Collection[str] = (),
        *,
        is_reasoning: bool = False,
    ) -> None:
        """`tool_names`: of the tools that may be called; `is_reasoning`: the prompt ends amid
        thoughts, which then need no opening tag."""
        self._reasoning = reasoning_format
        self._tools = tool_format if tool_names else None
        self.is_reasoning = is_reasoning and reasoning_format is not None
        self.num_reasoning_characters = 0  # with all before and their tags, once they are over
        self._tape = Tape()
        self._pieces = Pieces()
        self._calls = CallReader(self._tape, self._pieces, self._tools, tool_names)
        self._reading = self._read()

    def feed(self, text: str) -> Chunk:
        """False when the text settles nothing yet."""
        self._tape.add(text)
        return self._advance()

    def finish(self) -> Chunk:
        """What was held back, once no more text comes.

        It belongs into the very chunk that tells the finish reason: the text does not tell the
        two apart.
        """
        self._tape.end()
        return self._advance()

    def finish_reason(self, reason: FinishReason) -> str:
        """`tool_calls` instead of `stop` where a complete call came; `length` stays what it is."""
        has_calls = self._pieces.num_complete_calls > 0
        return "tool_calls" if reason == "stop" and has_calls else reason

    def _advance(self) -> Chunk:
        next(self._reading, None)
        return self._pieces.take()

    def _read(self) -> Reading[None]:
        thoughts = (self._reasoning.opening,) if self._reasoning else ()
        calls = (self._tools.opening,) if self._tools else ()
        closing = (self._tools.closing,) if self._tools and self._tools.closing else ()
        bare = BARE if self._tools and self._tools.is_bare else ()
        at_once = (*thoughts, *bare)  # has a meaning only as the very next thing
        if self.is_reasoning:
            yield from self._read_thoughts()
            at_once = bare
        while tag := (yield from self._read_text(self._pieces.say, calls, at_once)):
            at_once = ()
            if tag in thoughts:
                yield from self._read_thoughts()
                at_once = bare
            elif tag in closing:
                self._tape.release()
                yield from self._tape.drop_space()
            elif (yield from self._calls.read(tag)):
                at_once = closing

    def _read_thoughts(self) -> Reading[None]:
        assert self._reasoning
        self.is_reasoning = True
        self._tape.release()
        yield from self._tape.drop_space()
        yield from self._read_text(self._pieces.think, (self._reasoning.closing,), ())
        self.is_reasoning = False
        self.num_reasoning_characters = self._tape.num_read
        self._tape.release()
        yield from self._tape.drop_space()

    def _read_text(
        self, emit: Callable[[str], None], tags: tuple[str, ...], at_once: tuple[str, ...]
    ) -> Reading[str]:
        """Emits what comes before one of the tags and returns that one, held; empty at the end."""
        words = (*tags, *at_once)
        while True:
            if words:
                yield from self._tape.read_space()
            if found := (yield from self._tape.read_one_of(words)):
                return found
            words = tags
            if not (yield from self._tape.peek()):
                emit(self._tape.release())
                return ""
            if not self._tape.held.strip(SPACE):
                self._tape.read_to(_end_of_plain(self._tape.text, self._tape.at, tags))
            emit(self._tape.release())


def _end_of_plain(text: str, at: int, tags: tuple[str, ...]) -> int:
    """Where a tag may begin, or the white space before it."""
    if not tags:
        return len(text)
    starts = [start for tag in tags if (start := text.find(tag[0], at)) >= 0]
    return at + len(text[at : min(starts, default=len(text))].rstrip(SPACE))
