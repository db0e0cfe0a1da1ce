"""The worker's side of the protocol: intake and publisher without sockets."""

from __future__ import annotations

import pytest

from chairlift.shared.messages import (
    Cancel,
    Frame,
    Greeting,
    Sync,
    TokenizerFiles,
    WorkerStats,
    pack_live,
    pack_token_ids,
    split_ids,
)
from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.tokenizer import Tokenizer
from chairlift.worker.admission import Limits
from chairlift.worker.publisher import MAX_UNACKNOWLEDGED_FRAMES
from chairlift.worker.stream import LEASE_S, UNSUBSCRIBED_LEASE_S
from tests.desk import ALICE, BOB, Desk, expected_tokens
from tests.simulation import NUM_BLOCKS, VOCAB_SIZE, letters


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return letters()


@pytest.fixture
def desk(tokenizer: Tokenizer) -> Desk:
    return Desk(tokenizer)


def test_a_subscription_is_greeted(desk: Desk) -> None:
    """The first message on a new topic is the greeting."""
    desk.turn()
    first = desk.received[ALICE][0]
    assert isinstance(first, Greeting)
    assert first.epoch == 77


def test_a_request_yields_a_row_a_step_and_one_end(desk: Desk) -> None:
    """Tokens come as they are made, in order, and the last row has the finish."""
    desk.turn(desk.submit(ALICE, 5))
    desk.turns(8)
    assert desk.tokens() == expected_tokens(5)
    assert [row.offset for row in desk.rows()] == list(range(6))
    assert desk.end().reason == "length"
    assert "".join(row.text for row in desk.rows()) == desk.tokenizer.decode(desk.tokens())


def test_the_same_id_twice_is_one_request(desk: Desk) -> None:
    """A repeated Submit makes nothing run twice; what it says is not held is handed out again."""
    desk.turn(desk.submit(ALICE, 5), desk.submit(ALICE, 5))
    desk.turn(desk.submit(ALICE, 5))
    desk.turns(8)
    assert {row.offset + i: t for row in desk.rows() for i, t in enumerate(row.token_ids)} == dict(
        enumerate(expected_tokens(5))
    )
    assert desk.worker.engine.num_generation_tokens == 6


def test_a_blocked_send_only_makes_the_next_frame_longer(desk: Desk) -> None:
    """A stalled reader gets everything later, in one row."""
    desk.turn(desk.submit(ALICE, 5))
    desk.is_blocked = True
    desk.turns(3)
    desk.is_blocked = False
    desk.turns(6)
    assert desk.tokens() == expected_tokens(5)
    assert [len(row.token_ids) for row in desk.rows()] == [1, 4, 1]
    assert [frame.number for frame in desk.frames()] == [1, 2, 3]


def test_a_gap_moves_the_pointer_back(desk: Desk) -> None:
    """What the frontend says it lacks is handed out again, at its offset."""
    desk.turn(desk.submit(ALICE, 5))
    desk.turns(3)
    desk.received[ALICE].clear()
    live = pack_live({bytes([5]) * 16: 1})
    desk.turn(Sync(ALICE, 77, 1, True, False, live))
    desk.turns(4)
    row = next(desk.rows())
    assert row.offset == 1
    assert desk.tokens() == expected_tokens(5)[1:]


def test_a_lost_end_is_sent_again(desk: Desk) -> None:
    """A finish that did not arrive is repeated when the frontend still counts the request."""
    desk.turn(desk.submit(ALICE, 5))
    desk.turns(8)
    desk.received[ALICE].clear()
    desk.turn(Sync(ALICE, 77, 6, False, False, pack_live({bytes([5]) * 16: 6})))
    assert desk.end().reason == "length"
    assert desk.tokens() == []


def test_an_unknown_id_is_named(desk: Desk) -> None:
    """A request that the worker never got comes back as unknown."""
    desk.turn(Sync(ALICE, 77, 0, False, False, pack_live({b"x" * 16: 0})))
    (frame,) = desk.frames()
    assert split_ids(frame.unknown) == [b"x" * 16]


