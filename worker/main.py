"""Builds a worker from its settings and runs it until it is told to stop."""

from __future__ import annotations

import secrets
import signal
import time
from dataclasses import dataclass

import structlog
import torch

from ..shared.addresses import Endpoints
from ..shared.codec import VERSION
from ..shared.errors import ChairliftError
from ..shared.messages import Greeting
from ..shared.settings import WorkerSettings
from ..shared.tokenizer import Tokenizer
from .attention.cpu import BLOCK_SIZE, TorchCpuAttention
from .block_manager import BlockManager
from .engine import Engine
from .intake import Intake, Limits
from .loop import Loop
from .memory import block_bytes, keep_freed_memory, num_cache_blocks
from .model_runner import ModelRunner
from .models.hub import resolve_model
from .models.loader import LoadedModel, load_model
from .publisher import Publisher
from .sampler import Sampler
from .scheduler import ContinuousScheduler
from .sockets import WorkerSockets
from .static_scheduler import StaticScheduler

log = structlog.get_logger(__name__)

MAX_DEFAULT_MODEL_LEN = 8192
POLICIES = {"continuous": ContinuousScheduler, "static": StaticScheduler}


@dataclass(frozen=True, slots=True)
class Worker:
    """All the parts, connected."""

    loop: Loop
    sockets: WorkerSockets


def run(settings: WorkerSettings) -> int:
    """The exit status: 0 after a signal, 1 when the worker could not start or failed."""
    try:
        worker = build_worker(settings)
    except ChairliftError as error:
        log.error("the worker can't start", why=str(error))
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.loop.stop())
    try:
        worker.loop.run(settings.drain_timeout_s)
    except Exception:
        log.exception("the worker failed")
        return 1
    finally:
        worker.sockets.close()
    log.info("the worker has stopped")
    return 0


def build_worker(settings: WorkerSettings) -> Worker:
    """Loads the model, then listens. Raises ChairliftError for what the user can mend."""
    started = time.monotonic()
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    sockets = WorkerSockets(Endpoints.parse(settings.address))
    try:
        folder = resolve_model(settings.model_source, settings.revision, settings.offline)
        tokenizer = Tokenizer.from_folder(folder)
        model = load_model(folder, settings.dtype, settings.max_model_len)
        engine, limits = build_engine(model, settings)
    except BaseException:
        sockets.close()
        raise
    publisher = Publisher(_greeting(settings, model, tokenizer), tokenizer.files)
    intake = Intake(engine, publisher, tokenizer, limits)
    log.info(
        "the worker is ready",
        model=settings.served_model_name,
        dtype=str(model.dtype).removeprefix("torch."),
        max_model_len=limits.max_model_len,
        kv_cache_tokens=limits.max_cached_tokens,
        address=settings.address,
        seconds=round(time.monotonic() - started, 2),
    )
    return Worker(Loop(sockets, intake, engine, publisher), sockets)


def build_engine(model: LoadedModel, settings: WorkerSettings) -> tuple[Engine, Limits]:
    """Scheduler, KV cache, model and sampler, and what they can take on."""
    max_model_len = settings.max_model_len or min(model.max_model_len, MAX_DEFAULT_MODEL_LEN)
    shape, block_size = model.config.attention_shape, BLOCK_SIZE
    num_blocks = num_cache_blocks(
        block_bytes(shape, block_size, model.dtype.itemsize),
        -(-max_model_len // block_size),
        settings.max_num_seqs,
        settings.kv_cache_bytes,
    )
    scheduler = POLICIES[settings.policy](
        BlockManager(num_blocks, block_size, has_prefix_cache=settings.prefix_caching),
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
    )
    attention = TorchCpuAttention(shape, num_blocks, model.dtype)
    runner = ModelRunner(model.decoder, attention, torch.device("cpu"))
    engine = Engine(scheduler, runner, Sampler(frozenset(model.config.eos_token_ids)))
    limits = Limits(
        vocab_size=model.config.vocab_size,
        max_model_len=max_model_len,
        max_cached_tokens=num_blocks * block_size,
        max_waiting=settings.max_waiting,
    )
    return engine, limits


def _greeting(settings: WorkerSettings, model: LoadedModel, tokenizer: Tokenizer) -> Greeting:
    return Greeting(
        epoch=secrets.randbits(63),
        min_version=VERSION,
        max_version=VERSION,
        model=settings.served_model_name,
        created=int(time.time()),
        tokenizer=tokenizer.fingerprint,
        chat_template=tokenizer.template_fingerprint,
        vocab_size=model.config.vocab_size,
        max_model_len=settings.max_model_len or min(model.max_model_len, MAX_DEFAULT_MODEL_LEN),
        frame_number=0,
    )
