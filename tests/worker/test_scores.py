"""Log probabilities and embeddings are those of a lonely run, however the work was cut."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from chairlift.shared.logprobs import record_bytes, unpack_logprobs
from chairlift.worker.pool import Pool, Pooling
from chairlift.worker.scoring import score
from chairlift.worker.sequence import Sequence
from tests.fake_engine import (
    Size,
    Wish,
    make_engine,
    make_wish,
    output_of,
    random_wish,
    run_alone,
    run_to_the_end,
    runner_of,
)
from tests.fake_model import digest

Records = tuple[bytes, bytes]


def scored_wish(random: Random, capacity: int) -> Wish:
    """A random wish, three of four of which want some log probabilities."""
    wish = random_wish(random, capacity)
    wanted: dict[str, Any] = random.choice(
        [
            {},
            {"num_logprobs": 0},
            {"num_logprobs": 3, "num_prompt_logprobs": 1},
            {"num_prompt_logprobs": 2},
        ]
    )
    params = {name: getattr(wish.params, name) for name in wish.params.__struct_fields__}
    return make_wish([*wish.prompt], **{**params, **wanted})


def records_of(sequence: Sequence) -> Records:
    return bytes(sequence.scores.prompt), bytes(sequence.scores.output)


def test_a_record_tells_what_the_model_said() -> None:
    """The natural logarithm of softmax, by numpy, and the likeliest in order."""
    logits = torch.tensor([1.0, 3.0, -2.0, 2.5])
    (record,) = unpack_logprobs(score(logits, 2, 3), 3)
    expected = logits.double().numpy() - np.log(np.exp(logits.double().numpy()).sum())
    assert record.logprob == pytest.approx(expected[2], abs=1e-6)
    assert [token_id for token_id, _ in record.top] == [1, 3, 0]
    assert [p for _, p in record.top] == pytest.approx([expected[i] for i in (1, 3, 0)], abs=1e-6)


def test_a_small_vocabulary_has_no_more_tokens() -> None:
    """Records keep their size."""
    (record,) = unpack_logprobs(score(torch.zeros(2), 0, 4), 4)
    assert [p for _, p in record.top[2:]] == [float("-inf")] * 2


@pytest.mark.parametrize("seed", range(20))
def test_records_do_not_depend_on_chunks_neighbours_or_the_cache(seed: int) -> None:
    """Small budgets, preemption and cached prefixes: every token's record is the lonely run's."""
    random = Random(seed)
    num_blocks = random.randint(8, 30)
    engine = make_engine(Size(num_blocks, max_num_seqs=6, budget=random.randint(8, 24)))
    wishes = [scored_wish(random, num_blocks * 4) for _ in range(12)]
    sequences = [wish.sequence() for wish in wishes]
    for sequence in sequences:
        engine.add(sequence)
    run_to_the_end(engine)
    for wish, sequence in zip(wishes, sequences, strict=True):
        assert output_of(sequence) == output_of(run_alone(wish))
        assert records_of(sequence) == records_of(run_alone(wish))
        check_sizes(sequence)


def check_sizes(sequence: Sequence) -> None:
    params, scores = sequence.params, sequence.scores
    if params.num_logprobs >= 0:
        assert len(scores.output) == sequence.num_output_tokens * record_bytes(params.num_logprobs)
    else:
        assert scores.output == b""
    if params.num_prompt_logprobs >= 0:
        size = record_bytes(params.num_prompt_logprobs)
        assert len(scores.prompt) == (sequence.num_prompt_tokens - 1) * size
    else:
        assert scores.prompt == b""


@pytest.mark.parametrize("num_held", range(1, 8))
def test_a_resumed_request_has_all_its_records(num_held: int) -> None:
    """Those of the tokens that it came with are computed again, before the first new token."""
    wish = make_wish([5, 9, 11, 7, 3, 60], num_logprobs=2, ignore_eos=True)
    whole = run_alone(wish)
    engine = make_engine(Size(budget=5))
    resumed = wish.sequence()
    engine.add(resumed, output_of(whole)[:num_held])
    assert resumed.scores.num_ready(resumed.num_output_tokens) == 0
    run_to_the_end(engine)
    assert records_of(resumed) == records_of(whole)
    assert resumed.scores.num_ready(8) == 8
    size = record_bytes(2)
    assert resumed.scores.of_output(2, 4) == whole.scores.output[2 * size : 4 * size]


def test_no_token_is_ready_before_the_prompt() -> None:
    """The prompt's records come with the first token: after a restart it waits for them."""
    wish = make_wish([5, 9, 11, 7, 3, 60], num_prompt_logprobs=0, ignore_eos=True)
    engine = make_engine(Size(budget=4))
    resumed = wish.sequence()
    engine.add(resumed, output_of(run_alone(wish))[:3])
    assert resumed.num_ready_tokens == 0
    engine.step()
    assert resumed.num_ready_tokens == 0
    run_to_the_end(engine)
    assert resumed.num_ready_tokens == 8
    assert resumed.scores.prompt == run_alone(wish).scores.prompt


