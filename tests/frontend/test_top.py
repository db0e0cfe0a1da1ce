"""What `chairlift top` makes of the step feed: the board, its figures, and their picture."""

from __future__ import annotations

import io
import re

import pytest
from msgspec.structs import replace
from rich.console import Console

from chairlift.frontend.terminal.batch_board import LOST_AFTER, BatchBoard, Column, Gap
from chairlift.frontend.terminal.board_view import MIN_HEIGHT, MIN_WIDTH, BoardView, plain_line
from chairlift.frontend.terminal.figures import Figures
from chairlift.frontend.terminal.lane_view import bar_of, lanes_of
from chairlift.frontend.terminal.marks import DECODE, ENDED, FAILED, NOTHING, PREEMPTED, mark_of
from chairlift.shared.messages import Steps
from chairlift.shared.steps import Ended, StepRecord, request_hash
from tests.frontend.staged_batch import NUM_BLOCKS, Stage, svg
from tests.golden_messages import OTHER, RECEIPT, REQUEST
from tests.golden_messages import STEP as GOLDEN

FIRST, SECOND = request_hash(REQUEST), request_hash(OTHER)
THIRD = request_hash(b"third-request-id")
STEP = replace(GOLDEN, preempted=b"")
STEP_US = 30_000


def step(number: int, *requests: bytes, new: int = 1, preempted: bytes = b"") -> StepRecord:
    """A step of decodes, so many after the golden one."""
    columns = {name: column[:1] * len(requests) for name, column in STEP.columns.items()}
    columns["num_new_tokens"] = [new] * len(requests)
    return replace(
        STEP,
        number=STEP.number + number,
        began_us=STEP.began_us + number * STEP_US,
        requests=b"".join(requests),
        preempted=preempted,
        **columns,
    )


def board_of(*messages: Steps) -> BatchBoard:
    board = BatchBoard()
    for steps in messages:
        board.add(steps)
    return board


def drawn(board: BatchBoard, lane: int) -> str:
    """The lane's marks, a bar where steps are missing."""
    largest = 64
    return "".join(
        "|" if isinstance(column, Gap)
        else mark_of(column.cells[lane], largest).character if lane in column.cells
        else " "
        for column in board.columns
    )  # fmt: skip


def test_who_leaves_makes_room_in_its_lane() -> None:
    """A request keeps its lane until its end, which its last step shows; another has it then."""
    ended = Ended(FIRST, "stop", RECEIPT)
    board = board_of(
        Steps(1, [STEP], []),
        Steps(1, [step(1, FIRST, SECOND), step(2, FIRST, SECOND), step(3, SECOND)], [ended]),
        Steps(1, [step(4, SECOND, THIRD)], []),
    )
    assert drawn(board, 0) == "••┤ •"
    assert drawn(board, 1) == "█••••"
    first, second = lanes_of(board.last(3)), lanes_of(board.last(100))
    assert [lane.request.hash for lane in first] == [THIRD.hex(), SECOND.hex()]
    assert [lane.number for lane in second] == [0, 1]
    assert board.num_running == 2 and board.num_steps == 5


def test_marks_differ_without_colour() -> None:
    """A chunk by its size, a token, tokens guessed ahead, losing the blocks, and both ends."""
    board = board_of(
        Steps(1, [STEP], []),
        Steps(1, [step(1, FIRST, new=3), step(2, SECOND, preempted=FIRST)], []),
        Steps(1, [], [Ended(SECOND, "error", RECEIPT)]),
    )
    assert drawn(board, 0) == "•3✗" and drawn(board, 1) == "█ !"
    (half,) = board_of(Steps(1, [STEP], [])).last(1)
    assert isinstance(half, Column) and mark_of(half.cells[1], 128).character == "▄"
    characters = {mark.character for mark in (DECODE, ENDED, FAILED, NOTHING, PREEMPTED)}
    assert len(characters) == 5


