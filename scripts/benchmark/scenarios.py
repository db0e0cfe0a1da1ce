"""What one caller does to another: long prompts, crowds, prefixes that come again. Over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvloop

from . import options as shared
from .figures import Exchange, percentile
from .http_client import answer_to
from .job import Job
from .machine import LoadMeter
from .options import Modes, job_of
from .processes import servers
from .workload import Request

PROBES = 5  # of what is measured alone, for a median


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of tokens and requests."""

    num_streams: int = 8
    stream_tokens: int = 900
    long_prompt: int = 1000
    interval_s: float = 10.0
    num_waiting: int = 128
    prefix: int = 400
    num_repeated: int = 32


@dataclass(frozen=True, slots=True)
class Scenario:
    """One of them, measured: what, how much, and what it must be."""

    title: str
    about: str
    rows: list[tuple[str, float, str]]

    def table(self) -> list[list[str]]:
        body = [[label, f"{value:,.2f}", must] for label, value, must in self.rows]
        return [["", "measured", "must be"], *body]

    def save(self, folder: Path) -> list[Path]:
        return []


class Caller:
    """Asks a server for greedy answers to random prompts, no two alike."""

    def __init__(self, port: int, vocab_size: int, sizes: Sizes) -> None:
        self.sizes = sizes
        self._port = port
        self._vocab_size = vocab_size
        self._random = random.Random(5)

    def prompt(self, num_tokens: int) -> list[int]:
        return [self._random.randrange(1, self._vocab_size) for _ in range(num_tokens)]

    async def ask(self, prompt: list[int], num_output_tokens: int, user: str = "") -> Exchange:
        request = Request(prompt, num_output_tokens)
        return await answer_to(self._port, request, **({"user": user} if user else {}))

    async def median_ttft_ms(self, num_tokens: int, user: str = "") -> float:
        """Of prompts that have the server to themselves."""
        answers = [await self.ask(self.prompt(num_tokens), 4, user) for _ in range(PROBES)]
        return statistics.median(answer.ttft_ms for answer in answers)

    async def streams(self) -> list[Exchange]:
        """That decode side by side."""
        sizes = self.sizes
        prompts = [self.prompt(32) for _ in range(sizes.num_streams)]
        return await asyncio.gather(*(self.ask(p, sizes.stream_tokens) for p in prompts))


QUICK = Sizes(
    num_streams=2,
    stream_tokens=200,
    long_prompt=100,
    interval_s=0.02,
    num_waiting=8,
    prefix=64,
    num_repeated=3,
)
Rows = list[tuple[str, float, str]]


async def attack(caller: Caller) -> Rows:
    """Streams decode; a long prompt comes again and again."""
    sizes = caller.sizes
    alone_ms = await caller.median_ttft_ms(sizes.long_prompt)
    quiet = _pauses_ms(await caller.streams())
    streams = asyncio.create_task(caller.streams())
    ttfts: list[float] = []
    await asyncio.wait({streams}, timeout=sizes.interval_s / 5)
    while not streams.done():
        ttfts.append((await caller.ask(caller.prompt(sizes.long_prompt), 4)).ttft_ms)
        await asyncio.wait({streams}, timeout=max(0.0, sizes.interval_s - ttfts[-1] / 1000))
    beside = _pauses_ms(await streams)
    calm_ms, beside_ms = percentile(quiet, 50), percentile(beside, 99)
    long_ms = statistics.median(ttfts)
    return [
        ("inter-token latency without long prompts, p50, ms", calm_ms, ""),
        ("inter-token latency beside them, p99, ms", beside_ms, ""),
        ("ratio", beside_ms / calm_ms, "<= 2"),
        ("long prompt alone: time to first token, ms", alone_ms, ""),
        (f"long prompt beside the streams, median of {len(ttfts)}, ms", long_ms, ""),
        ("ratio", long_ms / alone_ms, "<= 3"),
    ]