def test_tokens_are_ready_when_their_records_are() -> None:
    """A step that only computes records changes what can be handed out, and says so."""
    wish = make_wish([5, 9, 11, 7], num_logprobs=0, ignore_eos=True)
    engine = make_engine(Size(budget=4))
    resumed = wish.sequence()
    engine.add(resumed, output_of(run_alone(wish))[:7])
    assert engine.step() == [resumed]
    assert 0 < resumed.scores.num_ready(7) < 7


def test_a_prompt_alone_can_be_scored() -> None:
    """With max_tokens 0 nothing is generated; the records are those of a request that goes on."""
    prompt = [5, 9, 11, 7, 3, 60, 8, 8, 8, 8, 2]
    engine = make_engine(Size(budget=4))
    sequence = make_wish(prompt, max_tokens=0, num_prompt_logprobs=1).sequence()
    engine.add(sequence)
    named = run_to_the_end(engine)
    assert named[-1] is sequence
    assert sequence.finish is not None and sequence.finish.reason == "length"
    assert output_of(sequence) == []
    going_on = run_alone(make_wish(prompt, max_tokens=3, num_prompt_logprobs=1))
    assert sequence.scores.prompt == going_on.scores.prompt
    assert engine.scheduler.block_manager.num_free_blocks == Size().num_blocks


def pooled(prompt: list[int], pooling: Pooling) -> Sequence:
    sequence = make_wish(prompt, max_tokens=0).sequence()
    sequence.pool = Pool(pooling)
    return sequence


def expected_embedding(prompt: list[int], pooling: Pooling) -> list[float]:
    rows = [[digest(prompt[:end]) % 97, prompt[end - 1]] for end in range(1, len(prompt) + 1)]
    return rows[-1] if pooling == "last" else np.mean(rows, axis=0).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", range(10))
def test_embeddings_ride_with_the_others(seed: int) -> None:
    """In one engine with generating requests, in chunks, preempted, their prefixes cached."""
    random = Random(seed)
    num_blocks = random.randint(10, 30)
    engine = make_engine(Size(num_blocks, max_num_seqs=6, budget=random.randint(8, 24)))
    riders: list[tuple[Sequence, list[int], Pooling]] = []
    for number in range(16):
        wish = random_wish(random, num_blocks * 4)
        if number % 2:
            engine.add(wish.sequence())
            continue
        pooling: Pooling = random.choice(["last", "mean"])
        riders.append((pooled([*wish.prompt], pooling), [*wish.prompt], pooling))
        engine.add(riders[-1][0])
    run_to_the_end(engine)
    for sequence, prompt, pooling in riders:
        assert sequence.finish is not None and sequence.finish.reason == "stop"
        embedding = np.frombuffer(sequence.embedding, "<f4").tolist()
        assert embedding == pytest.approx(expected_embedding(prompt, pooling), rel=1e-6)
    assert engine.scheduler.block_manager.num_free_blocks == num_blocks


def test_an_embedding_that_is_no_number_fails_alone() -> None:
    """The model's NaN ends the request that it is about."""
    engine = make_engine()
    runner = runner_of(engine)
    hidden = runner._hidden
    runner._hidden = lambda entry: hidden(entry) * np.float32("nan")  # type: ignore[method-assign]
    sequence, other = pooled([5, 6], "last"), make_wish([7]).sequence()
    engine.add(sequence)
    engine.add(other)
    run_to_the_end(engine)
    assert sequence.finish is not None and sequence.finish.code == "model_output_not_finite"
    assert other.finish is not None and other.finish.reason in ("stop", "length")
