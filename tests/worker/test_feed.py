"""The step feed: records that add up to what the engine did, for those who watch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

import pytest

from chairlift.shared.codec import decode_reply
from chairlift.shared.messages import WATCH_LEASE_S, Steps, Watch
from chairlift.shared.steps import PHASES, Ended, Receipt, Row, StepRecord, split_hashes
from chairlift.worker.engine import Engine
from chairlift.worker.feed import INTERVAL_S, MAX_RECORDS, Feed
from chairlift.worker.sequence import Sequence
from tests.desk import ALICE, BOB, Desk
from tests.fake_engine import (
    CANCELLED,
    Size,
    make_engine,
    make_wish,
    random_wish,
)
from tests.simulation import letters

TIGHT = Size(num_blocks=14, max_num_seqs=5, budget=12)


@dataclass
class Stage:
    """An engine, its feed, and what each watcher has received."""

    engine: Engine
    watchers: list[bytes] = field(default_factory=lambda: [ALICE])
    deaf: set[bytes] = field(default_factory=set)
    received: dict[bytes, list[Steps]] = field(default_factory=dict)
    now: float = 100.0

    def __post_init__(self) -> None:
        self.engine.times.clock = lambda: self.now
        self.feed = Feed(self.engine, epoch=7, clock_began=1_000.0)

    def send(self, topic: bytes, body: bytes) -> bool:
        if topic in self.deaf:
            return False
        steps = decode_reply(body)
        assert isinstance(steps, Steps)
        self.received.setdefault(topic, []).append(steps)
        return True

    def publish(self, seconds: float = 0.01) -> None:
        self.now += seconds
        self.feed.publish(self.watchers, self.send, self.now)

    def turn(self, seconds: float = 0.01) -> None:
        self.engine.step()
        self.publish(seconds)

    def run(self) -> None:
        for _ in range(5_000):
            if not self.engine.has_work:
                self.publish(1.0)
                return
            self.turn()
        raise AssertionError("it never ends")

    def records(self, watcher: bytes = ALICE) -> list[StepRecord]:
        return [record for steps in self.received.get(watcher, ()) for record in steps.records]

    def ended(self, watcher: bytes = ALICE) -> list[Ended]:
        return [ended for steps in self.received.get(watcher, ()) for ended in steps.ended]


def hash_of(sequence: Sequence) -> str:
    return sequence.request_hash.hex()


def rows_of(records: list[StepRecord]) -> list[Row]:
    return [row for record in records for row in record.rows()]


def chunks(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.num_tokens > 1 or row.num_prompt_tokens]


@pytest.mark.parametrize("seed", range(20))
def test_records_add_up_to_what_the_engine_did(seed: int) -> None:
    """Tokens, preemptions, ends and receipts are those of the sequences, in a cache too small."""
    random = Random(seed)
    stage = Stage(make_engine(TIGHT, speculates=seed % 2 == 1))
    engine = stage.engine
    stage.publish()
    sequences = [random_wish(random, 40).sequence() for _ in range(12)]
    for sequence in sequences:
        engine.add(sequence)
        for _ in range(random.randint(0, 3)):
            stage.turn()
    stage.run()

    records, ends = stage.records(), {end.request.hex(): end for end in stage.ended()}
    assert [record.number for record in records] == [*range(1, engine.num_steps + 1)]
    assert len(ends) == len(stage.ended()) == len(sequences)
    all_rows = rows_of(records)
    preempted = Counter(h for record in records for h in split_hashes(record.preempted))
    assert preempted.total() == engine.scheduler.num_preemptions
    assert sum(row.num_prompt_tokens for row in all_rows) == engine.num_prompt_tokens
    assert sum(row.num_new_tokens for row in all_rows) == engine.num_generation_tokens
    assert sum(row.num_drafts for row in all_rows) == engine.num_draft_tokens
    for sequence in sequences:
        rows = [row for row in all_rows if row.request == hash_of(sequence)]
        mates = [len([*r.rows()]) - 1 for r in records if sequence.request_hash.hex() in names(r)]
        receipt, end = ends[hash_of(sequence)].receipt, ends[hash_of(sequence)]
        assert sequence.finish is not None and end.reason == sequence.finish.reason
        assert receipt == sequence.receipt
        assert receipt.num_steps == len(rows) == len(mates)
        assert receipt.num_chunks == len(chunks(rows))
        assert (receipt.num_mates, receipt.max_mates) == (sum(mates), max(mates))
        assert receipt.num_preemptions == preempted[hash_of(sequence)]
        assert receipt.num_output_tokens == sum(row.num_new_tokens for row in rows)
        assert rows[-1].num_total_tokens == sequence.num_tokens
        num_computed = sum(row.num_tokens for row in rows)
        if not receipt.num_preemptions:
            assert receipt.num_recomputed_tokens == 0
            assert num_computed <= sequence.num_tokens - receipt.num_cached_tokens
    assert records[-1].num_free_blocks == TIGHT.num_blocks


def names(record: StepRecord) -> list[str]:
    return split_hashes(record.requests)


def test_preempted_requests_say_what_was_computed_again() -> None:
    """Two that outgrow the cache: the second loses its blocks, and its receipt tells the price."""
    stage = Stage(make_engine(Size(num_blocks=8, has_prefix_cache=False)))
    stage.publish()
    first, second = (make_wish([n] * 8, max_tokens=16).sequence() for n in (5, 6))
    stage.engine.add(first)
    stage.engine.add(second)
    stage.run()
    receipts = {end.request: end.receipt for end in stage.ended()}
    assert receipts[first.request_hash].num_preemptions == 0
    told = receipts[second.request_hash]
    assert told.num_preemptions == 1
    rows = [row for row in rows_of(stage.records()) if row.request == hash_of(second)]
    again = sum(row.num_tokens for row in rows) - (second.num_tokens - 1)
    assert told.num_recomputed_tokens == again > 0


def test_the_waiting_queue_and_shared_blocks_are_told() -> None:
    """Who waits, in order; and how many blocks more than one request holds."""
    stage = Stage(make_engine(Size(max_num_seqs=2)))
    stage.publish()
    sequences = [make_wish([9] * 9, max_tokens=4).sequence() for _ in range(4)]
    for sequence in sequences:
        stage.engine.add(sequence)
    stage.run()
    second = stage.records()[1]
    assert second.num_waiting == 2
    assert split_hashes(second.waiting) == [hash_of(s) for s in sequences[2:]]
    assert second.num_shared_blocks == 2  # of 4 tokens, of a prompt of 9
    assert stage.records()[-1].num_shared_blocks == 0


def test_times_are_those_of_the_phases() -> None:
    """A step's parts add up to its time, and it began so long ago."""
    stage = Stage(make_engine())
    times = stage.engine.times
    stage.publish()
    stage.engine.add(make_wish([5], max_tokens=1).sequence())
    times.forward_s += 0.25
    times.publish_s += 0.05
    stage.turn(seconds=1.0)
    (record,) = stage.records()
    told = dict(zip(PHASES, record.phases_us, strict=True))
    expected = {"forward": 250_000, "publish": 50_000}
    assert {phase: us for phase, us in told.items() if us} == expected
    assert record.duration_us == 300_000
    assert record.began_us == round(1e6 * (1_000.0 + stage.now)) - 300_000


