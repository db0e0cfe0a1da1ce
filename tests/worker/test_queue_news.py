"""Where requests stand while they wait, as the worker tells it and as a frontend hears it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from chairlift.frontend.protocol import FrontendProtocol, Output
from chairlift.frontend.request_options import RequestOptions
from chairlift.shared.codec import decode_request, encode
from chairlift.shared.messages import Attach, Detach, Frame, Message, Submit
from chairlift.shared.queue_place import QueuePlace
from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker.admission import Limits
from chairlift.worker.intake import QUEUE_NEWS_INTERVAL_S
from chairlift.worker.publisher import HEARTBEAT_S
from tests.desk import ALICE, BOB, Desk
from tests.simulation import VOCAB_SIZE, letters
from tests.simulation.worker import MAX_NUM_SEQS

LONG = SamplingParams(max_tokens=50, temperature=0.0)
SECOND = QUEUE_NEWS_INTERVAL_S + 0.01


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return letters()


@pytest.fixture
def desk(tokenizer: object) -> Desk:
    return Desk(tokenizer)  # type: ignore[arg-type]  # letters() gives a Tokenizer


def fill(desk: Desk) -> None:
    """Every seat, for a while."""
    desk.turn(*(desk.submit(BOB, n, params=LONG) for n in range(80, 80 + MAX_NUM_SEQS)))


def ask(desk: Desk, number: int, **changes: object) -> Submit:
    return desk.submit(ALICE, number, params=LONG, wants_queue_news=True, **changes)


def told(desk: Desk, frontend: bytes = ALICE) -> list[tuple[int, int]]:
    """Requests, by number, and how many were ahead of them."""
    frames = [m for m in desk.received[frontend] if isinstance(m, Frame)]
    return [(rid[0], place.num_ahead) for frame in frames for rid, place in frame.queued]


def say(desk: Desk, *requests: Message) -> None:
    """So that whoever waits is due to be told; the loop turns once more for the heartbeat."""
    desk.turn(*requests, seconds=HEARTBEAT_S)
    desk.turn()


def pause(desk: Desk, seconds: float = SECOND) -> None:
    """So long in which the worker's loop only turns."""
    desk.turn(seconds=seconds)


def test_who_asks_is_told_how_many_are_ahead(desk: Desk) -> None:
    """At once, and those alone that asked, and only their own frontend."""
    fill(desk)
    say(desk, ask(desk, 1), desk.submit(ALICE, 2), ask(desk, 3))
    assert told(desk) == [(1, 0), (3, 2)]
    assert not told(desk, BOB)


def test_news_comes_once_a_second(desk: Desk) -> None:
    """However often the loop turns, and although nothing changes."""
    fill(desk)
    say(desk, ask(desk, 1))
    for _ in range(3):
        pause(desk, QUEUE_NEWS_INTERVAL_S / 4)
    assert told(desk) == [(1, 0)]
    pause(desk, QUEUE_NEWS_INTERVAL_S / 4)
    assert told(desk) == 2 * [(1, 0)]


def test_places_fall_and_end_when_the_request_begins(desk: Desk) -> None:
    """What was to be told of one that boards meanwhile is not told."""
    fill(desk)
    say(desk, ask(desk, 1), ask(desk, 2))
    gone = desk.worker.scheduler.running[0].request_id
    desk.turn(Detach(BOB, gone), seconds=SECOND)
    assert desk.worker.scheduler.running[-1].request_id[0] == 1
    pause(desk)
    assert told(desk) == [(1, 0), (2, 1), (2, 1), (2, 0)]
    desk.turns(60)
    count = len(told(desk))
    pause(desk)
    pause(desk)
    assert len(told(desk)) == count


def test_a_preempted_request_is_not_in_the_queue_again(desk: Desk) -> None:
    """It has begun."""
    say(desk, ask(desk, 1))
    (sequence,) = desk.worker.scheduler.running
    desk.worker.scheduler._preempt(sequence)
    assert not sequence.waits_to_begin
    desk.worker.intake.receive([], desk.now + SECOND)
    assert not told(desk)


def test_the_news_is_no_frame_of_its_own(desk: Desk) -> None:
    """It rides on a heartbeat, which keeps the last frame's number, or on a frame with rows; so its
    loss is no gap."""
    fill(desk)
    say(desk, ask(desk, 1))
    (frame,) = [m for m in desk.received[ALICE] if isinstance(m, Frame) and m.queued]
    assert (frame.is_heartbeat, frame.number) == (True, 0)
    desk.turn(desk.submit(ALICE, 2, tokenizer=b"another!"), seconds=SECOND)
    frame = [m for m in desk.received[ALICE] if isinstance(m, Frame)][-1]
    assert (frame.is_heartbeat, frame.number) == (False, 1)
    assert [rid[0] for rid, _ in frame.queued] == [1]


def test_what_is_not_taken_is_told_by_the_next_frame(desk: Desk) -> None:
    """A stalled reader is told once, and of the place as it is then."""
    fill(desk)
    desk.is_blocked = True
    desk.turn(ask(desk, 1, priority=5), seconds=HEARTBEAT_S)
    desk.turn(desk.submit(ALICE, 2, params=LONG), seconds=SECOND)
    desk.is_blocked = False
    desk.turn(seconds=HEARTBEAT_S)
    assert told(desk) == [(1, 1)]


