"""The sampling kernels against a slow twin, against the CPU's sampler, and their rows alone."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from chairlift.shared.sampling_params import MAX_LOGIT_BIAS, MAX_SEED, SamplingParams
from chairlift.worker import sampler as cpu
from chairlift.worker.cuda import sampling_columns as columns
from chairlift.worker.cuda.sampling import GpuSampler, SampledRows
from chairlift.worker.cuda.sampling_state import SamplingState, packed
from chairlift.worker.cuda.sampling_variants import SamplingShape
from chairlift.worker.sampler import LogitRow, Sampler
from chairlift.worker.sequence import Sequence
from tests.worker.cuda import sampling_twin as twin
from tests.worker.cuda.device import DEVICE
from tests.worker.cuda.random_numbers_kernels import random_numbers_kernel

EOS = frozenset({2, 5})
SHAPES = (
    SamplingShape(300, split=128, block=16, capacity=32, tile=256),
    SamplingShape(683, split=256, block=32, capacity=128, tile=256, pivots=64),
    SamplingShape(1000, split=1024, block=64, capacity=1024, tile=1024, pivots=64),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_NUM_ROWS = 8
IN_PROMPT = columns.IN_PROMPT.value
NUM_DRAWS = 4000 if DEVICE.type == "cuda" else 20  # the interpreter takes 50 ms for one
_numbers = count()


def make_sequence(prompt: list[int], output: list[int], **params: Any) -> Sequence:
    values = {"max_tokens": 64, "temperature": 1.0, **params}
    sequence = Sequence(next(_numbers).to_bytes(16, "big"), prompt, SamplingParams(**values))
    for token_id in output:
        sequence.append(token_id)
    return sequence


def make_logits(num_rows: int, vocab_size: int, seed: int, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(num_rows, vocab_size, generator=generator)


def random_sequence(rng: random.Random, vocab_size: int) -> Sequence:
    """One that wants any mix of the parameters."""

    def tokens(most: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(rng.randint(0, most))]

    choices: dict[str, Any] = {
        "temperature": rng.choice([0.0, 0.1, 0.7, 1.0, 2.0]),
        "top_k": rng.choice([1, 2, 7, 20, 64, 200, vocab_size - 1, vocab_size, 2**31 - 1]),
        "top_p": rng.choice([1e-6, 0.1, 0.5, 0.9, 0.999]),
        "min_p": rng.choice([0.001, 0.1, 0.9, 1.0]),
        "presence_penalty": rng.choice([-2.0, 0.5, 2.0]),
        "frequency_penalty": rng.choice([-2.0, 0.3, 2.0]),
        "repetition_penalty": rng.choice([0.5, 1.1, 2.0]),
        "logit_bias": tuple((token_id, rng.uniform(-20, 20)) for token_id in tokens(6)),
        "min_tokens": rng.randint(1, 8),
        "stop_token_ids": tuple(tokens(3)),
    }
    names = rng.sample(sorted(choices), rng.randint(0, len(choices)))
    params = {name: choices[name] for name in names}
    params["seed"] = rng.randint(0, MAX_SEED)
    prompt = tokens(6) or [1]
    output = [rng.choice([*prompt, 3, *tokens(6)]) for _ in range(rng.randint(0, 8))]
    return make_sequence(prompt, output, **params)


@dataclass(frozen=True, slots=True)
class Result:
    """Of real rows, on the CPU."""

    token_ids: list[int]
    is_number: list[int]
    logprobs: list[float]
    limits: list[int]
    num_candidates: list[int]


@dataclass(frozen=True, slots=True)
class Step:
    """Rows, each with its own table row, in an order unlike theirs."""

    shape: SamplingShape
    sequences: list[Sequence]
    logits: torch.Tensor  # [num_rows, vocab_size]
    num_drafts: tuple[int, ...] = (0,) * MAX_NUM_ROWS
    num_padding_rows: int = 2

    def run(self) -> Result:
        num_rows, vocab_size = self.logits.shape
        tables = [2 * number + 1 for number in reversed(range(num_rows))]
        state = SamplingState.empty(2 * num_rows + 2, vocab_size, DEVICE)
        state.counts.fill_(7)  # of whoever had the table row before
        size = num_rows + self.num_padding_rows
        sampler = GpuSampler(self.shape, size, state, self.logits.dtype)
        for table, sequence in zip(tables, self.sequences, strict=True):
            num_output_tokens = sequence.num_output_tokens
            for update in state.updates(table, packed(sequence.params, num_output_tokens, EOS)):
                values = torch.from_numpy(update.numbers).to(update.table.device)
                update.table[table, : len(values)] = values
            if sequence.params.has_penalties:
                sampler.start(table, integers(sequence.token_ids), sequence.num_prompt_tokens)
        logits = torch.full((size, vocab_size), math.nan, dtype=self.logits.dtype, device=DEVICE)
        logits[:num_rows] = self.logits
        padding = [10**6] * self.num_padding_rows
        rows = sampler.sample(
            logits,
            integers([num_rows]),
            integers([*tables, *padding]),
            integers([*self.num_drafts[:num_rows], *padding]),
        )
        assert not rows.token_ids[num_rows:].any(), "a padding row was written"
        return _result(rows, sampler, num_rows)

    def adjusted(self, number: int) -> torch.Tensor:
        """As the CPU adjusts them, float32 [vocab_size]."""
        row = self.logits[number].float().clone()
        cpu.adjust_logits(row, self.sequences[number], EOS)
        return row

    def kept(self, number: int, result: Result) -> NDArray[np.bool_]:
        """Whether the kernels keep a token [vocab_size]."""
        row = self.adjusted(number).numpy()
        keys = np.abs(row.max() - row).view(np.int32).astype(np.int64)
        ranks = (keys << self.shape.id_bits) | np.arange(len(row))
        return (ranks <= result.limits[number]) & np.isfinite(row)


def integers(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def _result(rows: SampledRows, sampler: GpuSampler, num_rows: int) -> Result:
    results = (rows.token_ids, rows.is_number, rows.logprobs)
    columns = (*results, sampler.limits, sampler.num_candidates)
    return Result(*(column[:num_rows].tolist() for column in columns))


def random_step(seed: int, num_rows: int = 3) -> Step:
    rng = random.Random(seed)
    shape = SHAPES[seed % len(SHAPES)]
    dtype = DTYPES[seed // len(SHAPES) % len(DTYPES)]
    spread = rng.choice([0.1, 3.0, 10.0])
    logits = make_logits(num_rows, shape.vocab_size, seed, spread).to(dtype)
    if rng.random() < 0.3:
        logits = logits.round()  # many equals
    sequences = [random_sequence(rng, shape.vocab_size) for _ in range(num_rows)]
    drafts = tuple(rng.randint(0, 3) for _ in range(num_rows))
    return Step(shape, sequences, logits, drafts)


def kept_by_cpu(row: torch.Tensor, sequence: Sequence) -> NDArray[np.int64]:
    """The tokens among which the CPU's sampler draws, likeliest first, of an adjusted row."""
    rows = [LogitRow(sequence)]
    scaled = cpu._scaled(row[None].clone(), rows)
    weights = cpu._weights(scaled, rows)
    values, ids = scaled.sort(dim=-1, descending=True, stable=True)
    if sequence.params.top_k == 0 and sequence.params.top_p == 1:
        num_kept = int((weights > 0).sum())
        return ids[0, :num_kept].numpy()
    mass = weights.sum(dim=-1).double().sum(dim=-1)
    with pytest.MonkeyPatch.context() as patch:  # the highest number falls on the last kept token
        patch.setattr(cpu, "_uniforms", lambda rows: torch.ones(1, dtype=torch.float64))
        index, _ = cpu._pick_sorted(values, mass, rows)
    kept = ids[0, : int(index) + 1]
    return kept[torch.isfinite(row[kept])].numpy()


