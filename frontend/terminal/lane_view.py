"""The rows of the picture: who has a lane, how far it is, and its part in the newest steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from .batch_board import Column, Gap
from .marks import GAP, NOTHING, Mark, mark_of
from .watched_request import WatchedRequest

HASH_WIDTH, BAR_WIDTH, PROGRESS_WIDTH, RATE_WIDTH, BLOCKS_WIDTH = 8, 6, 11, 6, 7
WIDE, MEDIUM = 76, 56  # from which widths on there is a bar, and are progress and blocks
BARS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane in sight, and the last request that had it."""

    number: int
    request: WatchedRequest
    per_s: float  # tokens of output, in sight


@dataclass(frozen=True, slots=True)
class Layout:
    """What the width has room for; the steps have the rest."""

    width: int
    has_bar: bool
    has_blocks: bool

    @property
    def label_width(self) -> int:
        widths = [1 + HASH_WIDTH + 1, RATE_WIDTH]
        widths += [PROGRESS_WIDTH, BLOCKS_WIDTH] * self.has_blocks
        widths += [BAR_WIDTH + 1] * self.has_bar
        return sum(widths) + 1

    @property
    def num_columns(self) -> int:
        return self.width - self.label_width

    def heading(self, of_the_steps: str) -> str:
        heading = f" {'request':{HASH_WIDTH + 1}}" + " " * (BAR_WIDTH + 1) * self.has_bar
        if self.has_blocks:
            heading += f"{'computed':>{PROGRESS_WIDTH}}"
        heading += f"{'tok/s':>{RATE_WIDTH}}"
        if self.has_blocks:
            heading += f"{'blocks':>{BLOCKS_WIDTH}}"
        return f"{heading} {of_the_steps:>{self.num_columns}}"


def layout_for(width: int) -> Layout:
    return Layout(width, has_bar=width >= WIDE, has_blocks=width >= MEDIUM)


def lanes_of(columns: Sequence[Column | Gap]) -> list[Lane]:
    """Those in sight, in order."""
    requests: dict[int, WatchedRequest] = {}
    tokens: dict[str, int] = {}
    began_us: dict[str, int] = {}
    ended_us = 0
    for column in columns:
        if not isinstance(column, Column):
            continue
        record = column.record
        ended_us = record.began_us + record.duration_us
        for number, cell in column.cells.items():
            hash, new = cell.request.hash, cell.row.num_new_tokens if cell.row else 0
            requests[number] = cell.request
            began_us.setdefault(hash, record.began_us)
            tokens[hash] = tokens.get(hash, 0) + new
    return [
        Lane(number, request, 1e6 * tokens[hash] / max(1, ended_us - began_us[hash]))
        for number, request in sorted(requests.items())
        if (hash := request.hash)
    ]


class LaneView:
    """Draws lanes over the same columns."""

    def __init__(
        self, layout: Layout, columns: Sequence[Column | Gap], selected: int | None
    ) -> None:
        self._layout = layout
        self._columns = columns
        self._selected = selected
        steps = [column for column in columns if isinstance(column, Column)]
        rows = [cell.row for step in steps for cell in step.cells.values() if cell.row]
        self._largest_chunk = max((row.num_tokens for row in rows if row.is_chunk), default=0)

    def lines(self, lanes: Sequence[Lane], room: int) -> list[Text]:
        """As many as there is room for, the selected one among them, and how many are left out."""
        if len(lanes) <= room:
            return [self._line(lane) for lane in lanes]
        numbers = [lane.number for lane in lanes]
        place = numbers.index(self._selected) if self._selected in numbers else 0
        first = max(0, min(place - (room - 1) // 2, len(lanes) - room + 1))
        shown = lanes[first : first + room - 1]
        left_out = len(lanes) - len(shown)
        more = Text(f" and {left_out:,} more", style="dim")
        return [*(self._line(lane) for lane in shown), more]

    def _line(self, lane: Lane) -> Text:
        line = self._label(lane)
        width = self._layout.num_columns
        line.append(" " * (width - len(self._columns)))
        run, style = "", ""
        for mark in (self._mark(column, lane.number) for column in self._columns):
            if mark.style != style:
                line.append(run, style)
                run, style = "", mark.style
            run += mark.character
        return line.append(run, style)

    def _label(self, lane: Lane) -> Text:
        request, layout, row = lane.request, self._layout, lane.request.row
        is_selected = lane.number == self._selected
        style = "bold" if is_selected else "dim" if request.is_over or request.is_waiting else ""
        line = Text("▸" if is_selected else " ").append(f"{request.hash} ")
        computed, total = (row.num_computed_tokens, row.num_total_tokens) if row else (0, 0)
        if layout.has_bar:
            line.append_text(_progress(request, computed, total))
        if layout.has_blocks:
            line.append(f"{f'{computed}/{total}':>{PROGRESS_WIDTH}}")
        rate = "" if request.is_over else f"{lane.per_s:,.0f}"
        line.append(f"{rate:>{RATE_WIDTH}}")
        if layout.has_blocks:
            blocks = "" if request.is_over or row is None else str(row.num_blocks)
            line.append(f"{blocks:>{BLOCKS_WIDTH}}")
        line.stylize(style)
        return line.append(" ")

    def _mark(self, column: Column | Gap, number: int) -> Mark:
        if isinstance(column, Gap):
            return GAP
        cell = column.cells.get(number)
        return NOTHING if cell is None else mark_of(cell, self._largest_chunk)


def _progress(request: WatchedRequest, computed: int, total: int) -> Text:
    """A bar, or why there is none."""
    if request.is_over or request.is_waiting:
        return Text(f"{request.state[:BAR_WIDTH]:{BAR_WIDTH}} ")
    style = "cyan" if request.state == "prefill" else "blue"
    return Text(f"{bar_of(computed, total)} ", style=style)


def bar_of(part: int, whole: int) -> str:
    """In eighths of a character."""
    eighths = round(8 * BAR_WIDTH * min(part, whole) / whole) if whole else 0
    full, rest = divmod(eighths, 8)
    return ("█" * full + (BARS[rest] if rest else "")).ljust(BAR_WIDTH, "░")
