"""The sampler against a slow one in float64, its rows against one another, its dice alone."""

from __future__ import annotations

import math
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chairlift.shared.sampling_params import MAX_SEED, SamplingParams
from chairlift.worker import sampler as module
from chairlift.worker.grammar import GrammarError
from chairlift.worker.logits_processors import LogitsProcessor
from chairlift.worker.sampler import LogitRow, Sampler, uniform
from chairlift.worker.sequence import Sequence

EOS = frozenset({2, 5})
VOCAB_SIZES = [983, 4096, 32000]  # neither a multiple of the blocks, both, and a large one
NEUTRAL: dict[str, Any] = {"max_tokens": 64, "temperature": 1.0}
_numbers = count()


def make_sequence(prompt: list[int], output: list[int], **params: Any) -> Sequence:
    values = {**NEUTRAL, **params}
    request_id = next(_numbers).to_bytes(16, "big")
    sequence = Sequence(request_id, prompt, SamplingParams(**values))
    for token_id in output:
        sequence.append(token_id)
    return sequence


def make_logits(num_rows: int, vocab_size: int, seed: int, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(num_rows, vocab_size, generator=generator)


def sample(
    logits: torch.Tensor,
    sequences: list[Sequence],
    eos: frozenset[int] = EOS,
    processors: tuple[LogitsProcessor, ...] = (),
) -> list[int | BaseException | None]:
    rows = [LogitRow(sequence) for sequence in sequences]
    return Sampler(eos, processors).sample(logits.clone(), rows)


@st.composite
def sequences(draw: st.DrawFn, vocab_size: int) -> Sequence:
    """One that wants any mix of the parameters."""
    token_ids = st.integers(0, vocab_size - 1)
    rarely = {
        "temperature": st.sampled_from([0.0, 0.1, 0.7, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 2, 40, 64, 65, 300, 1024, 1500, 5000, 2**31 - 1]),
        "top_p": st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.001, 0.1, 0.9, 1.0]),
        "presence_penalty": st.sampled_from([-2.0, 0.5, 2.0]),
        "frequency_penalty": st.sampled_from([-2.0, 0.3, 2.0]),
        "repetition_penalty": st.sampled_from([0.5, 1.1, 2.0]),
        "logit_bias": st.lists(
            st.tuples(token_ids, st.floats(-100, 100, width=32)), max_size=4
        ).map(tuple),
        "min_tokens": st.integers(0, 8),
        "stop_token_ids": st.lists(token_ids, max_size=3).map(tuple),
    }
    params: dict[str, Any] = {"seed": draw(st.integers(0, MAX_SEED))}
    for name in draw(st.sets(st.sampled_from(sorted(rarely)))):
        params[name] = draw(rarely[name])
    small = st.integers(0, 12)
    prompt = draw(st.lists(small | token_ids, min_size=1, max_size=6))
    return make_sequence(prompt, draw(st.lists(small | token_ids, max_size=6)), **params)


def scaled_in_float64(logits: torch.Tensor, sequence: Sequence) -> NDArray[np.float64]:
    """One row with bias, penalties, min_tokens and temperature, one token after another."""
    params = sequence.params
    row = logits.double().numpy().copy()
    for token_id, bias in params.logit_bias:
        row[token_id] += bias
    for token_id in set(sequence.token_ids):
        factor = params.repetition_penalty
        row[token_id] = row[token_id] / factor if row[token_id] > 0 else row[token_id] * factor
    output = sequence.token_ids[sequence.num_prompt_tokens :]
    for token_id in set(output):
        row[token_id] -= params.presence_penalty
        row[token_id] -= params.frequency_penalty * output.count(token_id)
    if len(output) < params.min_tokens:
        for token_id in (*EOS, *params.stop_token_ids):
            row[token_id] = -math.inf
    return row if params.is_greedy else row / params.temperature


