"""A batch board as a picture, for a terminal of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from ...shared.messages import WorkerStats
from ...shared.steps import PHASES, StepRecord, split_hashes
from .batch_board import BatchBoard, Column, Gap
from .figures import Figures
from .lane_view import Lane, LaneView, Layout, lanes_of, layout_for
from .marks import GAP, level
from .receipt_words import counted, in_words, milliseconds

MIN_WIDTH, MIN_HEIGHT = 40, 12
WIDE_PHASES = 98
ROOMY_HEIGHT = 20  # from which on strips and legend have their place
STYLES = {"ok": "green", "draining": "yellow", "starting": "yellow"}
LEGEND = "▂█ prompt chunk  • token  3 tokens by guessing  ✗ preempted  ┤ ended  ! failed"
KEYS = "q leaves  p pauses  ↑↓ choose a request"


@dataclass(frozen=True, slots=True)
class Told:
    """What the worker says of itself beside its steps."""

    model: str
    address: str
    condition: str
    silence_s: float
    stats: WorkerStats

    @property
    def is_idle(self) -> bool:
        return not (self.stats.num_running or self.stats.num_waiting)


class BoardView:
    """Draws the board as it is when it is asked to. As high as the terminal with `height`
    "screen", else as it takes to show every lane."""

    def __init__(
        self, board: BatchBoard, told: Told, *, height: Literal["screen", "all"] = "screen"
    ) -> None:
        self._board = board
        self._told = told
        self._height = height
        self.selected: int | None = None  # lane
        self.is_paused = False
        self.has_keys = height == "screen"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or console.height
        if width < MIN_WIDTH or (self._height == "screen" and height < MIN_HEIGHT):
            yield Text(f"chairlift top needs {MIN_WIDTH} x {MIN_HEIGHT}, has {width} x {height}")
            return
        for line in self._lines(width, height):
            line.no_wrap, line.overflow = True, "ellipsis"
            line.truncate(width, overflow="ellipsis")
            yield line

    def _lines(self, width: int, height: int) -> list[Text]:
        layout = layout_for(width)
        columns = self._board.last(layout.num_columns)
        lanes = lanes_of(columns)
        is_roomy = self._height == "all" or height >= ROOMY_HEIGHT
        figures = Figures.of(columns)
        above = [*self._head(figures, width), *([Text()] * is_roomy)]
        of_the_steps = f"{counted(figures.num_steps, 'step')}, {figures.busy_us / 1e6:.1f} s"
        above.append(Text(layout.heading(of_the_steps), style="dim"))
        strips = _strips(columns, layout) if is_roomy else []
        below = [*([Text()] * is_roomy), *self._foot(lanes, is_roomy)]
        room = len(lanes)
        if self._height == "screen":
            room = height - len(above) - len(strips) - len(below)
        shown = LaneView(layout, columns, self.selected).lines(lanes, room)
        filling = [Text()] * (room - len(shown))
        return [*above, *shown, *strips, *filling, *below]

    def _head(self, figures: Figures, width: int) -> list[Text]:
        return [
            self._title(width),
            self._queue(),
            self._rates(figures),
            self._latencies(figures),
            _phases(figures, width),
            self._blocks(width),
        ]

    def _title(self, width: int) -> Text:
        told = self._told
        is_idle = told.condition == "ok" and told.is_idle
        title = Text.assemble(
            ("chairlift top", "bold"),
            f"  {told.model}  ",
            (told.condition, f"bold {STYLES.get(told.condition, 'red')}"),
        )
        if told.condition in ("away", "wedged"):
            title.append(f", silent for {told.silence_s:.0f} s", "red")
        elif is_idle:
            title.append(", idle", "dim")
        if self.is_paused:
            title.append("  paused", "bold yellow")
        room = width - title.cell_len - len(told.address)
        if room > 1:
            title.append(" " * room + told.address, "dim")
        return title

    def _queue(self) -> Text:
        newest, is_idle = self._board.newest, self._told.is_idle
        num_running = 0 if is_idle else self._board.num_running
        num_waiting = 0 if is_idle or newest is None else newest.num_waiting
        line = Text.assemble(("running ", "dim"), (f"{num_running:<6,}", "bold"))
        line.append("waiting ", "dim").append(f"{num_waiting:<4,}", "bold")
        if num_waiting and newest is not None:
            line.append(" ".join(split_hashes(newest.waiting)))
        return line

    def _rates(self, figures: Figures) -> Text:
        line = Text("tokens/s", style="dim")
        for name, count in (
            ("output", figures.num_new_tokens),
            ("prompt", figures.num_prompt_tokens),
        ):
            line.append(f"  {name} ").append(f"{figures.per_s(count):,.0f}", "not dim bold")
        line.append(f"   steps/s {figures.per_s(figures.num_steps):,.0f}")
        counts = [f"{count:,} {code}" for code, count in self._told.stats.num_refused if count]
        return line.append(f"   refused {', '.join(counts) or 0}")

    def _latencies(self, figures: Figures) -> Text:
        line = Text("between tokens", style="dim")
        for percent in (50, 90, 99):
            gap_us = figures.gap_us(percent)
            told = "-" if gap_us is None else f"{milliseconds(gap_us)} ms"
            line.append(f"  p{percent} ").append(told, "not dim")
        return line.append(f"   preempted {self._told.stats.num_preemptions:,}")

    def _blocks(self, width: int) -> Text:
        """The worker's own figure where no step is newer."""
        num_blocks, free = self._told.stats.num_blocks, self._told.stats.num_free_blocks
        newest, shared = self._board.newest, 0
        if newest is not None and not self._told.is_idle:
            free, shared = newest.num_free_blocks, newest.num_shared_blocks
        used = max(0, num_blocks - free - shared)
        line = Text("blocks ", style="dim")
        room = max(8, min(40, width - 48))
        line.append_text(bar([(shared, "▓", "magenta"), (used, "█", "blue")], num_blocks, room))
        for count, name in ((used, "█ by one"), (shared, "▓ shared"), (free, "░ free")):
            line.append(f"  {count:,}", "not dim").append(f" {name}", "dim")
        return line

    def _foot(self, lanes: Sequence[Lane], is_roomy: bool) -> list[Text]:
        lines = []
        chosen = next((lane for lane in lanes if lane.number == self.selected), None)
        if chosen is not None:
            lines.append(_details(chosen))
        elif is_roomy:
            lines.append(Text(LEGEND, style="dim"))
        if self.has_keys:
            lines.append(Text(KEYS, style="dim"))
        return lines


