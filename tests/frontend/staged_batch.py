"""A batch as a worker would tell of it: for tests of its picture, and for the picture in docs/.

`python -m tests.frontend.staged_batch > docs/top.svg` draws that.
"""

from __future__ import annotations

import io
import random
import re
from collections import deque
from dataclasses import dataclass, field

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from chairlift.frontend.terminal.batch_board import BatchBoard
from chairlift.frontend.terminal.board_view import BoardView, Told
from chairlift.shared.messages import Steps, WorkerStats
from chairlift.shared.steps import Ended, Receipt, StepRecord, request_hash

NUM_BLOCKS, BLOCK, MAX_RUNNING, BUDGET = 192, 32, 10, 96
FONTS = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"
THEME = TerminalTheme(
    (17, 20, 26),
    (214, 219, 226),
    [(60, 66, 78), (240, 98, 102), (112, 196, 132), (232, 188, 92),
     (92, 148, 236), (186, 126, 216), (88, 196, 208), (214, 219, 226)],
    [(110, 118, 132), (255, 120, 124), (140, 220, 160), (250, 208, 116),
     (124, 176, 255), (208, 150, 236), (120, 220, 230), (240, 244, 250)],
)  # fmt: skip


@dataclass
class Guest:
    """A request of the stage."""

    hash: bytes
    num_prompt: int
    num_output: int
    num_computed: int = 0
    num_made: int = 0


@dataclass
class Stage:
    """Plays steps one after the other: chunks within a budget, decodes, guesses that come true, a
    preemption now and then."""

    seed: int = 7
    running: list[Guest] = field(default_factory=list)
    waiting: deque[Guest] = field(default_factory=deque)
    number: int = 48_210
    now_us: int = 1_764_540_000_000_000
    num_preemptions: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def arrive(self) -> None:
        hash = request_hash(self._random.randbytes(16))
        num_prompt = self._random.choice([20, 60, 150, 420, 700])
        self.waiting.append(Guest(hash, num_prompt, self._random.randint(15, 90)))

    def play(self, num_steps: int) -> Steps:
        records, ended = [], []
        for _ in range(num_steps):
            if self._random.random() < 0.22:
                self.arrive()
            records.append(self._step())
            ended += self._leave()
        return Steps(1, records, ended)

    def _step(self) -> StepRecord:
        random, preempted = self._random, b""
        if len(self.running) == MAX_RUNNING and random.random() < 0.06:
            loser = self.running.pop()
            loser.num_computed, preempted = 0, loser.hash
            self.num_preemptions += 1
            self.waiting.appendleft(loser)
        elif len(self.running) < MAX_RUNNING and self.waiting:
            self.running.append(self.waiting.popleft())
        room, rows = BUDGET, list[tuple[Guest, int, int, int]]()
        for guest in self.running:
            missing = guest.num_prompt + guest.num_made - guest.num_computed
            count = min(missing, room) if missing > 1 else 1
            if count <= 0:
                continue
            is_caught_up = guest.num_computed + count == guest.num_prompt + guest.num_made
            num_right = random.choice([1, 2, 3]) if missing == 1 and random.random() < 0.1 else 0
            room -= count if missing > 1 else 0
            guest.num_computed += count + num_right
            guest.num_made += is_caught_up + num_right
            rows.append((guest, count, num_right, is_caught_up + num_right))
        return self._record(rows, preempted)

    def _record(self, rows: list[tuple[Guest, int, int, int]], preempted: bytes) -> StepRecord:
        forward_us = 7_000 + 130 * sum(count for _, count, *_ in rows) + 300 * len(rows)
        forward_us += self._random.randint(0, 900)
        phases = (60, 240, forward_us, 420 + 20 * len(rows), 180, 210)
        guests = [guest for guest, *_ in rows]
        blocks = [guest.num_computed // BLOCK + 1 for guest in guests]
        self.number += 1
        record = StepRecord(
            number=self.number,
            began_us=self.now_us,
            phases_us=phases,
            num_waiting=len(self.waiting),
            waiting=b"".join(guest.hash for guest in self.waiting),
            num_free_blocks=max(0, NUM_BLOCKS - sum(blocks) - 24),
            num_shared_blocks=min(18, sum(blocks) // 4),
            preempted=preempted,
            requests=b"".join(guest.hash for guest in guests),
            num_tokens=[count for _, count, *_ in rows],
            num_prompt_tokens=[count if count > 1 else 0 for _, count, *_ in rows],
            num_drafts=[drafts for *_, drafts, _ in rows],
            num_new_tokens=[new for *_, new in rows],
            num_computed_tokens=[guest.num_computed for guest in guests],
            num_total_tokens=[guest.num_prompt + guest.num_made for guest in guests],
            num_blocks=blocks,
        )
        self.now_us += sum(phases) + 30
        return record

    def _leave(self) -> list[Ended]:
        over = [guest for guest in self.running if guest.num_made >= guest.num_output]
        self.running = [guest for guest in self.running if guest not in over]
        return [
            Ended(guest.hash, "stop", Receipt(num_output_tokens=guest.num_made)) for guest in over
        ]

    def told(self) -> Told:
        stats = WorkerStats(
            num_running=len(self.running),
            num_waiting=len(self.waiting),
            num_blocks=NUM_BLOCKS,
            num_free_blocks=NUM_BLOCKS,
            num_preemptions=self.num_preemptions,
            num_refused=[("overloaded", 3)],
        )
        return Told("demo", "ipc:///run/chairlift", "ok", 0.0, stats)


def svg(width: int = 104, height: int = 24) -> str:
    """The picture of docs/: nothing in it is fetched from anywhere."""
    stage, board = Stage(), BatchBoard()
    for _ in range(14):
        stage.arrive()
    for _ in range(77):
        board.add(stage.play(2))
    view = BoardView(board, stage.told())
    console = Console(
        record=True, width=width, height=height, force_terminal=True, file=io.StringIO()
    )
    console.print(view)
    text = console.export_svg(title="chairlift top", theme=THEME)
    text = re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.DOTALL)
    return text.replace("font-family: Fira Code, monospace", f"font-family: {FONTS}")


if __name__ == "__main__":
    print(svg())