def weights_in_float64(scaled: NDArray[np.float64], params: SamplingParams, slack: float = 0.0):
    """Unnormalised probabilities: min_p, then top_k, then top_p; `slack` keeps a little more, or
    less when it is negative."""
    weights = np.exp(scaled - scaled.max())
    order = np.argsort(-weights, kind="stable")
    weights[weights < params.min_p * (1 - slack)] = 0.0
    if params.top_k:
        weights[order[params.top_k :]] = 0.0
    before = np.cumsum(weights[order]) - weights[order]
    weights[order[before >= (params.top_p + slack) * weights.sum()]] = 0.0
    weights[order[0]] = 1.0
    return weights


def assert_is_right(
    token: int | BaseException | None, logits: torch.Tensor, sequence: Sequence
) -> None:
    """The token is the one that the row's random number falls on, up to float32 rounding."""
    params = sequence.params
    scaled = scaled_in_float64(logits, sequence)
    assert isinstance(token, int)
    if params.is_greedy:
        assert scaled[token] >= scaled.max() - 1e-5
        return
    slack = 1e-5 + 1e-6 * float(np.abs(scaled[np.isfinite(scaled)]).max())
    # A token on the very edge of a filter may be in or out, and moves the sum by its whole weight.
    fewer = weights_in_float64(scaled, params, -slack)
    more = weights_in_float64(scaled, params, slack)
    assert more[token] > 0, "a token that was filtered out"
    is_sorted = params.top_k or params.top_p < 1
    if is_sorted:  # by weight, and which of two equals comes first is nobody's promise
        low = fewer[scaled > scaled[token]].sum()
        high = more[scaled >= scaled[token]].sum()
    else:
        low, high = fewer[:token].sum(), more[: token + 1].sum()
    number = uniform(params.seed, sequence.num_output_tokens)
    slack *= more.sum()
    assert low - slack <= number * more.sum()
    assert number * fewer.sum() <= high + slack


@pytest.mark.parametrize(("vocab_size", "num_examples"), [(983, 150), (4096, 80), (32000, 20)])
def test_tokens_are_those_of_the_slow_sampler(vocab_size: int, num_examples: int) -> None:
    """Any mix of parameters picks the token that float64 arithmetic picks."""

    @settings(max_examples=num_examples)
    @given(
        rows=st.lists(sequences(vocab_size), min_size=1, max_size=6),
        seed=st.integers(0, 2**31),
        spread=st.sampled_from([0.1, 3.0, 10.0]),
    )
    def check(rows: list[Sequence], seed: int, spread: float) -> None:
        logits = make_logits(len(rows), vocab_size, seed, spread)
        tokens = sample(logits, rows)
        for token, row, sequence in zip(tokens, logits, rows, strict=True):
            assert_is_right(token, row, sequence)

    check()


@pytest.mark.parametrize(("vocab_size", "num_examples"), [(983, 100), (4096, 50), (32000, 12)])
def test_neighbours_do_not_change_a_token(vocab_size: int, num_examples: int) -> None:
    """Each row of a batch gets the token that it gets alone, and in reverse order."""

    @settings(max_examples=num_examples)
    @given(
        rows=st.lists(sequences(vocab_size), min_size=2, max_size=6),
        seed=st.integers(0, 2**31),
    )
    def check(rows: list[Sequence], seed: int) -> None:
        logits = make_logits(len(rows), vocab_size, seed)
        together = sample(logits, rows)
        assert together == [sample(logits[i : i + 1], rows[i : i + 1])[0] for i in range(len(rows))]
        assert together == sample(logits.flip(0), rows[::-1])[::-1]

    check()