def test_a_preempted_request_keeps_its_lane() -> None:
    """It waits, which its row says, until it comes back."""
    board = board_of(Steps(1, [STEP, step(1, SECOND, preempted=FIRST), step(2, SECOND)], []))
    first, second = lanes_of(board.last(9))
    assert (first.request.state, first.request.num_preemptions) == ("waiting", 1)
    assert second.request.state == "decode"
    board.add(Steps(1, [step(3, FIRST, SECOND)], []))
    assert lanes_of(board.last(9))[0].request.state == "decode"


def test_missing_steps_are_a_gap_and_missed_ends_are_noticed() -> None:
    """Where steps are missing, requests that never come again have ended meanwhile."""
    board = board_of(Steps(1, [STEP], []), Steps(1, [step(5, SECOND)], []))
    assert [column.num_missed for column in board.columns if isinstance(column, Gap)] == [4]
    assert lanes_of(board.last(9))[0].request.state != "gone"
    steps = [step(6 + i, SECOND) for i in range(LOST_AFTER)]
    board.add(Steps(1, steps, []))
    board.add(Steps(1, [step(6 + LOST_AFTER, SECOND, THIRD)], []))
    first, second = lanes_of(board.last(1000))
    assert (first.request.hash, second.request.hash) == (THIRD.hex(), SECOND.hex())


def test_another_worker_begins_anew() -> None:
    """Its numbers may be lower; what ran on the former one is gone, or comes again."""
    board = board_of(Steps(1, [step(9, FIRST)], []), Steps(2, [step(0, FIRST)], []))
    assert drawn(board, 0) == "•|•"
    assert [lane.request.num_steps for lane in lanes_of(board.last(9))] == [1]
    board.calm()
    assert board.num_running == 0 and lanes_of(board.last(1))[0].request.state == "gone"


def test_figures_are_of_the_steps_in_sight() -> None:
    """Rates without the pauses of a worker that has nothing to do; latencies by nearest rank."""
    pause = 40  # steps' time
    late = [step(pause, FIRST), step(pause + 1, FIRST, SECOND)]
    board = board_of(Steps(1, [step(0, FIRST, SECOND), step(1, FIRST)], []), Steps(2, late, []))
    figures = Figures.of(board.last(9))
    assert (figures.num_steps, figures.num_new_tokens, figures.num_prompt_tokens) == (4, 6, 0)
    assert figures.busy_us == 2 * (STEP_US + STEP.duration_us)
    assert figures.per_s(figures.num_new_tokens) == pytest.approx(6e6 / figures.busy_us)
    assert figures.gaps_us == [STEP_US] * 2 and figures.gap_us(99) == STEP_US
    assert figures.phases_us == STEP.phases_us and figures.step_us == STEP.duration_us
    nothing = Figures.of([])
    assert (nothing.per_s(0), nothing.gap_us(50), nothing.step_us) == (0, None, 0)


def staged(num_messages: int = 80) -> tuple[BatchBoard, Stage]:
    stage, board = Stage(), BatchBoard()
    for _ in range(14):
        stage.arrive()
    for _ in range(num_messages):
        board.add(stage.play(2))
    return board, stage


def picture(view: BoardView, width: int, height: int, *, colours: bool = False) -> list[str]:
    console = Console(
        file=(output := io.StringIO()),
        width=width,
        height=height,
        force_terminal=colours,
        color_system="standard" if colours else None,
    )
    console.print(view)
    return output.getvalue().splitlines()


@pytest.mark.parametrize("width", [MIN_WIDTH, 60, 80, 104, 240])
@pytest.mark.parametrize("height", [MIN_HEIGHT, 19, 24, 60])
def test_it_fits_a_terminal_of_any_size(width: int, height: int) -> None:
    """Exactly as many lines as there are, none longer than it is wide, and rows among them."""
    board, stage = staged()
    view = BoardView(board, stage.told())
    view.selected = 9
    lines = picture(view, width, height)
    assert len(lines) == height and max(map(len, lines)) <= width
    assert any(re.search(r"▸[0-9a-f]{8} .*[•▁-█]", line) for line in lines)
    rows = [line for line in lines if re.match(r"[ ▸][0-9a-f]{8} ", line)]
    assert len(rows) == 11 or any(" more" in line for line in lines)


