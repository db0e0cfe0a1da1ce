"""An engine around the fake model, and requests for it that can be run alone as well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

from chairlift.shared.messages import Finish
from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker.block_manager import BlockManager
from chairlift.worker.detokenizer import Detokenizer, NoText
from chairlift.worker.engine import Engine
from chairlift.worker.executor import HostExecutor
from chairlift.worker.pace import Pace, Work
from chairlift.worker.pulse import Pulse
from chairlift.worker.sampler import Sampler
from chairlift.worker.scheduler import ContinuousScheduler, Scheduler
from chairlift.worker.sequence import Sequence
from chairlift.worker.speculation import Speculation
from tests.fake_model import FakeModelRunner, digest
from tests.late_executor import LateExecutor

BLOCK_SIZE = 4
VOCAB_SIZE = 96
EOS = frozenset({0, 1})
CANCELLED = Finish("abort", code="cancelled")
_numbers = count()


@dataclass(frozen=True)
class Size:
    """What a worker's settings say."""

    num_blocks: int = 64
    max_num_seqs: int = 8
    budget: int = 32
    has_prefix_cache: bool = True
    depth: int = 0  # steps that its device has before their tokens are told


def make_engine(
    size: Size | None = None,
    policy: type[Scheduler] = ContinuousScheduler,
    next_token: Callable[..., int] = digest,
    pulse: Pulse | None = None,
    *,
    speculates: bool = False,
) -> Engine:
    size = size or Size()
    scheduler = policy(
        BlockManager(size.num_blocks, BLOCK_SIZE, has_prefix_cache=size.has_prefix_cache),
        max_num_seqs=size.max_num_seqs,
        max_num_batched_tokens=size.budget,
    )
    if speculates and isinstance(scheduler, ContinuousScheduler):
        scheduler.speculation = Speculation(pace_of_free_rows())
    runner = FakeModelRunner(size.num_blocks, BLOCK_SIZE, VOCAB_SIZE, next_token)
    sampler = Sampler(EOS)
    executor = (
        LateExecutor(runner, sampler, size.depth, BLOCK_SIZE)
        if size.depth
        else HostExecutor(runner, sampler)
    )
    return Engine(scheduler, executor, EOS, pulse)


def pace_of_free_rows() -> Pace:
    """Every draft is worth it, however unlikely."""
    pace = Pace()
    for num_decodes in (1, 64):
        pace.model.learn(Work(num_decodes=num_decodes), 1.0)
    return pace


def host_executor(engine: Engine) -> HostExecutor:
    assert isinstance(engine.executor, HostExecutor)
    return engine.executor


def runner_of(engine: Engine) -> FakeModelRunner:
    runner = host_executor(engine).runner
    assert isinstance(runner, FakeModelRunner)
    return runner


@dataclass(frozen=True)
class Wish:
    """What a client asked for, to be run more than once."""

    prompt: tuple[int, ...]
    params: SamplingParams

    def sequence(
        self, detokenizer: Detokenizer | NoText | None = None, *, is_suspect: bool = False
    ) -> Sequence:
        request_id = next(_numbers).to_bytes(16, "big")
        sequence = Sequence(request_id, list(self.prompt), self.params, detokenizer)
        sequence.is_suspect = is_suspect
        return sequence


def make_wish(prompt: list[int], **params: Any) -> Wish:
    values = {"max_tokens": 8, "temperature": 0.0, **params}
    return Wish(tuple(prompt), SamplingParams(**values))


def output_of(sequence: Sequence) -> list[int]:
    return sequence.token_ids[sequence.num_prompt_tokens :]


def run_to_the_end(engine: Engine) -> list[Sequence]:
    """Every sequence that a step named, in order."""
    named = []
    for _ in range(10_000):
        if not engine.has_work:
            return named
        named += engine.step()
    raise AssertionError("it never ends")


def run_alone(wish: Wish, next_token: Callable[..., int] = digest) -> Sequence:
    """The oracle: nobody else, the prompt in one piece, no cache, nothing guessed."""
    engine = make_engine(Size(budget=4096, has_prefix_cache=False), next_token=next_token)
    sequence = wish.sequence()
    engine.add(sequence)
    run_to_the_end(engine)
    return sequence


def random_wish(random: Random, capacity: int) -> Wish:
    max_tokens = random.randint(1, min(16, capacity - 1))
    num_prompt_tokens = random.randint(1, min(30, capacity - max_tokens))
    first = random.choice([7, 8])  # few beginnings, so that prefixes are shared
    prompt = [first + i // 8 for i in range(num_prompt_tokens)]
    prompt[-1] = random.randint(2, VOCAB_SIZE - 1)
    params: dict[str, Any] = {"max_tokens": max_tokens, "ignore_eos": random.random() < 0.5}
    if random.random() < 0.5:
        params |= {"temperature": 3.0 / 2, "seed": random.randint(0, 1 << 40)}
        params |= random.choice([{}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.05}])
    if random.random() < 0.3:
        params |= {"presence_penalty": 1.0, "repetition_penalty": 1.2, "min_tokens": 3}
    return make_wish(prompt, **params)
