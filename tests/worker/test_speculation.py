"""What is guessed, how much of it is worth its rows, and that no answer changes."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chairlift.shared.sampling_params import Grammar, SamplingParams
from chairlift.worker.engine import Engine
from chairlift.worker.pace import Pace, Work
from chairlift.worker.scheduler import ContinuousScheduler
from chairlift.worker.sequence import Sequence
from chairlift.worker.speculation import (
    FOLLOWED_CHANCE,
    FRESH_CHANCE,
    MAX_DRAFTS,
    MAX_INDEXED,
    NUM_MATCHED,
    SMOOTHING,
    PromptLookup,
    Speculation,
)
from tests.fake_engine import (
    BLOCK_SIZE,
    CANCELLED,
    Size,
    Wish,
    make_engine,
    make_wish,
    output_of,
    pace_of_free_rows,
    random_wish,
    run_alone,
    run_to_the_end,
)
from tests.fake_model import last_plus_one, stuttering

LONG = [5, 6, 7, 8, 9, 5, 6]  # goes on with 7, 8, 9


def make_sequence(prompt: list[int], output: tuple[int, ...] = (), **params: Any) -> Sequence:
    values = {"max_tokens": 100, **params}
    sequence = Sequence(bytes(16), list(prompt), SamplingParams(**values))
    for token_id in output:
        sequence.append(token_id)
    return sequence


def lookup_of(sequence: Sequence) -> PromptLookup:
    lookup = PromptLookup(sequence)
    lookup.catch_up()
    return lookup


def slow_guess(token_ids: list[int], num_prompt_tokens: int) -> tuple[list[int], list[float]]:
    """The definition, all of it anew: what comes next and how likely."""
    chances, place, is_followed = [FRESH_CHANCE, FOLLOWED_CHANCE], None, False
    for index, token_id in enumerate(token_ids):
        if place is not None:
            is_right = token_ids[place] == token_id
            if index >= num_prompt_tokens:
                chances[is_followed] += SMOOTHING * (is_right - chances[is_followed])
            place, is_followed = place + 1 if is_right else None, is_right
        if place is None:
            end = token_ids[index + 1 - NUM_MATCHED : index + 1]
            places = [
                i for i in range(NUM_MATCHED, index + 1) if token_ids[i - NUM_MATCHED : i] == end
            ]
            place = places[-1] if places and index + 1 >= NUM_MATCHED else None
    if place is None:
        return [], []
    longer = list(token_ids)
    for number in range(MAX_DRAFTS):
        longer.append(longer[place + number])
    guesses = longer[len(token_ids) :]
    return guesses, [chances[is_followed] * chances[1] ** number for number in range(MAX_DRAFTS)]


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.integers(1, 60),
    st.sets(st.integers(1, 60)),
)
def test_guesses_are_those_of_the_definition_whenever_they_are_asked_for(
    token_ids: list[int], num_prompt_tokens: int, asked_at: set[int]
) -> None:
    """Caught up after every token or after many, place and chances are the same."""
    num_prompt_tokens = min(num_prompt_tokens, len(token_ids))
    sequence = make_sequence(token_ids[:num_prompt_tokens])
    lookup = PromptLookup(sequence)
    for token_id in token_ids[num_prompt_tokens:]:
        if sequence.num_tokens in asked_at:
            lookup.catch_up()
        sequence.append(token_id)
    lookup.catch_up()
    guesses, chances = slow_guess(token_ids, num_prompt_tokens)
    assert lookup.chances(MAX_DRAFTS) == pytest.approx(chances)
    if guesses:
        assert lookup.drafts(MAX_DRAFTS) == tuple(guesses)


def test_place_close_to_the_end_repeats_itself() -> None:
    """What comes again every two tokens is guessed to go on doing so."""
    assert lookup_of(make_sequence([1, 2, 1, 2])).drafts(5) == (1, 2, 1, 2, 1)


def test_nothing_is_guessed_from_text_that_never_repeats() -> None:
    """No chances, where the last tokens are new."""
    assert lookup_of(make_sequence([*range(50)])).chances(8) == []


def test_wrong_guesses_lower_the_chance_and_right_ones_raise_it_again() -> None:
    """Though nobody verified them: the tokens that came tell."""
    sequence = make_sequence(LONG)
    (start,) = lookup_of(sequence).chances(1)
    for number in range(30):  # 5, 6 and then what never came before
        for token_id in (100 + number, 5, 6):
            sequence.append(token_id)
    (low,) = lookup_of(sequence).chances(1)
    for token_id in 10 * (129, 5, 6):
        sequence.append(token_id)
    (high,) = lookup_of(sequence).chances(1)
    assert low < 0.1 < start < high


def test_only_the_end_of_a_long_prompt_is_read() -> None:
    """However long it is, so many tokens are enough."""
    beginning = [*LONG, *range(1000, 1000 + MAX_INDEXED)]
    assert lookup_of(make_sequence([*beginning, 5, 6])).chances(1) == []
    assert lookup_of(make_sequence([*beginning, *LONG])).drafts(3) == (7, 8, 9)


def pace_where(row_s: float, target_itl_s: float | None = None) -> Pace:
    """A step takes a second, and so much more for each row beyond the first."""
    pace = Pace(target_itl_s)
    for num_decodes in (1, 2, 4, 8, 16, 32, 64):
        pace.model.learn(Work(num_decodes=num_decodes), 1 + row_s * (num_decodes - 1))
    return pace


def num_drafts(
    pace: Pace, sequences: list[Sequence], room: int = 100, max_rows: int = 1000
) -> list[int]:
    rooms = dict.fromkeys(sequences, room)
    drafts = Speculation(pace).drafts(rooms, Work(num_decodes=len(sequences)), max_rows)
    return [len(drafts.get(sequence, ())) for sequence in sequences]


def repeating(**params: Any) -> Sequence:
    """In the midst of what it said before."""
    return make_sequence([*range(30, 60), 30, 31], (32, 33, 34, 35), **params)


def test_drafts_are_as_many_as_rows_are_cheap() -> None:
    """All that there are where rows are free, fewer where they cost, none where a row costs what a
    step does."""
    counts = [num_drafts(pace_where(s), [repeating()])[0] for s in (0.0, 0.1, 0.3, 1.0)]
    assert counts[0] == MAX_DRAFTS > counts[1] > counts[2] > counts[3] == 0


def test_larger_batches_draft_less() -> None:
    """The same sequence, beside ever more others that repeat themselves as well."""
    counts = [num_drafts(pace_where(0.02), [repeating() for _ in range(n)]) for n in (1, 8, 16, 60)]
    firsts = [count[0] for count in counts]
    assert firsts == sorted(firsts, reverse=True)
    assert firsts[0] == MAX_DRAFTS > 2 >= firsts[-1]


def test_drafts_raise_the_expected_tokens_by_more_than_the_time() -> None:
    """Whatever rows cost and however many decode."""
    for num_others in range(20):
        for row_s in (0.001, 0.01, 0.1):
            pace = pace_where(row_s)
            sequences = [repeating(), *(make_sequence([*range(40)]) for _ in range(num_others))]
            count = num_drafts(pace, sequences)[0]
            gained = sum(lookup_of(sequences[0]).chances(count))
            work = Work(num_decodes=len(sequences))
            longer = pace.model.seconds(Work(num_decodes=len(sequences) + count))
            rate = (len(sequences) + gained) / longer
            assert rate >= len(sequences) / pace.model.seconds(work)


def test_those_that_gain_nothing_wait_a_tenth_longer_at_most() -> None:
    """One that repeats itself beside one that does not gets fewer drafts than alone."""
    pace = pace_where(0.03)
    beside = num_drafts(pace, [repeating(), make_sequence([*range(40)])])
    assert beside == [3, 0]
    assert num_drafts(pace, [repeating(), repeating()]) > [8, 8]


def test_rows_are_priced_where_they_stand() -> None:
    """That the first are free says nothing of those beyond the bend."""
    pace = Pace()
    for num_decodes in (1, 2, 4, 8, 16, 32, 64):
        pace.model.learn(Work(num_decodes=num_decodes), 1 + 0.2 * max(0, num_decodes - 8))
    count = sum(num_drafts(pace, [repeating() for _ in range(4)]))
    assert 4 <= 4 + count <= 12


def test_target_of_the_operator_holds_with_drafts() -> None:
    """No step is planned to take longer."""
    assert num_drafts(pace_where(0.03, target_itl_s=1.07), [repeating()]) == [2]


def test_drafts_keep_to_blocks_budget_and_max_tokens() -> None:
    """The last token of all is sampled of a draft, and is none itself."""
    pace = pace_of_free_rows()
    assert num_drafts(pace, [repeating()], room=3) == [3]
    assert num_drafts(pace, [repeating()], room=-1) == [0]
    assert num_drafts(pace, [repeating()], max_rows=2) == [2]
    assert num_drafts(pace, [repeating(max_tokens=10)]) == [5]
    assert num_drafts(pace, [repeating(max_tokens=5)]) == [0]


@pytest.mark.parametrize(
    "params",
    [
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"repetition_penalty": 1.1},
        {"bad_words": ((1, 2),)},
        {"grammar": Grammar("regex", "a+")},
        {"min_tokens": 5},
    ],
    ids=lambda params: next(iter(params)),
)
def test_choice_that_depends_on_the_output_is_not_guessed(params: dict[str, Any]) -> None:
    """Such a row can't be sampled before the tokens before it are known."""
    assert num_drafts(pace_of_free_rows(), [repeating(**params)]) == [0]


