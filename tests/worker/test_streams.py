"""Who reads and who owns a request: attaching, taking over, leaving, coming back."""

from __future__ import annotations

import pytest

from chairlift.shared.messages import (
    Attach,
    Cancel,
    Detach,
    Submit,
    Sync,
    pack_live,
    pack_token_ids,
    split_ids,
)
from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker.admission import Limits
from chairlift.worker.stream import LEASE_S, UNSUBSCRIBED_LEASE_S
from tests.desk import ALICE, BOB, PARAMS, Desk, expected_tokens
from tests.simulation import GRACE_S, NUM_BLOCKS, VOCAB_SIZE, letters

REQUEST = bytes([5]) * 16


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return letters()


@pytest.fixture
def desk(tokenizer: object) -> Desk:
    return Desk(tokenizer)  # type: ignore[arg-type]  # letters() gives a Tokenizer


def resumable(desk: Desk, **changes: object) -> Submit:
    return desk.submit(ALICE, 5, is_resumable=True, context=b"how to format", **changes)


def attach(frontend: bytes, *, takes_over: bool = True, num_held: int = 0) -> Attach:
    return Attach(frontend, REQUEST, num_held, takes_over)


def disappear(desk: Desk, frontend: bytes = ALICE) -> None:
    desk.worker.publisher.unsubscribed(frontend, desk.now)
    desk.turn(seconds=UNSUBSCRIBED_LEASE_S + 0.2)


def is_free(desk: Desk) -> bool:
    blocks = desk.worker.blocks
    return blocks.num_free_blocks == NUM_BLOCKS and not desk.worker.engine.scheduler.has_work


def test_who_attaches_gets_everything_from_the_first_token(desk: Desk) -> None:
    """A request is taken over in the middle: the new owner has all of it, and its context."""
    desk.turn(resumable(desk))
    desk.turns(3)
    desk.turn(attach(BOB))
    desk.turns(5)
    assert desk.tokens(BOB) == expected_tokens(5)
    assert desk.text(BOB) == desk.tokenizer.decode(expected_tokens(5))
    joined = desk.joined(BOB)[0]
    assert joined.is_owner
    assert joined.request.context == b"how to format"
    assert joined.request.generation == 1
    assert joined.request.output_token_ids == b""


def test_the_former_owner_is_told(desk: Desk) -> None:
    """Who was taken over hears it once, and can neither cancel nor get it back."""
    desk.turn(resumable(desk))
    desk.turn(attach(BOB))
    assert desk.end(ALICE).code == "taken_over"
    desk.turn(Cancel(ALICE, REQUEST), Sync(ALICE, 77, 2, False, False, b""))
    held = pack_token_ids(expected_tokens(5)[:1])
    desk.turn(resumable(desk, output_token_ids=held, was_owner=True))
    desk.turns(5)
    assert desk.tokens(BOB) == expected_tokens(5)
    ends = [row.finish.code for row in desk.rows(ALICE) if row.finish]
    assert ends == ["taken_over", "taken_over"], "a Submit of a lower generation is answered"


def test_a_watcher_disturbs_nobody(desk: Desk) -> None:
    """A read-only reader gets the same, the owner keeps what it has."""
    desk.turn(resumable(desk))
    desk.turn(attach(BOB, takes_over=False))
    desk.turns(2)
    desk.turn(Cancel(BOB, REQUEST))
    desk.turns(5)
    assert desk.tokens(ALICE) == expected_tokens(5)
    assert 1 < len(desk.tokens(BOB)) < 6
    assert not desk.joined(BOB)[0].is_owner


def test_an_unknown_stream_is_not_found(desk: Desk) -> None:
    """Attaching to nothing ends at once, in words."""
    desk.turn(attach(BOB))
    assert desk.end(BOB).code == "stream_not_found"
    assert desk.end(BOB).message


