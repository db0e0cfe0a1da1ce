"""A whole model on the kernels of a GPU has the tokens that it has on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chairlift.shared.errors import ModelError
from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import MIN_CHUNK_TOKENS, WorkerSettings
from chairlift.worker import main
from chairlift.worker.cuda.attention import TritonAttention
from chairlift.worker.cuda.attention_variants import BatchLimits
from chairlift.worker.cuda.executor import DEPTH
from chairlift.worker.cuda.platform import CudaPlatform, step_bytes
from chairlift.worker.cuda.sampling_state import SamplingState
from chairlift.worker.engine import Engine
from chairlift.worker.models.loader import load_model
from chairlift.worker.platform import choose_device, settings_for
from chairlift.worker.sequence import Sequence
from tests.checkpoints import make_checkpoint
from tests.fake_engine import output_of, run_to_the_end
from tests.worker.cuda.device import DEVICE

FAMILIES = ("llama", "qwen3")
SETTINGS = WorkerSettings(
    dtype="float32", max_num_seqs=4, max_num_batched_tokens=96, speculation="off", device="cpu"
)


def sequences() -> list[Sequence]:
    """Short and over a block long, of which the first two share a beginning."""
    lengths = (3, 70, 90, 5)
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    return [
        Sequence(bytes([n]) * 16, [5 + (7 * i + n // 2) % 40 for i in range(length)], params)
        for n, length in enumerate(lengths)
    ]


def answers(engine: Engine) -> list[list[int]]:
    everybody = sequences()
    for sequence in everybody:
        engine.add(sequence)
    run_to_the_end(engine)
    return [output_of(sequence) for sequence in everybody]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_a_cpu(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks beside decodes, prompts over a block, a shared prefix."""
    make_checkpoint(family, tmp_path)
    expected = answers(main.build_engine(load_model(tmp_path, "float32"), SETTINGS))
    platform = CudaPlatform(SETTINGS, DEVICE)
    monkeypatch.setattr(main, "platform_of", lambda device, settings: platform)
    monkeypatch.setattr(platform, "cache_bytes", lambda *_: 1 << 22)
    model = load_model(
        tmp_path, "float32", make_linear=platform.linear_factory(), device=platform.device
    )
    engine = main.build_engine(model, SETTINGS)
    assert engine.scheduler.block_manager.block_size == 64
    assert answers(engine) == expected


def test_int8_is_refused_on_a_gpu() -> None:
    """By name, with what to change."""
    with pytest.raises(ModelError, match="--quantize int8 is for CPUs"):
        CudaPlatform(WorkerSettings(quantize="int8"), DEVICE)


def test_static_batching_is_refused_on_a_gpu() -> None:
    """Its steps may be longer than buffers are, and go on with tokens that the host has to read."""
    with pytest.raises(ModelError, match="--policy static is for CPUs"):
        CudaPlatform(WorkerSettings(policy="static"), DEVICE)


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({}, (256, 2048)),
        ({"max_num_seqs": 8}, (8, 2048)),
        ({"max_num_batched_tokens": 100}, (100 - MIN_CHUNK_TOKENS, 100)),
        ({"max_num_seqs": 3, "max_num_batched_tokens": 9000}, (3, 9000)),
    ],
)
def test_a_gpus_steps_are_larger_where_nobody_says(
    given: dict[str, int], sizes: tuple[int, int]
) -> None:
    """And what is given stays, with room for a chunk beside all sequences."""
    settings = WorkerSettings.model_validate(given)
    found = settings_for(torch.device("cuda"), settings)
    assert (found.max_num_seqs, found.max_num_batched_tokens) == sizes


def test_a_steps_own_tensors_have_memory_that_the_cache_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are there from the start, and the largest of the model's rows; a cache that has no
    room beside them is refused with what to change."""
    make_checkpoint("llama", tmp_path)
    platform = CudaPlatform(SETTINGS, DEVICE)
    model = load_model(tmp_path, "float32", None, platform.linear_factory(), DEVICE)
    config, limits = model.config, BatchLimits(4, 96, model.max_model_len)
    needed = step_bytes(config, SETTINGS, 4)
    attention = TritonAttention(config.attention_shape, 1, torch.float32, limits, DEVICE)
    state = SamplingState.empty(4 * (1 + DEPTH), config.vocab_size, DEVICE)
    largest = 96 * 2 * config.intermediate_size * 4
    kept = sum(x.nbytes for x in (attention._partials, attention._states, state.counts))
    assert kept + largest < needed < 20 * (kept + largest)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (needed + 1000, 1 << 40))
    assert platform.cache_bytes(config, 4) == 950
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (needed - 1, 1 << 40))
    monkeypatch.setattr(main, "platform_of", lambda device, settings: platform)
    with pytest.raises(ModelError, match="--kv-cache-bytes"):
        main.build_engine(model, SETTINGS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    """Only where it is asked for by name."""
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ModelError, match="--device cpu"):
        choose_device("cuda")