def test_philox_is_the_published_generator() -> None:
    """The twin gives the known answers of its authors' library, Random123."""
    known = [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]
    for counter, key, answer in known:
        found = twin.philox(np.array([counter], dtype=np.uint64), np.array(key, dtype=np.uint64))
        assert " ".join(f"{word:08x}" for word in found[0].tolist()) == answer


def test_random_numbers_are_those_of_the_twin() -> None:
    """The bits to the last one, for seeds of all 63 bits and any output index; and what they make
    of them, which is precise where it is large: that is where winners are."""
    seeds = [0, 1, 42, 2**31, 2**32 - 1, 2**32, 3 * 2**61 + 5, MAX_SEED]
    indices = [0, 1, 2, 4095, 2**31 - 1, 17, 5, 3]
    bits = torch.zeros(len(seeds), 4096, dtype=torch.int32, device=DEVICE)
    variates = torch.zeros(len(seeds), 2, 4096, device=DEVICE)
    halves = torch.tensor(seeds, dtype=torch.int64).view(torch.int32).to(DEVICE)
    launch: Any = random_numbers_kernel[(len(seeds),)]
    launch(bits, variates, integers(indices), halves, SIZE=4096)
    assert torch.equal(variates[:, 0], variates[:, 1])
    for row, (seed, index) in enumerate(zip(seeds, indices, strict=True)):
        found = bits[row].cpu().numpy().view(np.uint32)
        assert (found == twin.random_bits(4096, index, seed)).all()
        expected = torch.from_numpy(twin.gumbels(4096, index, seed))
        errors = (variates[row, 0].cpu().double() - expected).abs()
        assert errors.max() < 1e-2
        assert errors[expected > 0].max() < 3e-6


