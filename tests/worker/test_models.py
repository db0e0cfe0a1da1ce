"""The decoder against transformers, and a row's logits alone against the same row in company."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker.batch import make_batch
from chairlift.worker.kernels.choice import Kernels, KernelsName, cpu_kernels
from chairlift.worker.models.decoder import Layers
from chairlift.worker.models.linear_choice import linear_factory
from chairlift.worker.models.loader import LoadedModel, load_model
from chairlift.worker.models.native_layers import layers_of
from chairlift.worker.scheduler import Plan, ScheduledSequence
from chairlift.worker.sequence import Sequence
from tests.checkpoints import VARIANTS, VOCAB_SIZE, make_checkpoint

NUM_BLOCKS = 64
KERNELS: tuple[KernelsName, ...] = ("native", "torch")
PROMPT_LENGTHS = (5, 33, 71, 100)
NUM_OUTPUT_TOKENS = 64


@dataclass
class Driver:
    """Steps a decoder over sequences whose block tables are dealt from `free_blocks`."""

    model: LoadedModel
    free_blocks: list[int]
    kernels_name: KernelsName = "torch"
    min_rows: int = 1
    kernels: Kernels = field(init=False)
    layers: Layers = field(init=False)

    def __post_init__(self) -> None:
        shape = self.model.config.attention_shape
        self.kernels = cpu_kernels(self.kernels_name, shape, NUM_BLOCKS, self.model.dtype)
        self.layers = layers_of(self.model.decoder, self.kernels)

    def add(self, prompt: list[int], num_blocks: int = 6) -> Sequence:
        sequence = Sequence(bytes(16), list(prompt), SamplingParams(max_tokens=NUM_OUTPUT_TOKENS))
        sequence.block_table = [self.free_blocks.pop(0) for _ in range(num_blocks)]
        return sequence

    @torch.inference_mode()
    def step(self, counts: list[tuple[Sequence, int]], every_row: bool = False) -> torch.Tensor:
        """Computes so many more tokens of each; logits of the last rows, or of every row."""
        plan = Plan(entries=tuple(ScheduledSequence.next_of(*entry) for entry in counts))
        attention, cpu = self.kernels.attention, torch.device("cpu")
        batch = make_batch(plan, attention.block_size, attention.null_slot, cpu, self.min_rows)
        if every_row:
            batch = replace(batch, logit_rows=torch.arange(plan.num_rows))
        decoder = self.model.decoder
        hidden = decoder.forward(batch, self.layers, attention.prepare(batch))
        logits = decoder.logits(hidden.index_select(0, batch.logit_rows))
        for sequence, count in counts:
            sequence.num_computed_tokens += count
        return logits

    def finish(self, sequences: list[Sequence], num_output_tokens: int) -> list[torch.Tensor]:
        """Runs all to so many greedy tokens in chunks of 32; each one's logits as they came."""
        rows: dict[int, list[torch.Tensor]] = {id(sequence): [] for sequence in sequences}
        while running := [s for s in sequences if s.num_output_tokens < num_output_tokens]:
            counts = [(s, min(32, s.num_uncomputed_tokens)) for s in running]
            sampled = [s for s, count in counts if count == s.num_uncomputed_tokens]
            for sequence, logits in zip(sampled, self.step(counts), strict=True):
                sequence.append(int(logits.argmax()))
                rows[id(sequence)].append(logits)
        return [torch.stack(rows[id(sequence)]) for sequence in sequences]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny matrices: a second thread only waits, and longer where others use its core."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def make_prompts(lengths: tuple[int, ...] = PROMPT_LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    draw = [torch.randint(VOCAB_SIZE, (length,), generator=generator) for length in lengths]
    return [prompt.tolist() for prompt in draw]


def shuffled_blocks() -> list[int]:
    return torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(3)).tolist()