def test_a_verdict_that_was_lost_is_said_again(desk: Desk) -> None:
    """As long as the frontend counts the request it is told how it ended."""
    desk.turn(attach(BOB))
    desk.received[BOB].clear()
    desk.turn(Sync(BOB, 77, 1, True, False, pack_live({REQUEST: 0})))
    assert desk.end(BOB).code == "stream_not_found"
    desk.turn(Sync(BOB, 77, 2, False, False, b""))
    desk.received[BOB].clear()
    desk.turn(Sync(BOB, 77, 2, True, False, pack_live({REQUEST: 0})))
    assert split_ids(desk.frames(BOB)[0].unknown) == [REQUEST]


def test_a_resumable_request_survives_its_frontend(desk: Desk) -> None:
    """It goes on without anybody, and whoever comes within the grace has it whole."""
    desk.turn(resumable(desk))
    disappear(desk)
    desk.turns(10)
    assert desk.worker.streams.num_orphans == 0, "it has ended"
    desk.turn(seconds=GRACE_S - 5)
    desk.turn(attach(BOB))
    assert desk.tokens(BOB) == expected_tokens(5)
    assert desk.end(BOB).reason == "length"


def test_nobody_comes(desk: Desk) -> None:
    """After the grace the request is cancelled and forgotten, and its blocks are free."""
    desk.turn(resumable(desk, params=SamplingParams(max_tokens=50, temperature=0.0)))
    disappear(desk)
    assert not is_free(desk) and desk.worker.streams.num_orphans == 1
    desk.turn(seconds=GRACE_S + 0.2)
    assert is_free(desk) and desk.worker.streams.num_orphans == 0
    desk.turn(attach(BOB))
    assert desk.end(BOB).code == "stream_not_found"


def test_what_is_not_resumable_ends_with_its_frontend(desk: Desk) -> None:
    """Nobody could ask for it again, so it is not computed for the grace."""
    desk.turn(desk.submit(ALICE, 5, params=SamplingParams(max_tokens=50, temperature=0.0)))
    disappear(desk)
    assert is_free(desk)
    assert desk.worker.streams.find(REQUEST) is None


def test_detach_lets_it_go_on_and_cancel_does_not(desk: Desk) -> None:
    """Detach keeps a resumable request, for its owner's next attempt."""
    desk.turn(resumable(desk))
    desk.turn(Detach(ALICE, REQUEST))
    desk.turns(6)
    desk.turn(attach(ALICE))
    assert desk.tokens()[-6:] == expected_tokens(5)
    desk.turn(desk.submit(ALICE, 6, is_resumable=True))
    desk.turn(Cancel(ALICE, bytes([6]) * 16))
    assert desk.worker.streams.find(bytes([6]) * 16) is None
    assert is_free(desk)


def test_a_finished_answer_is_kept_for_the_grace(desk: Desk) -> None:
    """The end may have been lost between frontend and caller, so it can be fetched again."""
    desk.turn(resumable(desk))
    desk.turns(8)
    desk.turn(Sync(ALICE, 77, 6, False, False, b""))
    desk.turn(attach(BOB))
    assert desk.tokens(BOB) == expected_tokens(5)
    assert desk.end(BOB).reason == "length"
    desk.turn(Sync(BOB, 77, 1, False, False, b""))
    desk.turn(seconds=GRACE_S + 0.2)
    assert desk.worker.streams.find(REQUEST) is None


def test_failures_are_not_kept(desk: Desk) -> None:
    """A request that was refused or cancelled can be asked for anew under its id."""
    desk.turn(resumable(desk, params=SamplingParams(max_tokens=500)))
    assert desk.end().code == "context_length_exceeded"
    desk.received[ALICE].clear()
    desk.turn(Sync(ALICE, 77, 1, False, False, b""))
    desk.turn(resumable(desk))
    desk.turns(6)
    assert desk.tokens() == expected_tokens(5)


