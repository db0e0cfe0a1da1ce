"""`chairlift top`: the worker's batch, as it moves."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import deque
from datetime import UTC, datetime

from pydantic import Field
from rich.console import Console
from rich.live import Live

from ...shared.logs import configure_logs
from ...shared.messages import Steps
from ...shared.settings import load_settings
from ..client import AsyncClient
from ..step_feed import StepFeed
from .batch_board import BatchBoard
from .board_view import BoardView, Told, plain_line
from .broken_pipe import forget_output
from .figures import Figures
from .flags import FlagSettings
from .keys import Keys
from .lane_view import lanes_of, layout_for

REDRAW_S = 0.1  # at most so often, however many steps there are
QUIET_S = 1.0  # without steps of a worker that has no work: ends have been told by then
MAX_HELD = 1024  # messages that come while the picture stands still


class TopSettings(FlagSettings):
    """Shows the worker's batch as it moves; q leaves. Not at a terminal, a line a second."""

    once: bool = Field(
        default=False, description="Watch for a second, print what there is then, and leave."
    )


def main(arguments: list[str]) -> int:
    """The exit code; leaving by Ctrl-C is none of failure."""
    settings = load_settings(TopSettings, "top", arguments)
    console = Console()
    has_screen = sys.stdout.isatty() and not console.is_dumb_terminal and not settings.once
    # A line of the log amid the picture would tear it.
    configure_logs(settings.log_format, "error" if has_screen else settings.log_level)
    try:
        asyncio.run(_run(settings, console, has_screen))
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        forget_output()
    return 0


async def _run(settings: TopSettings, console: Console, has_screen: bool) -> None:
    """Raises WorkerUnavailableError when none is there at first."""
    async with AsyncClient(settings.address, curve=settings.load_curve()) as client:
        await client.connect()
        async with client.watch() as feed:
            top = Top(client, console)
            taking = asyncio.create_task(top.take_in(feed))
            try:
                if settings.once:
                    await top.print_once()
                elif has_screen:
                    await top.show()
                else:
                    await top.print_lines()
            finally:
                taking.cancel()


class Top:
    """Takes the feed in, and shows it until it is told to leave."""

    def __init__(self, client: AsyncClient, console: Console) -> None:
        self._client = client
        self._console = console
        self._board = BatchBoard()
        self._held: deque[Steps] = deque(maxlen=MAX_HELD)
        self._is_over = False
        self._is_paused = False
        self._selected: int | None = None
        self._news = asyncio.Event()

    async def take_in(self, feed: StepFeed) -> None:
        async for steps in feed:
            self._held.append(steps)
            if not self._is_paused:
                self._take_held()
                self._news.set()

    async def show(self) -> None:
        """In an alternate screen, which leaves the terminal as it was."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._press, "q")
        with (
            Keys(self._press) as keys,
            Live(console=self._console, screen=True, auto_refresh=False) as live,
        ):
            while not self._is_over:
                live.update(self._view(has_keys=keys.is_there), refresh=True)
                await asyncio.sleep(REDRAW_S)
                await self._something()

    async def print_lines(self) -> None:
        before = self._board.num_steps
        while True:
            await asyncio.sleep(1)
            self._calm_down()
            board, told = self._board, self._told()
            figures = Figures.of(board.last(board.num_steps - before))
            before = board.num_steps
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            print(now, plain_line(board.newest, board.num_running, figures, told), flush=True)

    async def print_once(self) -> None:
        await asyncio.sleep(1)
        self._console.print(BoardView(self._board, self._told(), height="all"))

    async def _something(self) -> None:
        """Steps or a key, or enough time that the worker's condition may be another."""
        try:
            async with asyncio.timeout(QUIET_S):
                await self._news.wait()
        except TimeoutError:
            self._calm_down()
        self._news.clear()

    def _calm_down(self) -> None:
        if self._client.condition == "ok" and self._told().is_idle:
            self._board.calm()

    def _press(self, key: str) -> None:
        match key:
            case "q":
                self._is_over = True
            case "p" | " ":
                self._is_paused = not self._is_paused
                self._take_held()
            case "up" | "down":
                self._choose(-1 if key == "up" else 1)
        self._news.set()

    def _choose(self, step: int) -> None:
        """The next lane in sight; beyond the first one none is chosen."""
        columns = self._board.last(layout_for(self._console.width).num_columns)
        lanes = [lane.number for lane in lanes_of(columns)]
        places: list[int | None] = [None, *lanes]
        place = places.index(self._selected) if self._selected in places else 0
        self._selected = places[min(max(0, place + step), len(places) - 1)]

    def _take_held(self) -> None:
        while self._held and not self._is_paused:
            self._board.add(self._held.popleft())

    def _view(self, *, has_keys: bool) -> BoardView:
        view = BoardView(self._board, self._told())
        view.selected, view.is_paused, view.has_keys = self._selected, self._is_paused, has_keys
        return view

    def _told(self) -> Told:
        client = self._client
        model = client.worker.model if client.worker else "no worker"
        return Told(model, client.address, client.condition, client.silence_s, client.stats)