async def crowd(caller: Caller) -> Rows:
    """One tenant has more requests than fit; then another comes with a short one."""
    empty_ms = await caller.median_ttft_ms(32, "newcomer")
    prompts = [caller.prompt(64) for _ in range(caller.sizes.num_waiting)]
    tasks = [asyncio.create_task(caller.ask(p, 64, "greedy")) for p in prompts]
    await asyncio.sleep(1.0)  # until they are in
    ttfts = []
    for _ in range(PROBES):
        ttfts.append((await caller.ask(caller.prompt(32), 4, "newcomer")).ttft_ms)
        await asyncio.sleep(0.2)
    is_over = sum(task.done() for task in tasks)
    greedy = [answer.ttft_ms for answer in await asyncio.gather(*tasks)]
    ttft_ms = statistics.median(ttfts)
    return [
        ("newcomer on the empty server: time to first token, ms", empty_ms, ""),
        (f"newcomer beside {len(tasks)} of another tenant, ms", ttft_ms, ""),
        ("ratio", ttft_ms / empty_ms, "<= 4"),
        ("the other tenant's own median, ms", statistics.median(greedy), ""),
        ("of its requests that had ended at the last probe", is_over, f"< {len(tasks)}"),
    ]


async def prefix(caller: Caller) -> Rows:
    """One request after the other; first nothing is alike, then all begin alike."""
    sizes = caller.sizes
    num_tokens = sizes.prefix + 16
    fresh = [(await caller.ask(caller.prompt(num_tokens), 4)).ttft_ms for _ in range(PROBES)]
    shared, ttfts = caller.prompt(sizes.prefix), []
    for _ in range(sizes.num_repeated):
        ttfts.append((await caller.ask([*shared, *caller.prompt(16)], 4)).ttft_ms)
    fresh_ms, cached_ms = statistics.median(fresh), statistics.median(ttfts)
    return [
        (f"{num_tokens} tokens, nothing cached: time to first token, ms", fresh_ms, ""),
        (f"{sizes.prefix} of them as before: p50 of {len(ttfts)}, ms", cached_ms, ""),
        ("ratio", cached_ms / fresh_ms, "<= 0.25"),
    ]


SCENARIOS: dict[str, Callable[[Caller], Awaitable[Rows]]] = {
    "attack": attack,
    "crowd": crowd,
    "prefix": prefix,
}


def add_parser(modes: Modes) -> None:
    for mode, text in {
        "attack": "long prompts beside streams: what each does to the other",
        "crowd": "a newcomer beside a tenant with more requests than fit",
        "prefix": "prompts that begin alike, one after the other",
    }.items():
        one = modes.add_parser(mode, help=text, parents=[shared.common(), shared.engine("M")])
        one.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
        one.set_defaults(measure=measure)


def measure(options: argparse.Namespace) -> Iterator[Scenario]:
    """Each time with processes of its own."""
    sizes = QUICK if options.quick else Sizes()
    title = f"{options.mode}-{Path(options.model).name}"
    for repeat in range(options.repeats):
        numbered = f"{title}-{repeat + 1}" if options.repeats > 1 else title
        yield _play(options.mode, job_of(options, "W1"), numbered, sizes)


def _play(name: str, job: Job, title: str, sizes: Sizes) -> Scenario:
    """Starts the processes, warms up and plays the scenario."""
    with servers(job) as running:
        caller = Caller(running.port, job.vocab_size, sizes)
        uvloop.run(_warm_up(caller))
        meter = LoadMeter([os.getpid(), running.worker_pid, running.frontend_pid])
        rows = uvloop.run(_within(job.timeout_s, SCENARIOS[name](caller)))
        foreign = meter.read().foreign_cpu_percent
    about = f"{job.concurrency} seats; other programs used {foreign:.1f} % of the CPU."
    return Scenario(title, about, rows)


async def _warm_up(caller: Caller) -> None:
    prompts = [caller.prompt(n) for n in (32, 64, 128, 256)]
    await asyncio.gather(*(caller.ask(p, 16) for p in prompts))


async def _within(timeout_s: float, rows: Awaitable[Rows]) -> Rows:
    async with asyncio.timeout(timeout_s):
        return await rows


def _pauses_ms(answers: list[Exchange]) -> list[float]:
    return [pause for answer in answers for pause in answer.pauses_ms]