def test_another_epoch_is_greeted(desk: Desk) -> None:
    """A frontend that still speaks to the former worker learns of this one."""
    desk.turn()
    desk.received[ALICE].clear()
    desk.turn(Sync(ALICE, 1, 9, False, False, pack_live({b"x" * 16: 0})))
    assert isinstance(desk.received[ALICE][0], Greeting)
    assert not desk.frames()


def test_the_tokenizer_is_sent_on_demand(desk: Desk) -> None:
    """A client without the tokenizer asks in its Sync."""
    desk.turn(Sync(ALICE, 77, 0, False, True, b""))
    files = [m for m in desk.received[ALICE] if isinstance(m, TokenizerFiles)]
    assert files == [desk.tokenizer.files]


def test_a_resumed_request_goes_on_where_it_was(desk: Desk) -> None:
    """A Submit with output tokens continues at that offset, as if nothing had happened."""
    held = expected_tokens(5)[:4]
    desk.turn(desk.submit(ALICE, 5, output_token_ids=pack_token_ids(held)))
    desk.turns(4)
    assert next(desk.rows()).offset == 4
    assert held + desk.tokens() == expected_tokens(5)


def test_a_resumed_request_that_was_complete_ends_at_once(desk: Desk) -> None:
    """If only the finish was lost with the former worker, only the finish is sent."""
    desk.turn(desk.submit(ALICE, 5, output_token_ids=pack_token_ids(expected_tokens(5))))
    assert desk.end().reason == "length"
    assert desk.tokens() == []
    assert not desk.worker.engine.scheduler.has_work


def test_cancel_frees_at_once(desk: Desk) -> None:
    """A cancelled request holds no block after the turn in which the message came."""
    desk.turn(desk.submit(ALICE, 5))
    assert desk.worker.blocks.num_free_blocks < NUM_BLOCKS
    desk.turn(Cancel(ALICE, bytes([5]) * 16))
    assert desk.worker.blocks.num_free_blocks == NUM_BLOCKS
    assert desk.worker.streams.find(bytes([5]) * 16) is None


def test_nobody_cancels_for_others(desk: Desk) -> None:
    """A Cancel or a Sync of another frontend does not touch a request."""
    request_id = bytes([5]) * 16
    desk.turn(desk.submit(ALICE, 5))
    desk.turn(Cancel(BOB, request_id), Sync(BOB, 77, 0, True, False, pack_live({request_id: 0})))
    desk.turns(6)
    assert desk.tokens() == expected_tokens(5)
    assert not list(desk.rows(BOB))


def test_what_a_sync_leaves_out_is_forgotten(desk: Desk) -> None:
    """A request that its frontend no longer counts is cancelled: its Cancel was lost."""
    desk.turn(desk.submit(ALICE, 5))
    desk.turn(Sync(ALICE, 77, 1, False, False, b""))
    assert not desk.worker.engine.scheduler.has_work
    assert desk.worker.streams.find(bytes([5]) * 16) is None


def test_frontends_that_are_gone_are_forgotten(desk: Desk) -> None:
    """Unsubscribed or silent for the lease, a frontend loses its requests."""
    desk.turn(desk.submit(ALICE, 5), desk.submit(BOB, 6))
    desk.worker.publisher.unsubscribed(ALICE, desk.now)
    desk.turn(seconds=UNSUBSCRIBED_LEASE_S + 0.1)
    assert desk.worker.streams.find(bytes([5]) * 16) is None
    assert desk.worker.streams.find(bytes([6]) * 16) is not None
    desk.turn(seconds=LEASE_S)
    assert desk.worker.streams.find(bytes([6]) * 16) is None
    assert desk.worker.blocks.num_free_blocks == NUM_BLOCKS