def test_idle_turns_are_no_steps() -> None:
    """What a worker without work spends on heartbeats is not the next step's."""
    stage = Stage(make_engine())
    times = stage.engine.times
    stage.publish()
    times.publish_s += 1.0
    stage.publish()
    stage.engine.add(make_wish([5], max_tokens=1).sequence())
    times.arrivals_s += 0.02
    stage.turn(seconds=1.0)
    (record,) = stage.records()
    assert dict(zip(PHASES, record.phases_us, strict=True))["arrivals"] == 20_000
    assert record.duration_us == 20_000


def test_a_receipt_tells_the_waits() -> None:
    """Arrival to first step, to first token, to the end; and the longest wait between steps."""
    stage = Stage(make_engine(Size(max_num_seqs=1)))
    engine = stage.engine
    ahead, sequence = (make_wish([5], max_tokens=count).sequence() for count in (1, 3))
    engine.add(ahead)
    engine.add(sequence)
    stage.now += 2.0
    engine.step()
    stage.now += 1.0
    engine.step()  # its first
    stage.now += 4.0
    engine.step()
    stage.now += 1.0
    engine.step()
    assert sequence.receipt == Receipt(
        queued_us=3_000_000,
        first_token_us=3_000_000,
        total_us=8_000_000,
        max_gap_us=4_000_000,
        num_prompt_tokens=1,
        num_output_tokens=3,
        num_steps=3,
        num_chunks=1,
    )