@torch.no_grad()
def oracle_logits(oracle: Any, token_ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = oracle(torch.tensor([token_ids])).logits[0]
    return logits


def load(folder: Path, kernels: KernelsName, dtype: Any = "auto") -> LoadedModel:
    return load_model(folder, dtype, make_linear=linear_factory("none", kernels))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(
    variant: str, kernels: KernelsName, tmp_path: Path
) -> None:
    """Every prompt token's logits match, chunked, staggered and in shuffled blocks."""
    oracle = make_checkpoint(variant, tmp_path)
    driver = Driver(load(tmp_path, kernels), shuffled_blocks(), kernels)
    prompts = make_prompts()
    sequences = [driver.add(prompt) for prompt in prompts]
    found: dict[int, list[torch.Tensor]] = {id(sequence): [] for sequence in sequences}
    generator = torch.Generator().manual_seed(11)
    arrived = 1
    while running := [s for s in sequences[:arrived] if s.num_uncomputed_tokens]:
        draws = [int(torch.randint(1, 40, (), generator=generator)) for _ in running]
        counts = [(s, min(n, s.num_uncomputed_tokens)) for s, n in zip(running, draws, strict=True)]
        logits = driver.step(counts, every_row=True)
        for (sequence, _), rows in zip(
            counts, torch.split(logits, [n for _, n in counts]), strict=True
        ):
            found[id(sequence)].append(rows)
        arrived = min(arrived + 1, len(sequences))
    for sequence, prompt in zip(sequences, prompts, strict=True):
        logits = torch.cat(found[id(sequence)])
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, oracle_logits(oracle, prompt), atol=1e-4, rtol=0)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_continuations_equal_those_of_transformers(variant: str, tmp_path: Path) -> None:
    """64 tokens of each sequence are what transformers would choose after the same prefix."""
    oracle = make_checkpoint(variant, tmp_path)
    driver = Driver(load(tmp_path, "native"), shuffled_blocks(), "native")
    sequences = [driver.add(prompt) for prompt in make_prompts()]
    driver.finish(sequences, NUM_OUTPUT_TOKENS)
    for sequence in sequences:
        chosen = oracle_logits(oracle, sequence.token_ids).argmax(-1).tolist()
        expected = chosen[sequence.num_prompt_tokens - 1 : -1]
        assert sequence.token_ids[sequence.num_prompt_tokens :] == expected


def assert_same_alone_and_together(
    model: LoadedModel, num_output_tokens: int, kernels: KernelsName
) -> None:
    prompts = make_prompts((45, 3, 64, 17, 90, 32, 1, 70))
    together = Driver(model, shuffled_blocks(), kernels)
    in_company = together.finish([together.add(p) for p in prompts], num_output_tokens)
    for prompt, expected in zip(prompts, in_company, strict=True):
        alone = Driver(model, shuffled_blocks(), kernels)
        (logits,) = alone.finish([alone.add(prompt)], num_output_tokens)
        assert torch.equal(logits, expected)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("variant", ["llama", "mistral_window", "qwen2", "qwen3"])
def test_a_rows_logits_do_not_depend_on_its_neighbours(
    variant: str, kernels: KernelsName, dtype: Any, tmp_path: Path
) -> None:
    """A sequence's logits are bitwise the same alone and in a batch of eight."""
    make_checkpoint(variant, tmp_path)
    assert_same_alone_and_together(load(tmp_path, kernels, dtype), 30, kernels)


@pytest.mark.parametrize("kernels", KERNELS)
def test_nor_do_they_with_several_threads(kernels: KernelsName, tmp_path: Path) -> None:
    """The same holds when the operations are shared out between all cores."""
    make_checkpoint("llama", tmp_path)
    assert_same_alone_and_together(load(tmp_path, kernels), 4, kernels)


@pytest.mark.usefixtures("one_thread")
def test_a_run_of_blocks_and_scattered_blocks_give_the_same_bits(tmp_path: Path) -> None:
    """Reading a view of the pool and gathering blocks from it can't be told apart."""
    make_checkpoint("qwen2_window", tmp_path)
    model = load_model(tmp_path)
    found = []
    for blocks in (list(range(NUM_BLOCKS)), shuffled_blocks()):
        driver = Driver(model, blocks)
        found.append(driver.finish([driver.add(prompt) for prompt in make_prompts()], 20))
    for in_run, scattered in zip(*found, strict=True):
        assert torch.equal(in_run, scattered)


def test_a_step_without_a_sampled_row_has_no_logits(tmp_path: Path) -> None:
    """A chunk that does not reach its prompt's end yields logits of shape [0, vocab_size]."""
    make_checkpoint("llama", tmp_path)
    driver = Driver(load_model(tmp_path), shuffled_blocks())
    logits = driver.step([(driver.add(make_prompts()[2]), 32)])
    assert logits.shape == (0, VOCAB_SIZE)
    assert logits.dtype == torch.float32


def test_bfloat16_logits_stay_near_those_in_float32(tmp_path: Path) -> None:
    """Rounding to bfloat16 moves logits by little: same rows, same order of magnitude."""
    oracle = make_checkpoint("llama", tmp_path, torch.bfloat16)
    driver = Driver(load_model(tmp_path, "bfloat16"), shuffled_blocks())
    prompt = make_prompts()[2]
    logits = driver.step([(driver.add(prompt), len(prompt))], every_row=True)
    expected = oracle_logits(oracle, prompt)
    assert (logits - expected).abs().mean() < 0.03 * expected.std()