def test_the_same_request_from_two_frontends_runs_once(desk: Desk) -> None:
    """A Submit under a known id joins: both have everything, one model step a token."""
    desk.turn(resumable(desk))
    desk.turns(2)
    desk.turn(desk.submit(BOB, 5, is_resumable=True, context=b"another's"))
    desk.turns(5)
    assert desk.tokens(ALICE) == desk.tokens(BOB) == expected_tokens(5)
    assert desk.joined(BOB)[0].request.context == b"how to format"
    assert desk.worker.engine.num_generation_tokens == 6


def test_another_request_under_a_known_id_is_a_conflict(desk: Desk) -> None:
    """Nobody gets an answer to what somebody else has asked."""
    desk.turn(resumable(desk))
    desk.turn(desk.submit(BOB, 5, prompt_token_ids=pack_token_ids([9, 9])))
    desk.turns(5)
    assert desk.end(BOB).code == "request_id_conflict"
    assert not desk.tokens(BOB)
    assert desk.tokens(ALICE) == expected_tokens(5)


def test_a_joined_reader_inherits(desk: Desk) -> None:
    """When the owner goes, the other who submitted the same owns it, and is told."""
    desk.turn(desk.submit(ALICE, 5, params=SamplingParams(max_tokens=20, temperature=0.0)))
    desk.turn(desk.submit(BOB, 5, params=SamplingParams(max_tokens=20, temperature=0.0)))
    disappear(desk)
    desk.turns(20)
    assert desk.tokens(BOB) == expected_tokens(5, 20)
    assert [joined.is_owner for joined in desk.joined(BOB)] == [False, True]


def test_joined_comes_again_with_the_first_tokens(desk: Desk) -> None:
    """The frame that told whose request it is may be lost: nobody reads rows without it."""
    desk.worker.engine.step = lambda: []  # type: ignore[method-assign]  # no token yet
    desk.turn(resumable(desk), attach(BOB))
    assert len(desk.joined(BOB)) == 1
    del desk.worker.engine.step
    desk.received[BOB].clear()
    desk.turn()
    assert len(desk.joined(BOB)) == 1
    desk.received[BOB].clear()
    desk.turn(Sync(BOB, 77, 2, True, False, pack_live({REQUEST: 0})))
    assert len(desk.joined(BOB)) == 1
    desk.turns(2)
    assert len(desk.joined(BOB)) == 1


def test_after_a_restart_the_higher_generation_owns(desk: Desk) -> None:
    """The frozen former owner may be the first to submit again: it is fenced off all the same."""
    held = pack_token_ids(expected_tokens(5)[:1])
    desk.turn(resumable(desk, output_token_ids=held, was_owner=True))
    held = pack_token_ids(expected_tokens(5)[:3])
    desk.turn(desk.submit(BOB, 5, generation=1, output_token_ids=held, was_owner=True))
    desk.turns(6)
    assert desk.end(ALICE).code == "taken_over"
    assert desk.tokens(BOB) == expected_tokens(5)[3:]
    assert next(desk.rows(BOB)).offset == 3


@pytest.mark.parametrize("is_first", [True, False])
def test_a_co_reader_who_missed_a_takeover_reads_on_after_a_restart(
    desk: Desk, is_first: bool
) -> None:
    """It comes with tokens and an old generation, but was never the owner: nobody took it over."""
    held = pack_token_ids(expected_tokens(5)[:2])
    co_reader = resumable(desk, output_token_ids=held)
    owner = desk.submit(BOB, 5, generation=1, output_token_ids=held, was_owner=True)
    desk.turn(*([co_reader, owner] if is_first else [owner, co_reader]))
    desk.turns(6)
    assert desk.end(ALICE).reason == desk.end(BOB).reason == "length"
    assert desk.tokens(ALICE) == desk.tokens(BOB) == expected_tokens(5)[2:]
    stream = desk.worker.streams.find(REQUEST)
    assert stream is not None and stream.ownership.line == [BOB, ALICE]
    assert not desk.joined(ALICE)[-1].is_owner


