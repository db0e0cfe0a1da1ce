"""What stands for a request's part in a step: one character, told apart without its colour."""

from __future__ import annotations

from dataclasses import dataclass

from .batch_board import Cell

CHUNKS = "▁▂▃▄▅▆▇█"  # of a prompt; the fullest is the largest in sight
MAX_DIGIT = 9


@dataclass(frozen=True, slots=True)
class Mark:
    character: str
    style: str = ""


NOTHING = Mark(" ")
GAP = Mark("┊", "dim")  # steps that were not told
DECODE = Mark("•", "green")
ENDED = Mark("┤", "bold")
FAILED = Mark("!", "bold red")
PREEMPTED = Mark("✗", "bold red")


def mark_of(cell: Cell, largest_chunk: int) -> Mark:
    """The end of a request hides what its last step was, and so does a preemption."""
    if cell.ending:
        return FAILED if cell.ending in ("error", "abort") else ENDED
    if cell.is_preempted:
        return PREEMPTED
    if cell.row is None:
        return NOTHING
    if cell.row.is_chunk:
        return Mark(level(cell.row.num_tokens, largest_chunk), "cyan")
    if cell.row.num_new_tokens > 1:  # guessed ahead, and right
        count = cell.row.num_new_tokens
        return Mark(str(count) if count <= MAX_DIGIT else "+", "bold yellow")
    return DECODE


def level(value: float, limit: float) -> str:
    """Never nothing for something."""
    if value <= 0 or limit <= 0:
        return " "
    return CHUNKS[min(len(CHUNKS), max(1, round(len(CHUNKS) * value / limit))) - 1]