def assert_is_the_twins(step: Step) -> Result:
    """Which tokens are kept, and the one that is chosen of them."""
    result = step.run()
    for number, sequence in enumerate(step.sequences):
        index = sequence.num_output_tokens + step.num_drafts[number]
        choice = twin.choose(step.adjusted(number).numpy(), sequence.params, index)
        token_id = result.token_ids[number]
        assert choice.scores[token_id] >= choice.scores.max() - 1e-4, "not the best"
        if not sequence.params.is_greedy:
            assert (step.kept(number, result) == choice.is_kept).all()
    return result


@pytest.mark.parametrize("seed", range(42))
def test_any_mix_of_parameters_gives_the_twins_token(seed: int) -> None:
    """The set that is kept and the token drawn from it, with the model's log probability of it."""
    step = random_step(seed)
    result = assert_is_the_twins(step)
    assert result.is_number == [1] * len(step.sequences)
    for number, sequence in enumerate(step.sequences):
        token_id = result.token_ids[number]
        if sequence.params.is_greedy:
            assert token_id == cpu.pick_greedy(step.adjusted(number)[None], []).item()
        logprob = step.logits[number].double().log_softmax(-1)[token_id].item()
        assert result.logprobs[number] == pytest.approx(logprob, abs=2e-6, rel=1e-6)


@pytest.mark.parametrize("seed", range(100, 118))
def test_kept_sets_are_those_of_the_cpu(seed: int) -> None:
    """As many, and as likely; of equals at the limit those with the lowest ids stay."""
    step = random_step(seed)
    result = step.run()
    for number, sequence in enumerate(step.sequences):
        if not sequence.params.is_greedy:
            row = step.adjusted(number)
            # What comes with a probability of 1e-9 and less may get lost in the CPU's sums.
            is_likely = row > row.max() - 20 * sequence.params.temperature
            expected = np.zeros(len(row), dtype=np.bool_)
            expected[kept_by_cpu(row, sequence)] = True
            found = step.kept(number, result)
            kept = [torch.from_numpy(mask) & is_likely for mask in (found, expected)]
            assert torch.equal(row[kept[0]].sort().values, row[kept[1]].sort().values)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_rows_are_those_of_the_cpus_sampler(seed: int) -> None:
    """Ties included, which go to the lowest token id."""
    shape = SHAPES[seed % len(SHAPES)]
    logits = make_logits(6, shape.vocab_size, seed, spread=1.0)
    logits = logits.to(torch.bfloat16) if seed else logits.round()
    sequences = [make_sequence([1], [], temperature=0.0) for _ in range(6)]
    expected = Sampler(EOS).sample(logits.float(), [LogitRow(row) for row in sequences])
    assert Step(shape, sequences, logits).run().token_ids == expected


@pytest.mark.parametrize("seed", range(200, 209))
def test_neighbours_do_not_change_a_bit(seed: int) -> None:
    """Each row alone, without padding and in another table row, gives what it gives in company."""
    step = random_step(seed)
    together = step.run()
    for number in range(len(step.sequences)):
        one = slice(number, number + 1)
        alone = Step(
            step.shape,
            step.sequences[one],
            step.logits[one],
            (step.num_drafts[number],),
            num_padding_rows=0,
        ).run()
        assert alone.token_ids == together.token_ids[one]
        assert alone.logprobs == together.logprobs[one]
        assert alone.limits == together.limits[one]


@pytest.mark.parametrize("seed", range(300, 306))
def test_how_a_row_is_cut_changes_no_token(seed: int) -> None:
    """Splits, blocks and lists that overflow are a matter of speed."""
    step = random_step(seed)
    size = step.shape.vocab_size
    other = SamplingShape(size, split=128, block=128, capacity=8, tile=1024)
    found, expected = Step(other, step.sequences, step.logits, step.num_drafts).run(), step.run()
    assert found.token_ids == expected.token_ids
    for number, sequence in enumerate(step.sequences):
        if not sequence.params.is_greedy:
            assert (step.kept(number, found) == step.kept(number, expected)).all()