def test_an_owner_that_comes_back_is_the_owner(desk: Desk) -> None:
    """Silent beyond its lease and not replaced, it goes on where it was, without a rival."""
    desk.turn(resumable(desk, params=SamplingParams(max_tokens=20, temperature=0.0)))
    desk.turn(seconds=LEASE_S + 0.2)
    stream = desk.worker.streams.find(REQUEST)
    assert stream is not None and stream.owner is None
    held = desk.tokens()
    params = SamplingParams(max_tokens=20, temperature=0.0)
    packed = pack_token_ids(held)
    desk.turn(resumable(desk, params=params, output_token_ids=packed, was_owner=True))
    desk.turns(20)
    assert desk.tokens() == expected_tokens(5, 20)
    assert stream.ownership.generation == 0


def test_a_request_ends_at_its_time(desk: Desk) -> None:
    """A ttl is kept, whatever the request is doing."""
    params = SamplingParams(max_tokens=50, temperature=0.0)
    desk.turn(desk.submit(ALICE, 5, ttl_ms=100, params=params))
    desk.turn(seconds=0.2)
    desk.turn()
    assert desk.end().code == "deadline_exceeded"
    assert is_free(desk)


def test_nobody_waits_for_ever(desk: Desk) -> None:
    """A request that found no place in time is refused, with a time to come back."""
    params = SamplingParams(max_tokens=50, temperature=0.0)
    limits = Limits(VOCAB_SIZE, 64, max_waiting=10, queue_timeout_s=5)
    desk.worker.intake._admission.limits = limits
    desk.turn(*[desk.submit(ALICE, n, params=params) for n in range(1, 7)])
    desk.turn(seconds=5.1)
    desk.turn()
    refused = [row.finish for row in desk.rows() if row.finish]
    assert {finish.code for finish in refused} == {"queue_timeout"}
    assert len(refused) == 2, "four run, two wait"
    assert all(finish.retry_after_ms for finish in refused)