def bar(parts: Sequence[tuple[int, str, str]], whole: int, width: int) -> Text:
    """Each part's count, character and style; never nothing for something."""
    line, left = Text(), width
    for count, character, style in parts:
        length = min(left, max(1, round(width * count / whole))) if count and whole else 0
        line.append(character * length, f"not dim {style}")
        left -= length
    return line.append("░" * left, "dim")


def _phases(figures: Figures, width: int) -> Text:
    """The longest first; shares, where there is no room for milliseconds."""
    whole_us = figures.step_us
    line = Text("step ", style="dim").append(f"{milliseconds(whole_us)} ms", "not dim bold")
    for duration_us, name in sorted(zip(figures.phases_us, PHASES, strict=True), reverse=True):
        if width >= WIDE_PHASES:
            line.append(f"  {name} ").append(milliseconds(duration_us), "not dim")
        else:
            share = duration_us / whole_us if whole_us else 0.0
            line.append(f" {name} ").append(f"{share:.0%}", "not dim")
    return line


def _strips(columns: Sequence[Column | Gap], layout: Layout) -> list[Text]:
    """Tokens and time of each step, under its column."""
    records = [column.record if isinstance(column, Column) else None for column in columns]
    tokens = [sum(record.num_tokens) if record else None for record in records]
    times = [record.duration_us if record else None for record in records]
    most, longest = (max((v for v in values if v), default=0) for values in (tokens, times))
    return [
        _strip(f"tokens, up to {most:,}", tokens, most, layout),
        _strip(f"ms, up to {milliseconds(longest)}", times, longest, layout),
    ]


def _strip(name: str, values: Sequence[int | None], limit: int, layout: Layout) -> Text:
    line = Text(f"{name:>{layout.label_width - 1}} "[-layout.label_width :], style="dim")
    levels = [GAP.character if value is None else level(value, limit) for value in values]
    return line.append("".join(levels).rjust(layout.num_columns))


def _details(lane: Lane) -> Text:
    request = lane.request
    line = Text.assemble((f"{request.hash} ", "bold"), f"{request.state}: ")
    if request.ended is not None:
        return line.append(in_words(request.ended.receipt))
    line.append(f"{counted(request.num_new_tokens, 'token')} in ")
    line.append(f"{counted(request.num_steps, 'step')} seen, ")
    line.append(f"longest gap {milliseconds(request.max_gap_us)} ms")
    if request.num_preemptions:
        line.append(f", {counted(request.num_preemptions, 'preemption')}")
    return line


def plain_line(record: StepRecord | None, num_running: int, figures: Figures, told: Told) -> str:
    """All of it but the rows, for a log."""
    stats = told.stats
    itl = {f"itl_p{p}_ms": figures.gap_us(p) for p in (50, 90, 99)}
    free = stats.num_free_blocks if record is None or told.is_idle else record.num_free_blocks
    pairs = {
        "condition": told.condition,
        "running": 0 if told.is_idle else num_running,
        "waiting": 0 if told.is_idle or record is None else record.num_waiting,
        "steps_per_s": f"{figures.per_s(figures.num_steps):.1f}",
        "output_tokens_per_s": f"{figures.per_s(figures.num_new_tokens):.1f}",
        "prompt_tokens_per_s": f"{figures.per_s(figures.num_prompt_tokens):.1f}",
        **{name: "-" if us is None else f"{us / 1000:.2f}" for name, us in itl.items()},
        "step_ms": f"{figures.step_us / 1000:.2f}",
        **{f"{p}_ms": f"{us / 1000:.2f}" for p, us in zip(PHASES, figures.phases_us, strict=True)},
        "blocks_used": stats.num_blocks - free,
        "blocks_shared": 0 if told.is_idle or record is None else record.num_shared_blocks,
        "blocks_free": free,
        "preempted": stats.num_preemptions,
        "refused": sum(count for _, count in stats.num_refused),
    }
    return " ".join(f"{name}={value}" for name, value in pairs.items())