def test_large_vocabularies_as_they_run() -> None:
    """With the sizes that a worker has, bfloat16, and a distribution like a model's."""
    logits = make_logits(3, 20_011, seed=8, spread=2.0)
    logits[:, ::997] += 12.0
    ways = [{}, {"top_k": 20, "top_p": 0.95, "temperature": 0.6}, {"top_p": 0.95, "min_p": 0.001}]
    sequences = [make_sequence([1, 7], [7], seed=11 + n, **ways[n]) for n in range(3)]
    result = assert_is_the_twins(Step(SamplingShape(20_011), sequences, logits.bfloat16()))
    assert len({*result.token_ids}) > 1


def test_few_tokens_are_candidates() -> None:
    """Where few are likely the search reads few: not many more than it keeps."""
    shape = SamplingShape(4096, split=2048, block=128, capacity=64, pivots=64)
    logits = make_logits(3, 4096, seed=9, spread=1.0)
    logits[:, 5::200] += 20.0
    ways = [{"top_k": 8}, {"top_k": 8, "top_p": 0.9}, {"top_p": 0.9}]
    step = Step(shape, [make_sequence([1], [], **params) for params in ways], logits)
    result = assert_is_the_twins(step)
    for number in range(3):
        assert 0 < step.kept(number, result).sum() <= result.num_candidates[number] <= 30


METHODS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"top_k": 10},
    {"top_p": 0.9},
    {"min_p": 0.1},
    {"top_k": 30, "top_p": 0.8, "presence_penalty": 1.0},
]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", METHODS, ids=str)
def test_rows_that_are_no_numbers_are_flagged_alone(bad: float, params: dict[str, Any]) -> None:
    """NaN or infinity anywhere in a row, and nothing above minus infinity; others are the same."""
    shape = SHAPES[1]
    sequences = [make_sequence([1], [3], seed=n, **params) for n in range(5)]
    logits = make_logits(5, shape.vocab_size, seed=3)
    control = Step(shape, sequences, logits).run()
    broken = logits.clone()
    broken[1, 600] = bad
    broken[2] = -math.inf
    broken[3] = bad
    result = Step(shape, sequences, broken).run()
    assert result.is_number == [1, 0, 0, 0, 1]
    assert result.token_ids[1:4] == [0, 0, 0]
    for number in (0, 4):
        assert result.token_ids[number] == control.token_ids[number]
        assert result.logprobs[number] == control.logprobs[number]


@pytest.mark.parametrize("params", METHODS, ids=str)
def test_what_is_impossible_is_never_drawn(params: dict[str, Any]) -> None:
    """Minus infinity is a number: such tokens have no probability."""
    shape = SHAPES[1]
    logits = torch.full((3, shape.vocab_size), -math.inf)
    logits[:, [7, 150, 682]] = 0.0
    sequences = [make_sequence([1], [], seed=n, **params) for n in range(3)]
    assert set(Step(shape, sequences, logits).run().token_ids) <= {7, 150, 682}


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # of the interpreter
def test_large_logits_at_low_temperature_are_numbers() -> None:
    """What overflows is the division by the temperature, not the model: the best token wins."""
    logits = make_logits(2, 683, seed=4)
    logits[:, 11] = 1e35
    sequences = [make_sequence([1], [], temperature=1e-4, top_k=k) for k in (0, 5)]
    assert Step(SHAPES[1], sequences, logits).run().token_ids == [11, 11]


def test_the_longest_lists_that_a_request_may_have() -> None:
    """As many biases as the protocol lets through, ids twice among them, and 128 stops."""
    shape, size = SHAPES[1], 683
    rng = random.Random(1)
    bias = tuple((rng.randrange(size), rng.uniform(-5, 5)) for _ in range(MAX_LOGIT_BIAS))
    logits = make_logits(1, size, seed=2)
    biased = Step(shape, [make_sequence([1], [], logit_bias=bias)], logits).adjusted(0)
    stops = tuple(biased.topk(128).indices.tolist())
    params = {"logit_bias": bias, "stop_token_ids": stops, "min_tokens": 2, "temperature": 0.0}
    sequences = [make_sequence([1], [3] * number, **params) for number in range(4)]
    step = Step(shape, sequences, logits.repeat(4, 1))
    expected = [int(step.adjusted(number).argmax()) for number in range(4)]
    assert step.run().token_ids == expected
    assert expected[0] == expected[1] != expected[2] == expected[3]


