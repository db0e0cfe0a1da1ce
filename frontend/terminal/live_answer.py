"""An answer on a terminal: Markdown, rendered while it is written."""

from __future__ import annotations

from typing import Self

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.padding import Padding
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from ...shared.harmless import harmless
from ..replies.chunk import Chunk

THOUGHTS = "dim italic"


class LiveAnswer:
    """Blocks of Markdown that are complete are printed for good, and only the last one, which may
    still grow, is drawn anew: so an answer may be longer than the screen, and costs no more."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=12)
        self._thoughts = ""
        self._text = ""  # of the block that may still grow
        self._is_first = True  # nothing was printed for good

    def add(self, chunk: Chunk) -> None:
        self._thoughts += harmless(chunk.reasoning)
        if chunk.content and self._thoughts.strip():
            self._print(self._thought())
        if chunk.content:
            self._thoughts = ""
            self._text += harmless(chunk.content)
        if "\n" in chunk.content:
            self._print_complete_blocks()
        self._live.update(Tail(self._open_part()))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.update(self._open_part())
        self._live.stop()

    def _print_complete_blocks(self) -> None:
        end = start_of_last_block(self._text)
        if end:
            self._print(Harmless(Markdown(self._text[:end])))
            self._text = self._text[end:]

    def _print(self, part: RenderableType) -> None:
        self._console.print(self._spaced(part))
        self._is_first = False

    def _open_part(self) -> RenderableType:
        if self._thoughts.strip():
            return self._spaced(self._thought())
        return self._spaced(Harmless(Markdown(self._text))) if self._text.strip() else Text()

    def _thought(self) -> Text:
        return Text(self._thoughts.strip(), style=THOUGHTS)

    def _spaced(self, part: RenderableType) -> RenderableType:
        """With the empty line that parts it from what is above."""
        return Padding(part, (0 if self._is_first else 1, 0, 0, 0), expand=False)


class Harmless:
    """Rendered Markdown without commands: it decodes what was none in the text (`<http://a/%1b>`)."""

    def __init__(self, markdown: Markdown) -> None:
        self._markdown = markdown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self._markdown, options):
            yield Segment(text if control else harmless(text), _without_link(style), control)


def _without_link(style: Style | None) -> Style | None:
    """A link is a command as well, and its address is the model's."""
    return style.update_link(None) if style is not None and style.link else style


class Tail:
    """The last lines of something, as many as the screen shows."""

    def __init__(self, whole: RenderableType) -> None:
        self._whole = whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._whole, options.update(height=None), pad=False)
        for line in lines[-max(1, console.height - 1) :]:
            yield from line
            yield Segment.line()


def start_of_last_block(text: str) -> int:
    """Blocks before this place are complete, whatever follows; told by whole lines alone, since
    `2` may become `2.`, and so a part of the list above it."""
    whole = text[: text.rfind("\n") + 1]
    starts = [token.map[0] for token in Markdown(whole).parsed if token.map and not token.level]
    lines = whole.split("\n")[: max(starts, default=0)]
    return sum(len(line) + 1 for line in lines)