def test_guesses_begin_when_min_tokens_are_there() -> None:
    """From then on nothing is masked."""
    assert num_drafts(pace_of_free_rows(), [repeating(min_tokens=4)]) == [MAX_DRAFTS]


def test_nothing_is_guessed_before_anything_was_learned() -> None:
    """A worker that knows no step's time knows of no free row."""
    assert num_drafts(Pace(), [repeating()]) == [0]


def test_counter_to_forty_in_fewer_steps() -> None:
    """Drafts that are right save steps, and those that are wrong cost none."""
    prompt = [*range(5, 90), 5, 6]
    plain = make_engine(next_token=last_plus_one)
    engine = make_engine(next_token=last_plus_one, speculates=True)
    wish = make_wish(prompt, max_tokens=40)
    sequences = [wish.sequence(), wish.sequence()]
    for each, sequence in zip((plain, engine), sequences, strict=True):
        each.add(sequence)
        run_to_the_end(each)
    assert output_of(sequences[0]) == output_of(sequences[1])
    assert plain.num_steps - engine.num_steps == engine.num_accepted_tokens == 28
    assert engine.num_generation_tokens == 40
    assert (plain.num_draft_tokens, engine.num_draft_tokens) == (0, 28)
    assert sequences[0].num_served_tokens == sequences[1].num_served_tokens


