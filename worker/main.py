"""Builds a worker from its settings and runs it until it is told to stop."""

from __future__ import annotations

import secrets
import time

import structlog
import torch

from ..shared.addresses import Endpoints
from ..shared.errors import ChairliftError, ModelError
from ..shared.messages import Greeting
from ..shared.settings import WorkerSettings
from ..shared.tokenizer import Tokenizer
from .admission import Admission, Limits
from .block_manager import BlockManager
from .child import CRASHED, REFUSED
from .engine import Engine
from .feed import Feed
from .grammar import GrammarCompiler
from .grammar_trial import GrammarTrials
from .intake import Intake
from .logits_processors import LogitsProcessor, load_logits_processors
from .loop import Loop
from .memory import keep_freed_memory, num_cache_blocks
from .models.hub import resolve_model
from .models.loader import LoadedModel, load_model
from .pace import Pace
from .platform import choose_device, platform_of, settings_for
from .process import quota_cores
from .publisher import Publisher
from .pulse import Pulse, State
from .quarantine import Quarantine
from .sampler import Sampler
from .scheduler import ContinuousScheduler
from .sockets import WorkerSockets
from .speculation import Speculation
from .static_scheduler import StaticScheduler
from .streams import Streams
from .waiting_room import WaitingRoom

log = structlog.get_logger(__name__)

OTHER_REQUEST_BYTES = 512 << 10  # beside the token ids: more than all fields at their largest
POLICIES = {"continuous": ContinuousScheduler, "static": StaticScheduler}