def test_row_behind_drafts_is_sampled_as_behind_output() -> None:
    """With the dice of the token that it predicts, in all ways of sampling."""
    logits = make_logits(5, 983, seed=3)
    for params in ({}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.1}, {"logit_bias": ((7, 3.0),)}):
        known = make_sequence([1], [7], seed=9, **params)
        rows = [LogitRow(known, number) for number in range(5)]
        later = [make_sequence([1], [7] * (1 + number), seed=9, **params) for number in range(5)]
        assert Sampler(EOS).sample(logits.clone(), rows) == sample(logits, later)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "min_p": 0.2},
        {"top_k": 5},
        {"top_p": 0.8},
        {"top_k": 30, "top_p": 0.6},
        {"top_k": 100, "top_p": 0.5},
        {"top_p": 0.95, "min_p": 0.05, "temperature": 1.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("vocab_size", [40, 640])
def test_tokens_come_as_often_as_they_should(params: dict[str, Any], vocab_size: int) -> None:
    """Over many seeds the counts fit the exact probabilities (chi-squared, five sigma)."""
    num_rows = 6000
    logits = make_logits(1, vocab_size, seed=1, spread=1.5)
    rows = [make_sequence([1], [], seed=seed, **params) for seed in range(num_rows)]
    tokens = sample(logits.repeat(num_rows, 1), rows, eos=frozenset())
    observed = np.bincount(np.array(tokens, dtype=np.int64), minlength=vocab_size)
    weights = weights_in_float64(scaled_in_float64(logits[0], rows[0]), rows[0].params)
    expected = num_rows * weights / weights.sum()
    assert not observed[expected == 0].any()
    is_common = expected >= 5
    rest = [observed[~is_common].sum()], [expected[~is_common].sum()]
    observed = np.concatenate([observed[is_common], rest[0]])
    expected = np.concatenate([expected[is_common], rest[1]])
    chi_squared = ((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    num_degrees = len(expected) - 1
    assert chi_squared < num_degrees + 5 * math.sqrt(2 * num_degrees) + 5


def test_uniform_is_what_it_always_was() -> None:
    """Golden values: a resumed request must draw the same numbers in any version."""
    golden = {
        (0, 0): 0.6524484863740322,
        (0, 1): 0.7012121095215252,
        (1, 0): 0.36818951565166946,
        (42, 7): 0.7347204584623639,
        (MAX_SEED, 0): 0.41323623306268253,
        (MAX_SEED, 2**31 - 1): 0.2594983389879858,
    }
    assert {key: uniform(*key) for key in golden} == golden


def test_uniform_numbers_are_even_and_independent() -> None:
    """In [0, 1), evenly spread, and unrelated between neighbouring seeds and indices."""
    grid = np.array([[uniform(seed, index) for index in range(100)] for seed in range(200)])
    assert grid.min() >= 0
    assert grid.max() < 1
    num_sigma = math.sqrt(grid.size)
    assert abs(grid.mean() - 0.5) < 4 * math.sqrt(1 / 12) / num_sigma
    tenths = np.bincount((10 * grid).astype(int).ravel(), minlength=10)
    assert abs(tenths - grid.size / 10).max() < 5 * math.sqrt(grid.size / 10)
    centred = (grid - 0.5) * math.sqrt(12)
    for neighbour in (np.roll(centred, 1, axis=0), np.roll(centred, 1, axis=1)):
        assert abs((centred * neighbour).mean()) < 4 / num_sigma
    assert abs((centred[1:, :-1] * centred[:-1, 1:]).mean()) < 4 / num_sigma
    assert len(np.unique(grid)) == grid.size


METHODS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"top_k": 10},
    {"top_p": 0.9},
    {"top_k": 2000},
    {"min_p": 0.1},
    {"presence_penalty": 1.0, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("vocab_size", [983, 4096])
@pytest.mark.parametrize("params", METHODS, ids=str)
def test_row_that_is_no_number_ends_alone(
    bad: float, vocab_size: int, params: dict[str, Any]
) -> None:
    """NaN or infinity anywhere in a row: that row has no token, all others have theirs."""
    rows = [make_sequence([1], [3], seed=n, **params) for n in range(5)]
    logits = make_logits(5, vocab_size, seed=3)
    control = sample(logits, rows)
    logits[1, 700] = bad
    logits[3] = bad
    tokens = sample(logits, rows)
    assert [token is None for token in tokens] == [False, True, False, True, False]
    assert [tokens[i] for i in (0, 2, 4)] == [control[i] for i in (0, 2, 4)]


def test_tokens_that_are_impossible_are_never_drawn() -> None:
    """Minus infinity is a number: such tokens have no probability."""
    logits = torch.full((300, 983), -math.inf)
    logits[:, [7, 500, 982]] = 0.0
    rows = [make_sequence([1], [], seed=n, **METHODS[n % 6]) for n in range(300)]
    assert set(sample(logits, rows)) == {7, 500, 982}


def test_row_without_any_possible_token_is_no_number() -> None:
    """When everything is masked there is nothing to draw from."""
    row = make_sequence([1], [], min_tokens=1, stop_token_ids=tuple(range(7)))
    assert sample(torch.zeros(1, 7), [row]) == [None]


def test_large_logits_at_low_temperature_are_numbers_alone_and_in_a_batch() -> None:
    """What overflows is the division by the temperature, not the model: the best token wins."""
    logits = make_logits(2, 983, seed=4)
    logits[0, 11] = 1e35
    cold = make_sequence([1], [], temperature=1e-4)
    other = make_sequence([1], [], temperature=0.0)
    assert sample(logits, [cold, other])[0] == sample(logits[:1], [cold])[0] == 11


@pytest.mark.parametrize("vocab_size", [983, 4096])
@pytest.mark.parametrize("params", METHODS, ids=str)
def test_min_tokens_keeps_every_stop_away(vocab_size: int, params: dict[str, Any]) -> None:
    """Until there are min_tokens tokens, neither an EOS nor a stop id comes; then they may."""
    logits = make_logits(1, vocab_size, seed=5)
    logits[0, [2, 5, 9]] = 60.0
    values = {**params, "min_tokens": 2, "stop_token_ids": (9,)}
    for num_output_tokens, may_stop in [(0, False), (1, False), (2, True)]:
        row = make_sequence([1], num_output_tokens * [30], **values)
        (token,) = sample(logits, [row])
        assert (token in (2, 5, 9)) is may_stop


@pytest.mark.parametrize("vocab_size", [983, 4096])
def test_greedy_takes_the_lowest_of_equal_tokens(vocab_size: int) -> None:
    """Ties go to the lowest token id, whatever the size of the vocabulary."""
    logits = torch.zeros(2, vocab_size)
    logits[0, [900, 70, 71, 300]] = 1.0
    rows = [make_sequence([1], [], temperature=0.0) for _ in range(2)]
    assert sample(logits, rows) == [70, 0]


def test_equal_tokens_are_drawn_equally_often() -> None:
    """Ties among the candidates of top_k and top_p: as many as allowed, none of them favoured."""
    num_rows = 2000
    logits = torch.zeros(num_rows, 320)
    logits[:, [5, 77, 100, 319]] = 5.0
    for params in ({"top_k": 4}, {"top_p": 0.2}, {"min_p": 0.5}):
        rows = [make_sequence([1], [], seed=n, **params) for n in range(num_rows)]
        tokens = sample(logits, rows, eos=frozenset())
        counts = [tokens.count(token) for token in (5, 77, 100, 319)]
        assert sum(counts) == num_rows
        if params != {"top_p": 0.2}:
            assert all(abs(c - num_rows / 4) < 5 * math.sqrt(num_rows / 4) for c in counts)
    rows = [make_sequence([1], [], seed=n, top_k=2) for n in range(num_rows)]
    assert len(set(sample(logits, rows, eos=frozenset()))) == 2


def test_no_rows_no_tokens() -> None:
    """A step that completes no prompt has nothing to sample."""
    assert sample(torch.zeros(0, 983), []) == []


@settings(max_examples=200)
@given(
    output=st.lists(st.integers(10, 13), max_size=6),
    words=st.lists(
        st.lists(st.integers(10, 13), min_size=1, max_size=4).map(tuple), min_size=1, max_size=4
    ),
)
def test_bad_words_never_come(output: list[int], words: list[tuple[int, ...]]) -> None:
    """What would complete one is masked, and nothing else; the prompt does not count."""
    logits = torch.zeros(1, 983)
    logits[0, 10:14] = 50.0
    row = make_sequence([10, 11, 12, 13, 10], output, bad_words=tuple(words))
    module.adjust_logits(logits[0], row, EOS)
    for token_id in range(983):
        longer = (*output, token_id)
        is_bad = any(longer[-len(word) :] == word for word in words)
        assert math.isinf(logits[0, token_id]) is is_bad


class FakeConstraint:
    """Allows some tokens of its tokenizer's, or fails."""

    def __init__(self, num_tokens: int, *allowed: int) -> None:
        self._forbidden = np.ones(num_tokens, dtype=np.bool_)
        self._forbidden[list(allowed)] = False

    def forbidden(self) -> NDArray[np.bool_]:
        if self._forbidden.all():
            raise GrammarError("nothing may come", code="grammar_failed")
        return self._forbidden


def constrained(sequence: Sequence, num_tokens: int, *allowed: int) -> Sequence:
    sequence.constraint = FakeConstraint(num_tokens, *allowed)  # type: ignore[assignment]
    return sequence


@pytest.mark.parametrize("num_tokens", [900, 983, 1000])
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"min_p": 0.01}])
def test_constraint_leaves_what_it_allows(num_tokens: int, params: dict[str, Any]) -> None:
    """Of a tokenizer with fewer tokens than the model, as many, or more; no bias overrules it."""
    logits = make_logits(200, 983, seed=3)
    bias = ((950, 100.0), (7, 20.0))
    rows = [
        constrained(make_sequence([1], [], seed=n, logit_bias=bias, **params), num_tokens, 7, 40)
        for n in range(200)
    ]
    tokens = sample(logits, rows)
    assert set(tokens) <= {7, 40}
    assert tokens.count(7) > 150