def test_frames_wait_for_acknowledgements(desk: Desk) -> None:
    """A frontend that acknowledges nothing gets no more than a window of frames."""
    for number in range(1, MAX_UNACKNOWLEDGED_FRAMES // 5 + 20):
        request = desk.submit(ALICE, 1 + number % 80, request_id=number.to_bytes(16, "big"))
        desk.turn(request)
        desk.turns(6)
    assert len(desk.frames()) == MAX_UNACKNOWLEDGED_FRAMES
    desk.turn(Sync(ALICE, 77, MAX_UNACKNOWLEDGED_FRAMES, False, False, None))
    assert len(desk.frames()) == MAX_UNACKNOWLEDGED_FRAMES + 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"tokenizer": b"another!"}, "tokenizer_mismatch"),
        ({"prompt_token_ids": pack_token_ids([VOCAB_SIZE])}, "invalid_request"),
        ({"output_token_ids": pack_token_ids([VOCAB_SIZE])}, "invalid_request"),
        ({"params": SamplingParams(max_tokens=1, stop_token_ids=(999,))}, "invalid_request"),
        ({"params": SamplingParams(max_tokens=1, logit_bias=((999, 1.0),))}, "invalid_request"),
        ({"params": SamplingParams(max_tokens=62)}, "context_length_exceeded"),
    ],
)
def test_what_cannot_be_served_is_refused(
    desk: Desk, changes: dict[str, object], code: str
) -> None:
    """A refusal is the request's one end, with a code and words, and costs no block."""
    desk.turn(desk.submit(ALICE, 5, **changes))
    assert desk.end().reason == "error"
    assert desk.end().code == code
    assert desk.end().message
    assert desk.worker.blocks.num_free_blocks == NUM_BLOCKS


def test_a_full_queue_refuses_with_a_time(desk: Desk) -> None:
    """Beyond max_waiting a request is refused at once with a time to come back."""
    desk.worker.intake._admission.limits = Limits(VOCAB_SIZE, 64, max_waiting=2)
    requests = [desk.submit(ALICE, n) for n in range(1, 9)]
    desk.turn(*requests)
    refused = [row for row in desk.rows() if row.finish is not None]
    assert {row.finish.code for row in refused if row.finish} == {"overloaded"}
    assert all(row.finish.retry_after_ms >= 1000 for row in refused if row.finish)
    desk.turns(20)
    done = [row for row in desk.rows() if row.finish is not None]
    assert len(done) == 8


def test_a_draining_worker_takes_nothing_new(desk: Desk) -> None:
    """While draining, running requests finish and new ones are refused."""
    desk.turn(desk.submit(ALICE, 5))
    desk.worker.publisher.drain()
    desk.turn(desk.submit(BOB, 6))
    assert desk.end(BOB).code == "draining"
    desk.turns(6)
    assert desk.end(ALICE).reason == "length"
    assert desk.frames()[-1].state == "draining"


def test_malformed_messages_are_counted_and_dropped(desk: Desk) -> None:
    """Garbage between two messages costs neither."""
    bad_live = Sync(ALICE, 77, 0, False, False, b"x" * 19)
    bad_ids = desk.submit(ALICE, 7, prompt_token_ids=b"12345")
    desk.turn(b"garbage", desk.submit(ALICE, 5), bad_live, bad_ids, b"", Cancel(BOB, b"y" * 16))
    desk.turns(6)
    assert desk.worker.intake.num_malformed == 4
    assert desk.tokens() == expected_tokens(5)


def test_heartbeats_carry_the_last_frame_number(desk: Desk) -> None:
    """Silence is never longer than the heartbeat, and a lost tail shows in its number."""
    desk.turn(desk.submit(ALICE, 5))
    desk.turns(7)
    desk.received[ALICE].clear()
    desk.turn(seconds=0.3)
    (heartbeat,) = desk.received[ALICE]
    assert isinstance(heartbeat, Frame)
    assert heartbeat.is_heartbeat
    assert heartbeat.number == 6
    assert heartbeat.stats == WorkerStats()
