"""The engine with a real model: drafts change no bit of an answer, and save steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from chairlift.shared.messages import Finish
from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import DEMO_MODEL_FOLDER, WorkerSettings
from chairlift.shared.tokenizer import Tokenizer
from chairlift.worker.attention.cpu import BLOCK_SIZE
from chairlift.worker.detokenizer import Detokenizer
from chairlift.worker.engine import Engine
from chairlift.worker.main import build_engine
from chairlift.worker.memory import block_bytes
from chairlift.worker.models.linear_choice import linear_factory
from chairlift.worker.models.loader import LoadedModel, load_model
from chairlift.worker.sampler import LogitRow, Sampler
from chairlift.worker.scheduler import ContinuousScheduler
from chairlift.worker.sequence import Sequence
from chairlift.worker.speculation import Speculation
from tests.fake_engine import host_executor, pace_of_free_rows, run_to_the_end
from tests.vnni import needs_vnni

CANCELLED = Finish("abort", code="cancelled")
NUM_RUNS, NUM_REQUESTS = 6, 20
FEW_BLOCKS = 9  # the longest request that there may be needs 8
SAMPLING: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "num_logprobs": 3},
    {"temperature": 0.5, "top_k": 2, "num_logprobs": 0},
    {"temperature": 0.5, "top_p": 0.3},
    {"temperature": 0.4, "min_p": 0.2},
    {"temperature": 0.3, "num_logprobs": 1, "num_prompt_logprobs": 1},
    {"temperature": 0.0, "presence_penalty": 0.3},
    {"temperature": 0.0, "min_tokens": 20},
)


@dataclass
class Recorder:
    """Keeps the logits of every output token: of one sampled twice, those of the second time."""

    sampler: Sampler
    of: dict[tuple[bytes, int], torch.Tensor] = field(default_factory=dict)

    def sample(
        self, logits: torch.Tensor, rows: list[LogitRow]
    ) -> list[int | BaseException | None]:
        for row, values in zip(rows, logits, strict=True):
            self.of[row.sequence.request_id, row.output_index] = values.clone()
        return self.sampler.sample(logits, rows)


@pytest.fixture(
    scope="module", params=["float32", "bfloat16", pytest.param("int8", marks=needs_vnni)]
)
def model(request: pytest.FixtureRequest, tiny_model: Path) -> LoadedModel:
    is_int8 = request.param == "int8"
    make_linear = linear_factory("int8" if is_int8 else "none", "native")
    dtype = "float32" if is_int8 else request.param
    return load_model(tiny_model, dtype, max_model_len=256, make_linear=make_linear)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer.from_folder(tiny_model)


def engine_for(
    model: LoadedModel, *, speculates: bool, has_few_blocks: bool = False, **settings: Any
) -> tuple[Engine, Recorder]:
    """One that drafts all that it can, where it does."""
    values = {"max_num_seqs": 8, "kernels": "native", **settings}
    if has_few_blocks:
        num_bytes = block_bytes(model.config.attention_shape, BLOCK_SIZE, model.dtype.itemsize)
        values["kv_cache_bytes"] = FEW_BLOCKS * num_bytes
    engine = build_engine(model, WorkerSettings(**values))
    assert isinstance(engine.scheduler, ContinuousScheduler)
    engine.scheduler.speculation = Speculation(pace_of_free_rows()) if speculates else None
    recorder = Recorder(host_executor(engine).sampler)
    host_executor(engine).sampler = recorder  # type: ignore[assignment]
    return engine, recorder


def request(number: int, seed: int, tokenizer: Tokenizer) -> Sequence:
    """A prompt that repeats itself; some end at a string or a token, wherever that comes."""
    random = Random(1000 * seed + number)
    phrase = [random.randrange(4, 500) for _ in range(random.randint(2, 6))]
    prompt = (phrase * 40)[: random.randint(1, 90)]
    output = random.choice(phrase)
    biases = tuple((token_id, random.choice([4.0, 12.0])) for token_id in sorted(set(phrase)))
    params = SamplingParams(
        max_tokens=random.randint(1, 60),
        seed=random.randrange(1 << 40),
        logit_bias=random.choice([biases, (*biases, (0, 9.0))]),
        stop=random.choice([(), (tokenizer.backend.decode([output, output]) or "x",)]),
        stop_token_ids=random.choice([(), (), (output,)]),
        ignore_eos=random.random() < 0.3,
        **random.choice(SAMPLING),
    )
    detokenizer = Detokenizer(tokenizer.backend, prompt, params.stop)
    return Sequence(bytes([number]) * 16, prompt, params, detokenizer)


def run(engine: Engine, seed: int, tokenizer: Tokenizer) -> list[Sequence]:
    """Requests that come by and by; the third is cancelled where it has ten tokens."""
    random = Random(seed)
    sequences = [request(number, seed, tokenizer) for number in range(NUM_REQUESTS)]
    for sequence in sequences:
        engine.add(sequence)
        for _ in range(random.randint(0, 2)):
            engine.step()
            if sequences[2].num_output_tokens >= 10:
                engine.end(sequences[2], CANCELLED)
    run_to_the_end(engine)
    return sequences


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="room for all"),
        pytest.param({"has_few_blocks": True}, id="preempted"),
        pytest.param({"max_num_batched_tokens": 40, "prefix_caching": False}, id="chunked"),
    ],
)
def test_drafts_change_no_bit(
    model: LoadedModel, tokenizer: Tokenizer, settings: dict[str, Any]
) -> None:
    """Tokens, text, ends, logits and log probabilities are those of a run without drafts."""
    num_accepted = num_rejected = num_preemptions = 0
    for seed in range(NUM_RUNS):
        plain, plain_logits = engine_for(model, speculates=False)
        engine, logits = engine_for(model, speculates=True, **settings)
        pairs = zip(run(plain, seed, tokenizer), run(engine, seed, tokenizer), strict=True)
        for expected, sequence in pairs:
            assert_same(sequence, expected)
            for index in range(min(expected.num_output_tokens, sequence.num_output_tokens)):
                key = (sequence.request_id, index)
                assert torch.equal(logits.of[key], plain_logits.of[key])
        blocks = engine.scheduler.block_manager
        assert blocks.num_free_blocks == blocks.num_blocks
        num_accepted += engine.num_accepted_tokens
        num_rejected += engine.num_draft_tokens - engine.num_accepted_tokens
        num_preemptions += engine.scheduler.num_preemptions
    assert num_accepted > 200
    assert num_rejected > 50
    assert (num_preemptions > 0) == ("has_few_blocks" in settings)


def assert_same(sequence: Sequence, expected: Sequence) -> None:
    """What both have, where they were cancelled; else all."""
    assert sequence.finish is not None
    assert expected.finish is not None
    count = min(sequence.num_output_tokens, expected.num_output_tokens)
    if CANCELLED not in (sequence.finish, expected.finish):
        count = max(sequence.num_output_tokens, expected.num_output_tokens)
        assert sequence.detokenizer.text == expected.detokenizer.text
        assert sequence.finish.reason == expected.finish.reason
        assert sequence.finish.stop_reason == expected.finish.stop_reason
    end = expected.num_prompt_tokens + count
    assert sequence.token_ids[:end] == expected.token_ids[:end]
    assert sequence.scores.of_output(0, count) == expected.scores.of_output(0, count)
    assert sequence.scores.of_prompt == expected.scores.of_prompt


def test_repeated_words_take_a_third_of_the_steps() -> None:
    """The demo model says after its user what is in the prompt."""
    model = load_model(DEMO_MODEL_FOLDER, "float32", make_linear=linear_factory("none", "native"))
    tokenizer = Tokenizer.from_folder(DEMO_MODEL_FOLDER)
    words = "apple table window river mountain cloud chair lift green fox drum blue"
    prompt = tokenizer.encode_chat([{"role": "user", "content": f"Repeat after me: {words}"}])
    engines = [engine_for(model, speculates=speculates)[0] for speculates in (False, True)]
    answers = []
    for engine in engines:
        sequence = Sequence(bytes(16), prompt, SamplingParams(max_tokens=100, temperature=0.0))
        engine.add(sequence)
        run_to_the_end(engine)
        answers.append(sequence.token_ids)
    assert answers[0] == answers[1]
    assert 3 * engines[1].num_steps < engines[0].num_steps


@pytest.mark.parametrize(
    ("settings", "is_on"),
    [
        ({}, True),
        ({"speculation": "off"}, False),
        ({"policy": "static"}, False),
        ({"kernels": "torch"}, False),
    ],
)
def test_on_by_default_where_it_changes_nothing(
    model: LoadedModel, settings: dict[str, Any], is_on: bool
) -> None:
    """Not under static batching, nor with an attention whose bits depend on the cut, nor with
    products whose bits depend on the neighbours, as bfloat16's without AVX-512."""
    scheduler = build_engine(model, WorkerSettings(**settings)).scheduler
    has_same_bits = model.decoder.is_row_independent
    assert has_same_bits or model.dtype == torch.bfloat16
    is_there = getattr(scheduler, "speculation", None) is not None
    assert is_there == (is_on and has_same_bits)


def test_off_with_processors_of_the_operator(model: LoadedModel) -> None:
    """They may look at all output before the row."""
    scheduler = build_engine(
        model, WorkerSettings(), processors=(lambda output, row: row,)
    ).scheduler
    assert isinstance(scheduler, ContinuousScheduler)
    assert scheduler.speculation is None