def test_too_many_kept_answers_are_forgotten(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for what nobody may come back for is bounded; the oldest goes first."""
    monkeypatch.setattr("chairlift.worker.streams.MAX_KEPT_BYTES", 1600)
    for number in (1, 2, 3):
        desk.turn(desk.submit(ALICE, number, is_resumable=True))
        desk.turns(8)
        desk.turn(Detach(ALICE, bytes([number]) * 16))
    desk.turn(seconds=0.2)
    kept = [n for n in (1, 2, 3) if desk.worker.streams.find(bytes([n]) * 16)]
    assert kept == [2, 3]


def test_equal_salts_share_prefixes(desk: Desk) -> None:
    """A request's cache salt reaches the block manager."""
    prompt = pack_token_ids(list(range(1, 13)))
    for number, salt in ((1, b"a"), (2, b"a"), (3, b"b")):
        submit = desk.submit(ALICE, number, prompt_token_ids=prompt, cache_salt=salt)
        desk.turn(submit)
        desk.turns(8)
    cached = [row.finish.num_cached_tokens for row in desk.rows() if row.finish]
    assert cached == [0, 8, 0]
    assert PARAMS.max_tokens == 6


def test_a_running_orphan_makes_no_room_for_finished_ones(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is finished is forgotten for want of memory."""
    monkeypatch.setattr("chairlift.worker.streams.MAX_KEPT_BYTES", 1600)
    long = SamplingParams(max_tokens=60, temperature=0.0)
    desk.turn(resumable(desk, params=long), Detach(ALICE, REQUEST))
    for number in (1, 2, 3):
        desk.turn(desk.submit(ALICE, number, is_resumable=True))
        desk.turns(8)
        desk.turn(Detach(ALICE, bytes([number]) * 16))
    desk.turn(seconds=0.2)
    assert desk.worker.streams.find(REQUEST) is not None
    assert desk.worker.streams.find(bytes([1]) * 16) is None


def test_a_takeover_sent_twice_is_one(desk: Desk) -> None:
    """An Attach that is repeated, since its answer was lost, takes nothing from who came later."""
    carol = b"carol-01"
    desk.received[carol] = []
    desk.worker.publisher.subscribed(carol, desk.now)
    desk.turn(resumable(desk))
    desk.turn(attach(BOB))
    desk.turn(Attach(carol, REQUEST, 0, True, 7))
    desk.turn(attach(BOB))
    desk.turns(6)
    assert desk.end(carol).reason == "length"
    assert {row.finish.code for row in desk.rows(BOB) if row.finish} == {"taken_over"}


def test_a_submit_from_before_the_verdict_does_not_undo_it(desk: Desk) -> None:
    """Sent twice, since it was unknown, it may come with the takeover: nobody joins by it."""
    submit = resumable(desk)
    desk.turn(submit)
    desk.turn(attach(BOB), submit)
    desk.turns(6)
    assert desk.end(ALICE).code == "taken_over"
    assert desk.tokens(BOB) == expected_tokens(5)
    assert len(desk.tokens(ALICE)) == 1


def test_who_leaves_before_the_verdict_may_come_back(desk: Desk) -> None:
    """A Detach takes the verdict back, so a Submit after it is another caller's and joins."""
    submit = resumable(desk)
    desk.turn(submit)
    desk.received[ALICE].clear()
    desk.turn(attach(BOB), Detach(ALICE, REQUEST), submit)
    desk.turns(6)
    assert desk.end(ALICE).reason == desk.end(BOB).reason == "length"
    assert desk.tokens(ALICE) == desk.tokens(BOB) == expected_tokens(5)


@pytest.mark.parametrize("attaches", [True, False])
def test_a_former_owner_behind_another_is_fenced_off_as_well(desk: Desk, attaches: bool) -> None:
    """After a restart a joiner was first: who took it over fences the owner before all the same."""
    carol = b"carol-01"
    desk.received[carol] = []
    desk.worker.publisher.subscribed(carol, desk.now)
    held = pack_token_ids(expected_tokens(5)[:1])
    desk.turn(desk.submit(carol, 5, is_resumable=True))
    desk.turn(resumable(desk, output_token_ids=held, was_owner=True))
    newer = desk.submit(BOB, 5, generation=1, output_token_ids=held, was_owner=True)
    desk.turn(attach(BOB) if attaches else newer)
    desk.turns(6)
    assert desk.end(ALICE).code == "taken_over"
    assert desk.end(BOB).reason == "length"
    assert desk.end(carol).code == ("taken_over" if attaches else "")


def test_a_taker_that_was_given_up_too_early(desk: Desk) -> None:
    """Who took a stream over and was thought to be gone gets it again: nobody else took it."""
    desk.turn(resumable(desk, params=SamplingParams(max_tokens=60, temperature=0.0)))
    desk.turn(attach(BOB))
    disappear(desk, BOB)
    desk.received[BOB].clear()
    desk.worker.publisher.subscribed(BOB, desk.now)
    desk.turn(attach(BOB))
    desk.turns(60)
    assert desk.end(BOB).reason == "length"
    assert desk.tokens(BOB) == expected_tokens(5, 60)


def test_what_failed_can_be_tried_again_at_once(desk: Desk) -> None:
    """A Submit under the id of a failure runs, before anybody has acknowledged the failure."""
    desk.turn(desk.submit(ALICE, 5, ttl_ms=20, params=SamplingParams(max_tokens=60)))
    desk.turn(seconds=0.2)
    assert desk.end().code == "deadline_exceeded"
    desk.received[ALICE].clear()
    desk.turn(resumable(desk))
    desk.turns(8)
    assert desk.tokens() == expected_tokens(5)
    desk.turn(Detach(ALICE, REQUEST), attach(BOB))
    assert desk.tokens(BOB) == expected_tokens(5)
