"""Continuous batching of Hugging Face transformers on a model of the same shape, random as ours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

import torch
from benchmark.workload import Request

from .checkpoint import config_fields
from .shapes import ModelShape

NUM_WARM_UP = 4
WARM_UP_TOKENS = 16


class NotRunError(Exception):
    """Why, in a sentence."""


@dataclass(frozen=True, slots=True)
class PeerRun:
    """All requests, until the last had ended."""

    version: str
    num_output_tokens: int
    seconds: float


def run(
    model: ModelShape, requests: Sequence[Request], dtype: torch.dtype, device: torch.device
) -> PeerRun:
    """Attention is torch's over gathered blocks. Raises NotRunError where transformers is missing,
    has no continuous batching as this script knows it, or fails."""
    try:
        transformers: Any = import_module("transformers")
        from benchmark.transformers_batching import Driver
    except ImportError as error:
        raise NotRunError(f"transformers has no continuous batching here: {error}") from error
    transformers.logging.set_verbosity_error()
    try:
        manager = _manager(_model(model, requests, dtype, device), requests)
        with manager as running:
            driver = Driver(running, len(requests))
            driver.run([_short(request) for request in requests[:NUM_WARM_UP]])
            started = time.perf_counter()
            exchanges = driver.run(requests)
            seconds = time.perf_counter() - started
    except Exception as error:  # its API changes from version to version, and ours are done
        version = transformers.__version__
        raise NotRunError(f"{version} fails with {type(error).__name__}: {error}") from error
    num_output = sum(exchange.num_output_tokens for exchange in exchanges)
    return PeerRun(transformers.__version__, num_output, seconds)


def _short(request: Request) -> Request:
    num_tokens = min(WARM_UP_TOKENS, request.num_output_tokens)
    return Request(request.prompt_token_ids[:WARM_UP_TOKENS], num_tokens)


def _model(
    model: ModelShape, requests: Sequence[Request], dtype: torch.dtype, device: torch.device
) -> Any:
    transformers: Any = import_module("transformers")
    given = config_fields(model, max(request.num_tokens for request in requests))
    config = transformers.AutoConfig.for_model(given.pop("model_type"), **given)
    with torch.device(device):
        make = transformers.AutoModelForCausalLM.from_config
        return make(config, dtype=dtype, attn_implementation="sdpa").eval()


def _manager(model: Any, requests: Sequence[Request]) -> Any:
    from benchmark.transformers_batching import MAX_BATCH_TOKENS, NO_END, PAGE_SIZE

    transformers: Any = import_module("transformers")
    config = transformers.ContinuousBatchingConfig
    known = {field.name for field in fields(config)}
    wanted = {
        "page_size" if "page_size" in known else "block_size": PAGE_SIZE,  # until 5.17
        "num_blocks": sum(-(-request.num_tokens // PAGE_SIZE) + 1 for request in requests),
        "max_batch_tokens": MAX_BATCH_TOKENS,
        "max_requests_per_batch": len(requests),
        "allow_block_sharing": False,
    }
    if "auto_switch_to_flash" in known:  # before, nothing switched
        wanted["auto_switch_to_flash"] = False
    return model.continuous_batching_context_manager(
        generation_config=transformers.GenerationConfig(do_sample=False, eos_token_id=NO_END),
        continuous_batching_config=config(**wanted),
    )
