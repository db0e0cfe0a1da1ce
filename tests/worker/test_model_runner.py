"""Log probabilities and embeddings of a real forward pass, against transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from chairlift.shared.errors import ModelError
from chairlift.shared.logprobs import unpack_logprobs
from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import WorkerSettings
from chairlift.worker.engine import Engine
from chairlift.worker.main import build_engine
from chairlift.worker.models.loader import DtypeChoice, load_model
from chairlift.worker.pool import Pool, Pooling
from chairlift.worker.sequence import Sequence
from tests.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.fake_engine import run_to_the_end

PROMPT = torch.randint(VOCAB_SIZE, (200,), generator=torch.Generator().manual_seed(5)).tolist()


def engine_for(folder: Path, **settings: Any) -> Engine:
    values = {"max_num_seqs": 4, "max_num_batched_tokens": 64, **settings}
    return build_engine(load_model(folder, "float32"), WorkerSettings(**values))


def add(engine: Engine, number: int, prompt: list[int], **params: Any) -> Sequence:
    params = {"temperature": 0.0, "ignore_eos": True, **params}
    sequence = Sequence(bytes([number]) * 16, prompt, SamplingParams(**params))
    engine.add(sequence)
    return sequence


@torch.no_grad()
def oracle_logprobs(oracle: Any, token_ids: list[int]) -> torch.Tensor:
    return torch.log_softmax(oracle(torch.tensor([token_ids])).logits[0].float(), dim=-1)


@pytest.mark.parametrize("variant", ["llama", "qwen3"])
def test_logprobs_equal_those_of_transformers(variant: str, tmp_path: Path) -> None:
    """Prompt in chunks beside other requests, output token by token; the likeliest in order."""
    oracle = make_checkpoint(variant, tmp_path)
    engine = engine_for(tmp_path)
    wanted = {"num_logprobs": 4, "num_prompt_logprobs": 2, "max_tokens": 12}
    sequence = add(engine, 1, PROMPT, **wanted)
    add(engine, 2, PROMPT[:50], max_tokens=20)
    run_to_the_end(engine)
    expected = oracle_logprobs(oracle, sequence.token_ids)
    records = [
        *unpack_logprobs(bytes(sequence.scores.prompt), 2),
        *unpack_logprobs(bytes(sequence.scores.output), 4),
    ]
    assert len(records) == len(sequence.token_ids) - 1
    for position, record in enumerate(records):
        row = expected[position]
        assert record.logprob == pytest.approx(
            float(row[sequence.token_ids[position + 1]]), abs=1e-4
        )
        top = row.topk(len(record.top)).values.tolist()
        assert [logprob for _, logprob in record.top] == pytest.approx(top, abs=1e-4)
        assert [row[i].item() for i, _ in record.top] == pytest.approx(top, abs=2e-4)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_equal_those_of_transformers(pooling: Pooling, tmp_path: Path) -> None:
    """The last layer's hidden states after the norm, of a prompt in chunks beside others."""
    oracle: Any = make_checkpoint("qwen2", tmp_path)
    engine = engine_for(tmp_path)
    add(engine, 1, PROMPT[:60], max_tokens=20)
    sequence = Sequence(bytes([9]) * 16, PROMPT, SamplingParams(max_tokens=0))
    sequence.pool = Pool(pooling)
    engine.add(sequence)
    run_to_the_end(engine)
    with torch.no_grad():
        hidden = oracle.model(torch.tensor([PROMPT])).last_hidden_state[0]
    expected = hidden[-1] if pooling == "last" else hidden.mean(dim=0)
    assert np.frombuffer(sequence.embedding, "<f4") == pytest.approx(expected.numpy(), abs=1e-4)


def test_logprobs_do_not_depend_on_the_neighbours(tmp_path: Path) -> None:
    """Bit for bit those of a lonely run, with prompts in one piece."""
    make_checkpoint("llama", tmp_path)
    wanted = {"num_logprobs": 3, "num_prompt_logprobs": 3, "max_tokens": 16}

    def records(num_neighbours: int) -> tuple[bytes, bytes]:
        engine = engine_for(tmp_path, max_num_batched_tokens=1024)
        sequence = add(engine, 1, PROMPT[:70], **wanted)
        for number in range(num_neighbours):
            add(engine, 2 + number, PROMPT[number : 40 + 9 * number], max_tokens=30)
        run_to_the_end(engine)
        return bytes(sequence.scores.prompt), bytes(sequence.scores.output)

    assert records(0) == records(3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_deterministic_where_no_bit_depends_on_the_neighbours(
    dtype: DtypeChoice, kernels: Literal["native", "torch"], tmp_path: Path
) -> None:
    """Refused, with what to change, where some would: with torch's attention, whose bits depend on
    the cut, and on processors whose products of this type do."""
    make_checkpoint("llama", tmp_path)
    model = load_model(tmp_path, dtype)
    settings = WorkerSettings(kernels=kernels, deterministic=True)
    if kernels == "native" and model.decoder.is_row_independent:
        assert build_engine(model, settings)
    else:
        cure = "--kernels native" if kernels == "torch" else "--dtype float32"
        with pytest.raises(ModelError, match=f"--deterministic.*{cure}"):
            build_engine(model, settings)
