"""A whole model on the kernels of a GPU has the tokens that it has on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chairlift.shared.errors import ModelError
from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import WorkerSettings
from chairlift.worker import main
from chairlift.worker.cuda.platform import CudaPlatform
from chairlift.worker.engine import Engine
from chairlift.worker.models.loader import load_model
from chairlift.worker.platform import choose_device
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
    monkeypatch.setattr(platform, "cache_bytes", lambda: 1 << 22)
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    """Only where it is asked for by name."""
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ModelError, match="--device cpu"):
        choose_device("cuda")