def test_without_watchers_nothing_is_kept_or_sent() -> None:
    """The feed begins with the step after somebody came, and forgets when nobody is left."""
    stage = Stage(make_engine(), watchers=[])
    stage.engine.add(make_wish([5], max_tokens=20, ignore_eos=True).sequence())
    for _ in range(5):
        stage.turn()
    assert not stage.received and not stage.feed._records and not stage.feed._riders
    stage.watchers = [ALICE]
    for _ in range(10):
        stage.turn()
    assert stage.records()[0].number == 7
    stage.watchers = []
    stage.turn()
    assert not stage.feed._records and not stage.feed._riders


def test_whoever_takes_nothing_misses_it_alone() -> None:
    """A watcher that is behind gets later steps, and the other gets all."""
    stage = Stage(make_engine(), watchers=[ALICE, BOB], deaf={BOB})
    stage.engine.add(make_wish([5], max_tokens=40, ignore_eos=True).sequence())
    for _ in range(20):
        stage.turn()
    stage.deaf = set()
    stage.run()
    assert [record.number for record in stage.records()] == [*range(2, 41)]
    numbers = [record.number for record in stage.records(BOB)]
    assert numbers == [*range(numbers[0], 41)] and numbers[0] > 10


def test_messages_are_rare_and_bounded() -> None:
    """At most twenty a second, fewer the more watch, each with so many records."""
    stage = Stage(make_engine(Size(num_blocks=200)))
    stage.engine.add(make_wish([5], max_tokens=700, ignore_eos=True).sequence())
    for _ in range(50):
        stage.turn(seconds=INTERVAL_S / 10)
    assert len(stage.received[ALICE]) <= 6
    for _ in range(MAX_RECORDS + 50):
        stage.turn(seconds=0.0)
    stage.turn(seconds=1.0)
    records = stage.received[ALICE][-1].records
    assert len(records) == MAX_RECORDS
    assert records[-1].number == stage.engine.num_steps
    stage.watchers = [bytes([i]) * 8 for i in range(200)]
    stage.turn(seconds=1.0)
    before = len(stage.received[stage.watchers[0]])
    for _ in range(10):
        stage.turn(seconds=INTERVAL_S)
    assert len(stage.received[stage.watchers[0]]) == before + 1


def test_the_last_end_is_told_though_no_step_follows() -> None:
    """A cancelled request ends for the watchers as well, and the loop wakes up for it."""
    stage = Stage(make_engine())
    sequence = make_wish([5], max_tokens=50, ignore_eos=True).sequence()
    stage.engine.add(sequence)
    stage.turn()
    stage.turn()
    stage.engine.end(sequence, CANCELLED)
    assert stage.feed.patience_s == INTERVAL_S
    stage.publish(1.0)
    (end,) = stage.ended()
    assert (end.request, end.reason) == (sequence.request_hash, "abort")
    assert stage.feed.patience_s == float("inf")


def test_a_watch_lasts_for_its_lease() -> None:
    """Who says it again goes on watching; who falls silent is dropped after three seconds."""
    desk = Desk(letters())
    publisher = desk.worker.publisher
    desk.turn(Watch(ALICE))
    assert publisher.watchers(desk.now) == [ALICE]
    desk.turn(seconds=WATCH_LEASE_S - 0.1)
    assert publisher.watchers(desk.now) == [ALICE]
    desk.turn(Watch(ALICE))
    desk.turn(Watch(BOB), seconds=WATCH_LEASE_S - 0.1)
    assert publisher.watchers(desk.now) == [ALICE, BOB]
    desk.turn(seconds=0.2)
    assert publisher.watchers(desk.now) == [BOB]


def test_who_reads_nothing_does_not_watch() -> None:
    """Names that nobody has subscribed to make the feed no slower, and those that left neither."""
    desk = Desk(letters())
    for number in range(100):
        desk.turn(Watch(number.to_bytes(8, "big")), seconds=0.0)
    assert desk.worker.publisher.watchers(desk.now) == []
    stage = Stage(make_engine(Size(num_blocks=200)), watchers=[bytes([i]) * 8 for i in range(200)])
    stage.engine.add(make_wish([5], max_tokens=100, ignore_eos=True).sequence())
    stage.turn(seconds=1.0)
    stage.turn(seconds=1.0)
    stage.watchers = [ALICE]
    for _ in range(10):
        stage.turn(seconds=INTERVAL_S)
    assert len(stage.received[ALICE]) >= 8