def test_sampled_tokens_are_counted() -> None:
    """After its own count of a step a row is penalised as the CPU's; flagged and padding rows and
    other table rows keep their counts."""
    vocab_size = 300
    state = SamplingState.empty(6, vocab_size, DEVICE)
    sampler = GpuSampler(SHAPES[0], 4, state, torch.float32)
    state.counts.fill_(5)
    sampler.start(1, integers([8, 8, 9, 9, 9]), 3)
    sampler.start(4, integers([]), 0)
    logits = torch.zeros(4, vocab_size, device=DEVICE)
    logits[0, 9], logits[1, 8], logits[2, 3] = 1.0, 1.0, math.nan
    tables = integers([1, 4, 3, 2])
    num_valid = integers([3])
    for _ in range(2):
        sampler.sample(logits, num_valid, tables, integers([0] * 4))
        sampler.advance(num_valid, tables)
    assert state.integers[:, columns.NUM_OUTPUT_TOKENS.value].tolist() == [0, 2, 0, 0, 2, 0]
    expected = torch.full((6, vocab_size), 5, dtype=torch.int32)
    expected[1], expected[4] = 0, 0
    expected[1, 8], expected[1, 9] = IN_PROMPT, IN_PROMPT + 4
    expected[4, 8] = 2
    assert torch.equal(state.counts.cpu(), expected)


def assert_fits(tokens: NDArray[np.int64], probabilities: NDArray[np.float64]) -> None:
    """Chi-squared, five sigma."""
    expected = len(tokens) * probabilities
    observed = np.bincount(tokens, minlength=len(expected))
    assert not observed[expected == 0].any()
    is_common = expected >= 5
    observed = np.append(observed[is_common], observed[~is_common].sum())
    expected = np.append(expected[is_common], expected[~is_common].sum())
    chi_squared = ((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    num_degrees = len(expected) - 1
    assert chi_squared < num_degrees + 5 * math.sqrt(2 * num_degrees) + 5


@pytest.mark.parametrize("params", [{}, {"top_p": 0.8}, {"top_k": 9, "temperature": 1.5}], ids=str)
def test_tokens_come_as_often_as_they_should(params: dict[str, Any]) -> None:
    """Over many seeds and output indices the twin's draws fit the exact probabilities."""
    logits = make_logits(1, 40, seed=1, spread=1.5)[0].numpy()
    sequence = make_sequence([1], [], **params)
    is_kept = twin.choose(logits, sequence.params, 0).is_kept
    scaled = logits.astype(np.float64) / sequence.params.temperature
    weights = np.where(is_kept, np.exp(scaled - scaled.max()), 0.0)
    masked = np.where(is_kept, scaled, -np.inf)
    tokens = [
        int((masked + twin.gumbels(40, index, seed)).argmax())
        for seed in range(100)
        for index in range(60)
    ]
    assert_fits(np.array(tokens), weights / weights.sum())


def test_the_kernels_draw_as_often_as_they_should() -> None:
    """All ways of drawing, over many seeds."""
    num_rows, shape = (
        NUM_DRAWS,
        SamplingShape(32, split=32, block=32, capacity=32, tile=32, pivots=64),
    )
    ways = [{}, {"top_k": 8}, {"min_p": 0.2}]
    logits = make_logits(1, 32, seed=6, spread=1.5)
    for number, params in enumerate(ways):
        sequences = [make_sequence([1], [], seed=3 * n + number, **params) for n in range(num_rows)]
        step = Step(shape, sequences, logits.repeat(num_rows, 1), (0,) * num_rows)
        tokens = np.array(step.run().token_ids)
        choice = twin.choose(logits[0].numpy(), sequences[0].params, 0)
        weights = np.where(choice.is_kept, np.exp(logits[0].double().numpy()), 0.0)
        assert_fits(tokens, weights / weights.sum())


def test_gumbels_are_precise_where_winners_are() -> None:
    """The mean of their exponentials' inverse and the rate of large ones are those of Gumbel's."""
    numbers = np.concatenate([twin.gumbels(4096, index, 7) for index in range(256)])
    num_numbers = len(numbers)
    assert abs(numbers.mean() - np.euler_gamma) < 5 * math.pi / math.sqrt(6 * num_numbers)
    for level in (0.0, 4.0, 8.0, 11.0):
        share = -math.expm1(-math.exp(-level))
        found = (numbers > level).mean()
        assert abs(found - share) < 5 * math.sqrt(share / num_numbers)
