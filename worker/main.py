"""Builds a worker from its settings and runs it until it is told to stop."""

from __future__ import annotations

import secrets
import signal
import time

import structlog
import torch

from ..shared.addresses import Endpoints
from ..shared.codec import VERSION
from ..shared.errors import ChairliftError
from ..shared.messages import Greeting
from ..shared.settings import WorkerSettings
from ..shared.tokenizer import Tokenizer
from .address_lock import AddressLock
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

POLICIES = {"continuous": ContinuousScheduler, "static": StaticScheduler}


def run(settings: WorkerSettings) -> int:
    """The exit status: 0 after a signal, 1 when the worker could not start or failed."""
    try:
        lock = AddressLock(Endpoints.parse(settings.address))
        loop = build_loop(settings)
    except ChairliftError as error:
        log.error("the worker can't start", why=str(error))
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop())
    try:
        loop.run(settings.drain_timeout_s)
    except Exception:
        log.exception("the worker failed")
        return 1
    finally:
        loop.close()
        lock.close()
    log.info("the worker has stopped")
    return 0


def build_loop(settings: WorkerSettings) -> Loop:
    """All parts of a worker, connected. Raises ChairliftError for what the user can mend."""
    started = time.monotonic()
    prepare_process(settings.num_threads)
    sockets = WorkerSockets(Endpoints.parse(settings.address))
    try:
        folder = resolve_model(settings.model_source, settings.revision, settings.offline)
        tokenizer = Tokenizer.from_folder(folder)
        model = load_model(folder, settings.dtype, settings.max_model_len)
        engine = build_engine(model, settings)
    except BaseException:
        sockets.close()
        raise
    greeting = _greeting(settings.served_model_name, model, tokenizer)
    publisher = Publisher(greeting, tokenizer.files)
    limits = Limits(model.config.vocab_size, model.max_model_len, settings.max_waiting)
    intake = Intake(engine, publisher, tokenizer, limits)
    blocks = engine.scheduler.block_manager
    log.info(
        "the worker is ready",
        model=settings.served_model_name,
        dtype=str(model.dtype).removeprefix("torch."),
        max_model_len=model.max_model_len,
        kv_cache_tokens=blocks.num_blocks * blocks.block_size,
        address=settings.address,
        seconds=round(time.monotonic() - started, 2),
    )
    return Loop(sockets, intake, engine, publisher)


def prepare_process(num_threads: int | None) -> None:
    """What torch and the memory allocator do for the whole process."""
    if num_threads:
        torch.set_num_threads(num_threads)
    torch.set_flush_denormal(True)
    keep_freed_memory()


def build_engine(model: LoadedModel, settings: WorkerSettings) -> Engine:
    """Scheduler, KV cache, model and sampler."""
    shape = model.config.attention_shape
    num_blocks = num_cache_blocks(
        block_bytes(shape, BLOCK_SIZE, model.dtype.itemsize),
        -(-model.max_model_len // BLOCK_SIZE),
        settings.max_num_seqs,
        settings.kv_cache_bytes,
    )
    scheduler = POLICIES[settings.policy](
        BlockManager(num_blocks, BLOCK_SIZE, has_prefix_cache=settings.prefix_caching),
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
    )
    attention = TorchCpuAttention(shape, num_blocks, model.dtype)
    runner = ModelRunner(model.decoder, attention, torch.device("cpu"))
    # A checkpoint may name ends that its vocabulary doesn't have: they never come.
    eos_token_ids = frozenset(i for i in model.config.eos_token_ids if i < model.config.vocab_size)
    return Engine(scheduler, runner, Sampler(eos_token_ids), eos_token_ids)


def _greeting(name: str, model: LoadedModel, tokenizer: Tokenizer) -> Greeting:
    return Greeting(
        epoch=secrets.randbits(63),
        min_version=VERSION,
        max_version=VERSION,
        model=name,
        created=int(time.time()),
        tokenizer=tokenizer.fingerprint,
        chat_template=tokenizer.template_fingerprint,
        vocab_size=model.config.vocab_size,
        max_model_len=model.max_model_len,
        frame_number=0,
    )