def run(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
    """One worker, for the Supervisor that forked this process: the exit code."""
    try:
        loop = build_loop(settings, pulse, quarantine)
    except ChairliftError as error:
        log.error("the worker can't start", why=str(error))
        return REFUSED
    try:
        loop.run(settings.drain_timeout_s)
    except Exception:
        log.exception("the worker failed")
        return CRASHED
    finally:
        loop.close()
    return 0


def build_loop(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> Loop:
    """All parts of a worker, connected. Raises ChairliftError for what the user can mend."""
    started = time.monotonic()
    prepare_process(settings.num_threads)
    pulse.state = State.DOWNLOADING
    folder = resolve_model(settings.model_source, settings.revision, settings.offline)
    pulse.beat()
    pulse.state = State.LOADING
    tokenizer = Tokenizer.from_folder(folder)
    processors = load_logits_processors(settings.logits_processors)
    device = choose_device(settings.device)
    settings = settings_for(device, settings)
    make_linear = platform_of(device, settings).linear_factory()
    model = load_model(folder, settings.dtype, settings.max_model_len, make_linear, device)
    eos_token_ids = eos_token_ids_of(model)
    trials = GrammarTrials(tokenizer.backend, eos_token_ids)
    compiler = GrammarCompiler(tokenizer.backend, eos_token_ids, check=trials.check)
    compiler.prepare()
    engine = build_engine(model, settings, pulse, compiler, processors)
    pulse.beat()
    engine.warm_up()
    max_request_bytes = 8 * model.max_model_len + OTHER_REQUEST_BYTES
    endpoints, curve = Endpoints.parse(settings.address), settings.load_curve()
    sockets = WorkerSockets(endpoints, curve, max_request_bytes)
    greeting = _greeting(settings, model, tokenizer)
    publisher = Publisher(greeting, tokenizer.files)
    streams = Streams(settings.orphan_grace_s)
    limits = Limits(
        model.config.vocab_size,
        model.max_model_len,
        settings.max_waiting,
        settings.max_waiting_tokens,
        settings.queue_timeout_s,
    )
    admission = Admission(limits, tokenizer.fingerprint, quarantine)
    intake = Intake(engine, publisher, streams, tokenizer, admission)
    blocks = engine.scheduler.block_manager
    log.info(
        "the worker is ready",
        model=settings.served_model_name,
        device=model.decoder.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        quantize=settings.quantize,
        max_model_len=model.max_model_len,
        kv_cache_tokens=blocks.num_blocks * blocks.block_size,
        address=settings.address,
        seconds=round(time.monotonic() - started, 2),
    )
    feed = Feed(engine, greeting.epoch, time.time() - engine.times.clock())
    return Loop(sockets, intake, engine, publisher, feed)


def prepare_process(num_threads: int | None) -> None:
    """What torch and the memory allocator do for the whole process."""
    possible = filter(None, (torch.get_num_threads(), quota_cores()))
    torch.set_num_threads(num_threads or min(possible))
    torch.set_flush_denormal(True)
    keep_freed_memory()


def build_engine(
    model: LoadedModel,
    settings: WorkerSettings,
    pulse: Pulse | None = None,
    compiler: GrammarCompiler | None = None,
    processors: tuple[LogitsProcessor, ...] = (),
) -> Engine:
    """Scheduler, KV cache, model and sampler."""
    shape, platform = model.config.attention_shape, platform_of(model.decoder.device, settings)
    num_blocks = num_cache_blocks(
        platform.block_bytes(shape, model.dtype.itemsize),
        -(-model.max_model_len // platform.block_size),
        settings.max_num_seqs,
        settings.kv_cache_bytes or platform.cache_bytes(model.config, model.dtype.itemsize),
    )
    kernels = platform.kernels(shape, num_blocks, model.dtype, model.max_model_len)
    target_itl_s = settings.target_itl_ms / 1000 if settings.target_itl_ms else None
    pace = Pace(target_itl_s, kernels.attention.chunk_unit)
    scheduler = POLICIES[settings.policy](
        BlockManager(num_blocks, platform.block_size, has_prefix_cache=settings.prefix_caching),
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        pace=pace,
    )
    has_same_cuts = kernels.attention.chunk_unit == 1
    has_same_bits = has_same_cuts and model.decoder.is_row_independent
    if settings.deterministic and not has_same_cuts:
        raise ModelError(
            "--deterministic can't be had with torch's attention: try --kernels native, which "
            "needs a C compiler, or leave it out"
        )
    if settings.deterministic and not has_same_bits:
        raise ModelError(
            "--deterministic can't be had with this processor's matrix products in this type: try "
            "--dtype float32, or leave it out"
        )
    eos_token_ids = eos_token_ids_of(model)
    sampler = Sampler(eos_token_ids, processors)
    executor = platform.executor(model.decoder, kernels, sampler)
    if settings.speculation == "auto" and isinstance(scheduler, ContinuousScheduler):
        obstacles = {
            "the next step is launched before this one's tokens are known": executor.depth > 0,
            "it would change bits": not has_same_bits,  # a draft is a row of a longer cut
            "a logits processor sees each token": bool(processors),
        }
        reasons = [why for why, is_met in obstacles.items() if is_met]
        if reasons:
            log.info("no speculation", why=reasons[0])
        else:
            scheduler.speculation = Speculation(pace)
    engine = Engine(scheduler, executor, eos_token_ids, pulse)
    engine.waiting_room = WaitingRoom(compiler)
    return engine


def eos_token_ids_of(model: LoadedModel) -> frozenset[int]:
    """A checkpoint may name ends that its vocabulary doesn't have: they never come."""
    return frozenset(i for i in model.config.eos_token_ids if i < model.config.vocab_size)


def _greeting(settings: WorkerSettings, model: LoadedModel, tokenizer: Tokenizer) -> Greeting:
    return Greeting(
        epoch=secrets.randbits(63),
        model=settings.served_model_name,
        created=int(time.time()),
        tokenizer=tokenizer.fingerprint,
        chat_template=tokenizer.template_fingerprint,
        vocab_size=model.config.vocab_size,
        max_model_len=model.max_model_len,
        frame_number=0,
        orphan_grace_ms=round(settings.orphan_grace_s * 1000),
    )