def test_who_attaches_hears_it_too(desk: Desk) -> None:
    """It is the request that asks, whoever reads it; who leaves is told no more."""
    fill(desk)
    desk.turn(ask(desk, 1, is_resumable=True))
    desk.turn(Attach(BOB, bytes([1]) * 16, 0, takes_over=False))
    pause(desk)
    assert told(desk, BOB)[-1] == (1, 0)
    assert desk.joined(BOB)[0].request.wants_queue_news
    count = len(told(desk, BOB))
    desk.turn(Detach(BOB, bytes([1]) * 16), seconds=SECOND)
    pause(desk)
    assert len(told(desk, BOB)) == count


def test_a_refusal_says_how_long_the_queue_is(desk: Desk) -> None:
    """In words and in numbers: full when it came, and still waiting when its time was over."""
    fill(desk)
    limits = Limits(VOCAB_SIZE, 64, max_waiting=2, queue_timeout_s=5)
    desk.worker.intake._admission.limits = limits
    waiting = [desk.submit(ALICE, n, params=LONG) for n in (1, 2)]
    desk.turn(*waiting, desk.submit(ALICE, 3, params=LONG))
    full = desk.end()
    assert (full.code, full.queue) == ("overloaded", QueuePlace(2, 1000))
    assert full.message == (
        "2 requests are waiting already, which takes about 1 s: try again later"
    )
    desk.turn(seconds=5.1)
    desk.turn()
    late = [row.finish for row in desk.rows() if row.finish and row.finish.code == "queue_timeout"]
    assert [finish.queue for finish in late] == [QueuePlace(0, 1000), QueuePlace(0, 1000)]
    assert "0 are still ahead of it, which takes about 1 s" in late[0].message


def test_half_of_its_time_over_a_request_is_hurried(desk: Desk) -> None:
    """Not before; and what has all the time there is never is."""
    fill(desk)
    desk.turn(*(desk.submit(ALICE, n, params=LONG) for n in (1, 2, 3)))
    desk.turn(desk.submit(ALICE, 4, params=LONG, ttl_ms=2000))
    order = [1, 2, 3, 4]
    desk.worker.scheduler.max_num_seqs = 0  # nobody boards
    assert [s.request_id[0] for s in desk.worker.scheduler.waiting] == order
    desk.worker.intake.receive([], desk.now + 0.9)
    assert [s.request_id[0] for s in desk.worker.scheduler.waiting] == order
    desk.worker.intake.receive([], desk.now + 1.01)
    assert [s.request_id[0] for s in desk.worker.scheduler.waiting] == [4, 1, 2, 3]
    place = desk.worker.scheduler.waiting[0].place
    desk.worker.intake.receive([], desk.now + 1.2)
    assert desk.worker.scheduler.waiting[0].place == place


def heard(protocol: FrontendProtocol, frame: Frame) -> list[object]:
    return list(protocol.receive(encode(frame), 0.0))


def frontend_with_a_request(desk: Desk) -> FrontendProtocol:
    """It has met the worker and submitted one, under REQUEST."""
    protocol = FrontendProtocol(ALICE, 0.0)
    desk.turn()
    protocol.receive(encode(desk.received[ALICE][0]), 0.0)  # type: ignore[arg-type]  # a greeting
    protocol.submit([1], LONG, RequestOptions(request_id=REQUEST, wants_queue_news=True), 0.0)
    return protocol


REQUEST, STRANGER = bytes(16), bytes([9]) * 16
FIRST, THEN = QueuePlace(3, 2000), QueuePlace(2, 1500)


def heartbeat(desk: Desk, *places: tuple[bytes, QueuePlace]) -> Frame:
    desk.turn(seconds=HEARTBEAT_S)
    frame = desk.received[ALICE][-1]
    assert isinstance(frame, Frame) and frame.is_heartbeat
    return replace(frame, queued=[*places])


def test_a_frontend_hears_of_changes_alone(desk: Desk) -> None:
    """Of its own requests, and of none that has tokens."""
    protocol = frontend_with_a_request(desk)
    submit = decode_request(protocol.outgoing[-1])
    assert isinstance(submit, Submit) and submit.wants_queue_news
    for place, expected in [(FIRST, [FIRST]), (FIRST, []), (THEN, [THEN])]:
        news = heard(protocol, heartbeat(desk, (REQUEST, place), (STRANGER, place)))
        assert [one.queue for one in news if isinstance(one, Output)] == expected
        assert all(isinstance(one, Output) and not one.token_ids for one in news)
    protocol._requests[REQUEST].output_token_ids.append(5)
    assert not heard(protocol, heartbeat(desk, (REQUEST, FIRST)))
    assert protocol.so_far(REQUEST).queue is None


def test_a_place_says_nothing_of_what_is_not_known_yet(desk: Desk) -> None:
    """Who attached hears first whose request it is."""
    protocol = frontend_with_a_request(desk)
    protocol.attach(STRANGER, 0.0, takes_over=False)
    assert not heard(protocol, heartbeat(desk, (STRANGER, FIRST)))


def test_after_a_restart_it_is_asked_for_again(desk: Desk) -> None:
    """By the request, as it is submitted anew."""
    protocol = frontend_with_a_request(desk)
    protocol.outgoing.clear()
    greeting = replace(protocol.greeting, epoch=78)  # type: ignore[type-var]  # it has one
    protocol.receive(encode(greeting), 1.0)  # type: ignore[arg-type]  # likewise
    again = [decode_request(data) for data in protocol.outgoing]
    assert [one.wants_queue_news for one in again if isinstance(one, Submit)] == [True]


def test_where_a_request_stands_makes_it_no_other(desk: Desk) -> None:
    """Asked again without the news it is joined."""
    asked = ask(desk, 1)
    assert asked.is_same(replace(asked, wants_queue_news=False))