def test_rows_that_fail_say_why_and_others_are_the_same() -> None:
    """A constraint or a processor that raises is told in its row's place."""

    def processor(output: Any, row: torch.Tensor) -> None:
        if output == [66]:
            row[:] = torch.nan
            raise ZeroDivisionError

    logits = make_logits(4, 4096, seed=1)
    rows = [
        make_sequence([1], [], seed=1),
        constrained(make_sequence([1], [], seed=2), 4096),
        make_sequence([1], [66], seed=3),
        make_sequence([1], [], seed=4, top_k=3),
    ]
    plain = [make_sequence([1], [], seed=1), make_sequence([1], [], seed=4, top_k=3)]
    first, stuck, divided, last = sample(logits, rows, processors=(processor,))
    assert isinstance(stuck, GrammarError)
    assert isinstance(divided, ZeroDivisionError)
    assert [first, last] == sample(logits[[0, 3]], plain)


def test_processors_come_first_and_in_order() -> None:
    """In place or by what they return; what a request forbids stays forbidden."""
    seen = []

    def double(output: Any, row: torch.Tensor) -> None:
        seen.append(list(output))
        row.mul_(2)

    def wish_for_nine(output: Any, row: torch.Tensor) -> torch.Tensor:
        assert row.max() == 8
        assert row.dtype == torch.float32
        wished = torch.zeros_like(row)
        wished[9], wished[11] = 40.0, 30.0
        return wished

    logits = torch.full((2, 983), 4.0)
    rows = [
        make_sequence([1, 2], [3], temperature=0.0),
        make_sequence([1], [], temperature=0.0, bad_words=((9,),)),
    ]
    assert sample(logits, rows, processors=(double, wish_for_nine)) == [9, 11]
    assert seen == [[3], []]


def test_processor_that_returns_another_shape_is_at_fault() -> None:
    """A scalar would be taken for a whole row."""
    processors = (lambda output, row: torch.tensor(1.0),)
    (error,) = sample(torch.zeros(1, 983), [make_sequence([1], [])], processors=processors)
    assert isinstance(error, ValueError)