def test_no_drafts_beside_a_chunk() -> None:
    """The time that decodes leave is the prompts' first."""
    engine = make_engine(Size(budget=16), next_token=last_plus_one, speculates=True)
    engine.add(make_wish([*range(5, 20), 5, 6], max_tokens=12).sequence())
    for _ in range(3):
        engine.step()
    assert engine.num_draft_tokens > 0
    engine.add(make_wish([7] * 40).sequence())
    before = engine.num_draft_tokens
    engine.step()
    assert engine.num_draft_tokens == before


def test_finished_sequences_are_forgotten() -> None:
    """Their tables would be the larger part of what is kept of them."""
    engine = make_engine(next_token=stuttering, speculates=True)
    for number in range(6):
        engine.add(make_wish([number, 7, 8], max_tokens=20, ignore_eos=True).sequence())
    for _ in range(5):
        engine.step()
    assert isinstance(engine.scheduler, ContinuousScheduler)
    assert engine.scheduler.speculation is not None
    assert engine.scheduler.speculation._lookups
    run_to_the_end(engine)
    assert not engine.scheduler.speculation._lookups


def traffic(engine: Engine, random: Random, num_blocks: int) -> dict[Sequence, Wish]:
    """Arrivals and cancels; some ask on after an answer, whose blocks may be in the cache."""
    running: dict[Sequence, Wish] = {}
    for _ in range(40):
        while random.random() < 0.4:
            wish = random_wish(random, num_blocks * BLOCK_SIZE)
            ended = [s for s in running if s.finish is not None]
            if ended and random.random() < 0.5:
                earlier = random.choice(ended).token_ids
                most = num_blocks * BLOCK_SIZE - wish.params.max_tokens
                wish = Wish(tuple(earlier[:most]), wish.params)
            sequence = wish.sequence()
            running[sequence] = wish
            engine.add(sequence)
        if running and random.random() < 0.1:
            engine.end(random.choice(list(running)), CANCELLED)
        engine.step()
    run_to_the_end(engine)
    return running


@pytest.mark.parametrize("seed", range(60))
def test_every_request_gets_the_tokens_that_it_gets_without_drafts(seed: int) -> None:
    """Chunks, preemption, prefix hits and cancels included, for all ways of sampling."""
    random = Random(seed)
    num_blocks, max_num_seqs = random.randint(6, 20), random.randint(1, 8)
    size = Size(num_blocks, max_num_seqs, max_num_seqs + random.choice([BLOCK_SIZE, 9, 40]))
    engine = make_engine(size, next_token=stuttering, speculates=True)
    for sequence, wish in traffic(engine, random, num_blocks).items():
        alone = run_alone(wish, stuttering)
        if sequence.finish == CANCELLED:
            assert output_of(alone)[: sequence.num_output_tokens] == output_of(sequence)
            continue
        assert output_of(sequence) == output_of(alone)
        assert sequence.finish is not None
        assert alone.finish is not None
        assert sequence.finish.reason == alone.finish.reason
    assert engine.scheduler.block_manager.num_free_blocks == num_blocks


def test_drafts_were_right_and_wrong_in_these_tests() -> None:
    """The worlds above accept and reject many, preempt, and find prefixes."""
    num_drafts = num_accepted = num_preemptions = num_hits = 0
    for seed in range(20):
        engine = make_engine(Size(8, 6, 40), next_token=stuttering, speculates=True)
        traffic(engine, Random(seed), 8)
        num_drafts += engine.num_draft_tokens
        num_accepted += engine.num_accepted_tokens
        num_preemptions += engine.scheduler.num_preemptions
        num_hits += engine.scheduler.block_manager.num_prefix_hits
    assert num_accepted > 100
    assert num_drafts - num_accepted > 50
    assert num_preemptions > 50
    assert num_hits > 500
