"""Continuous batching of Hugging Face transformers, driven as a client drives a server.

Run as a program it makes one measurement in a process of its own, as `offline` does. Nothing is
streamed: each request tells at its end when its tokens were there. See
https://huggingface.co/docs/transformers/continuous_batching.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from . import program
from .errors import BenchmarkError
from .figures import Exchange, Measured, Run
from .job import Job
from .machine import LoadMeter, Memory
from .workload import Request

MAX_BATCH_TOKENS = 2048  # prompts in steps as long as vLLM's
PAGE_SIZE = 256  # tokens, its default
NO_END = -1


class Driver:
    """Keeps `concurrency` requests in flight: what ends is replaced at once."""

    def __init__(self, manager: Any, concurrency: int) -> None:
        self._manager = manager
        self._concurrency = concurrency
        self._live: dict[str, Exchange] = {}

    def run(self, requests: Sequence[Request]) -> list[Exchange]:
        """Until the last has ended; raises BenchmarkError when one fails."""
        waiting, exchanges = list(reversed(requests)), list[Exchange]()
        while waiting or self._live:
            while waiting and len(self._live) < self._concurrency:
                exchanges.append(self._submit(waiting.pop()))
            self._take(self._manager.get_result(timeout=1))
        return exchanges

    def _submit(self, request: Request) -> Exchange:
        exchange = Exchange(request, time.perf_counter())
        request_id = self._manager.add_request(
            request.prompt_token_ids,
            max_new_tokens=request.num_output_tokens,
            eos_token_id=NO_END,
            record_timestamps=True,
        )
        self._live[request_id] = exchange
        return exchange

    def _take(self, result: Any) -> None:
        if result is None:
            if not self._manager.is_running():
                raise BenchmarkError("the generation thread has ended")
            return
        if result.error is not None:
            raise BenchmarkError(f"a request failed: {result.error}")
        exchange = self._live.pop(result.request_id)
        exchange.num_output_tokens = len(result.generated_tokens)
        for moment_s in result.timestamps:
            exchange.arrive(moment_s, 1)


def measure(job: Job) -> Run:
    """Loads the model, warms up, and times the workload."""
    transformers.logging.set_verbosity_error()
    if job.num_threads:
        torch.set_num_threads(job.num_threads)
    model: Any = AutoModelForCausalLM.from_pretrained(
        job.folder, dtype=getattr(torch, job.dtype_of_weights), attn_implementation="sdpa"
    )
    with model.continuous_batching_context_manager(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=NO_END),
        continuous_batching_config=_config(job),
    ) as manager:
        driver = Driver(manager, job.concurrency)
        driver.run(job.warm_up())
        meter = LoadMeter([os.getpid()])
        exchanges = driver.run(job.requests())
        load, memory = meter.read(), Memory.of(os.getpid())
    figures = Measured(exchanges, load, together=memory).figures()
    return Run("continuous", figures, torch.get_num_threads(), None)


def _config(job: Job) -> ContinuousBatchingConfig:
    """Its cache would else take most of the memory that is free."""
    return ContinuousBatchingConfig(
        page_size=PAGE_SIZE,
        num_blocks=job.concurrency * -(-job.model_len // PAGE_SIZE),
        max_batch_tokens=MAX_BATCH_TOKENS,
        max_requests_per_batch=job.concurrency,
        allow_block_sharing=False,
    )


if __name__ == "__main__":
    raise SystemExit(program.main(measure))
