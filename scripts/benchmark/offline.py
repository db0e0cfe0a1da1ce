"""In process: the engine alone, driven step by step, without sockets and HTTP.

Run as a program it makes one measurement, so that each has a process and its memory to itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import WorkerSettings
from chairlift.shared.tokenizer import Tokenizer
from chairlift.worker.detokenizer import Detokenizer
from chairlift.worker.engine import Engine
from chairlift.worker.main import build_engine, prepare_process
from chairlift.worker.models.linear_choice import linear_factory
from chairlift.worker.models.loader import load_model
from chairlift.worker.sequence import Sequence as EngineSequence
from chairlift.worker.step_times import StepTimes

from . import program
from .errors import BenchmarkError
from .figures import Exchange, Measured, Run, Steps
from .job import Job
from .machine import LoadMeter, Memory
from .workload import Request


class Driver:
    """Keeps `concurrency` requests in flight: what ends is replaced before the next step."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, concurrency: int) -> None:
        self.steps = Steps()
        self._engine = engine
        self._tokenizer = tokenizer
        self._concurrency = concurrency
        self._live: dict[bytes, Exchange] = {}

    def run(self, requests: Sequence[Request]) -> list[Exchange]:
        """Until the last has ended; raises BenchmarkError if the engine gets stuck."""
        self.steps = Steps()
        started_s = time.perf_counter()
        waiting, exchanges = list(reversed(requests)), list[Exchange]()
        while waiting or self._live:
            while waiting and len(self._live) < self._concurrency:
                exchanges.append(self._submit(waiting.pop()))
            self._step(started_s)
        return exchanges

    def _submit(self, request: Request) -> Exchange:
        request_id = os.urandom(16)
        prompt = request.prompt_token_ids
        params = SamplingParams(
            max_tokens=request.num_output_tokens, temperature=0.0, ignore_eos=True
        )
        exchange = self._live[request_id] = Exchange(request, time.perf_counter())
        detokenizer = Detokenizer(self._tokenizer.backend, prompt)
        self._engine.add(EngineSequence(request_id, prompt, params, detokenizer))
        return exchange

    def _step(self, started_s: float) -> None:
        engine, steps = self._engine, self.steps
        num_steps, num_tokens = engine.num_steps, self._num_tokens
        sampled = engine.step()
        now = time.perf_counter()
        if engine.num_steps == num_steps:
            raise BenchmarkError("the engine has requests and plans nothing for them")
        ended = [sequence for sequence in sampled if sequence.finish is not None]
        steps.end_s.append(now - started_s)
        steps.num_running.append(len(engine.scheduler.running) + len(ended))
        steps.num_tokens.append(self._num_tokens - num_tokens)
        for sequence in sampled:
            exchange = self._live[sequence.request_id]
            exchange.arrive(now, sequence.num_output_tokens - exchange.num_output_tokens)
            exchange.num_output_tokens = sequence.num_output_tokens
        for sequence in ended:
            del self._live[sequence.request_id]

    @property
    def _num_tokens(self) -> int:
        """Prompt tokens that were computed and output tokens that were sampled."""
        return self._engine.num_prompt_tokens + self._engine.num_generation_tokens


def measure(job: Job) -> Run:
    """Loads the model, warms up, and times the workload."""
    requests = job.requests()
    driver, engine = _prepare(job)
    driver.run(job.warm_up())
    num_steps, times = engine.num_steps, replace(engine.times)
    meter = LoadMeter([os.getpid()])
    exchanges = driver.run(requests)
    measured = Measured(
        exchanges,
        meter.read(),
        engine.num_steps - num_steps,
        Memory.of(os.getpid()),
        outside_forward_percent=_outside_forward_percent(engine.times, times),
    )
    return Run(job.policy, measured.figures(), torch.get_num_threads(), driver.steps)


def _prepare(job: Job) -> tuple[Driver, Engine]:
    """What a worker does at its start, less the sockets."""
    prepare_process(job.num_threads)
    settings = WorkerSettings(**job.settings())
    folder = Path(job.folder)
    make_linear = linear_factory(settings.quantize, settings.kernels)
    model = load_model(folder, settings.dtype, settings.max_model_len, make_linear)
    engine = build_engine(model, settings)
    engine.warm_up()
    return Driver(engine, Tokenizer.from_folder(folder), job.concurrency), engine


def _outside_forward_percent(after: StepTimes, before: StepTimes) -> float:
    return 100 * (1 - (after.forward_s - before.forward_s) / (after.busy_s - before.busy_s))


if __name__ == "__main__":
    raise SystemExit(program.main(measure))