@pytest.mark.parametrize(("width", "height"), [(MIN_WIDTH - 1, 24), (80, MIN_HEIGHT - 1), (9, 3)])
def test_a_tiny_terminal_is_told_what_it_takes(width: int, height: int) -> None:
    """Instead of a picture that nobody could read."""
    board, stage = staged(2)
    text = " ".join(picture(BoardView(board, stage.told()), width, height))
    assert re.search(r"needs\s+40\s+x\s+12", text)


def test_what_there_is_to_see() -> None:
    """The queue, the rates, the latencies, the phases, the blocks, preemptions and refusals."""
    board, stage = staged()
    text = "\n".join(picture(BoardView(board, stage.told(), height="all"), 120, 24))
    for words in ("demo  ok", "waiting 15", "refused 3 overloaded", "preempted 6", "steps/s"):
        assert words in text
    assert re.search(r"output \d+  prompt [\d,]+", text)
    assert re.search(r"p50 [\d.]+ ms  p90 [\d.]+ ms  p99 [\d.]+ ms", text)
    assert all(name in text for name in ("forward", "sample", "schedule", "publish", "commit"))
    assert re.search(r"▓+█+░+  \d+ █ by one  \d+ ▓ shared  \d+ ░ free", text)
    assert text.count("tokens, up to") == text.count("ms, up to") == 1


def test_a_chosen_request_tells_its_receipt() -> None:
    """Once it has ended; before, what was seen of it."""
    board = board_of(Steps(1, [step(0, FIRST, SECOND)], [Ended(FIRST, "stop", RECEIPT)]))
    view = BoardView(board, Stage().told())
    view.selected = 0
    assert f"{FIRST.hex()} stop: queued 12.0 ms" in picture(view, 100, 24)[-2]
    view.selected = 1
    assert f"{SECOND.hex()} decode: 1 token in 1 step seen" in picture(view, 100, 24)[-2]


def test_colours_are_left_out_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR leaves bold and dim; the characters tell everything."""
    board, stage = staged()
    view = BoardView(board, stage.told())
    assert any("\x1b[32m" in line for line in picture(view, 100, 24, colours=True))
    monkeypatch.setenv("NO_COLOR", "1")
    plain = picture(view, 100, 24, colours=True)
    assert not any(re.search(r"\x1b\[[\d;]*3[0-7]m", line) for line in plain)


def test_a_line_for_a_log() -> None:
    """Names and values, whether anything ran or not."""
    board, stage = staged()
    line = plain_line(board.newest, board.num_running, Figures.of(board.last(20)), stage.told())
    values = dict(pair.split("=") for pair in line.split(" "))
    assert values["condition"] == "ok" and values["waiting"] == "15" and values["refused"] == "3"
    assert float(values["forward_ms"]) > float(values["sample_ms"]) > 0
    assert sum(int(values[f"blocks_{kind}"]) for kind in ("used", "free")) == NUM_BLOCKS
    idle = plain_line(None, 0, Figures.of([]), Stage().told())
    assert "running=0 waiting=0" in idle and "itl_p50_ms=-" in idle


def test_bars_in_eighths() -> None:
    """From empty to full, and never beyond."""
    assert [bar_of(part, 48) for part in (0, 1, 24, 48, 99)] == [
        "░░░░░░", "▏░░░░░", "███░░░", "██████", "██████",
    ]  # fmt: skip
    assert bar_of(0, 0) == "░░░░░░"


def test_the_picture_in_the_documentation_fetches_nothing() -> None:
    """No font and no style from elsewhere."""
    text = svg()
    assert "url(http" not in text and "@import" not in text and "@font-face" not in text
    assert "chairlift" in text and text.lstrip().startswith("<svg")
