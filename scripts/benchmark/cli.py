"""Measures chairlift on synthetic models; docs/benchmarks.md says what models and workloads are."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn, get_args

from . import frontend, over_http, scenarios
from .errors import BenchmarkError
from .figures import Run
from .frontend import FrontendJob, Variant
from .job import Dtype, Job, Policy
from .machine import Machine
from .processes import measure_offline
from .report import Case, FrontendCase, Report
from .synthetic import SHAPES, model_folder
from .workload import WORKLOADS

MODES = {"offline": measure_offline, "http": over_http.measure}
ALL = [  # mode, model, workload: what docs/benchmarks.md shows
    ("offline", "S", "W1"),
    ("offline", "M", "W1"),
    ("offline", "S", "decode-heavy"),
    ("offline", "M", "decode-heavy"),
    ("http", "S", "W1"),
    ("http", "M", "W1"),
    ("http", "S", "W3"),
    ("http", "M", "W3"),
]
RESULTS = Path(__file__).resolve().parents[2] / "bench-results"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 1 failed, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    measure = MEASURES.get(options.mode, _measure_all)
    try:
        measure(options, shlex.join(["scripts/bench", *arguments]))
    except BenchmarkError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _interrupt(*_: object) -> NoReturn:
    """Ends as Ctrl-C does, so that every process is stopped."""
    raise KeyboardInterrupt


def _measure_all(options: argparse.Namespace, command: str) -> None:
    """Saves after each case, so that an interrupted run is not for nothing."""
    is_all = options.mode == "all"
    cases = ALL if is_all else [(options.mode, options.model, options.workload)]
    report = Report(command, Machine.this(), [])
    folder: Path = options.output
    files: list[Path] = []
    for mode, model, workload in cases:
        print(f"bench: {mode}, model {model}, workload {workload}", file=sys.stderr)
        report.cases.append(_measure(options, mode, model, workload))
        files = report.save(folder / ("all" if is_all else report.cases[0].title))
    _show(report, files)


def _measure_frontend(options: argparse.Namespace, command: str) -> None:
    case = FrontendCase(f"frontend-{options.streams}", [])
    report = Report(command, Machine.this(), [case])
    files: list[Path] = []
    for _ in range(options.repeats):
        for variant in options.variants:
            job = FrontendJob(
                variant, options.streams, options.step_ms, options.seconds, options.timeout
            )
            run = frontend.measure(job)
            case.runs.append(run)
            print(
                f"bench:   {variant}: {run.figures.cpu_us_per_token:.1f} µs of CPU per token, "
                f"others used {run.figures.foreign_cpu_percent:.1f} % of the CPU",
                file=sys.stderr,
            )
            files = report.save(options.output / case.title)
    _show(report, files)


def _measure_scenario(options: argparse.Namespace, command: str) -> None:
    job = _job(options, str(model_folder(options.model)), "W1", "continuous")
    report = Report(command, Machine.this(), [])
    for _ in range(options.repeats):
        sizes = scenarios.QUICK if options.quick else scenarios.Sizes()
        report.cases.append(scenarios.measure(options.mode, job, options.model, sizes))
    _show(report, report.save(options.output / f"{options.mode}-{Path(options.model).name}"))


MEASURES = {
    "frontend": _measure_frontend,
    **dict.fromkeys(scenarios.SCENARIOS, _measure_scenario),
}


def _show(report: Report, files: list[Path]) -> None:
    print(report.markdown())
    print(*(f"wrote {file}" for file in files), sep="\n", file=sys.stderr)


def _measure(options: argparse.Namespace, mode: str, model: str, workload: str) -> Case:
    """Policies take turns in going first, so that a slow drift of the machine hits both."""
    case = Case(mode, model, workload, [])
    folder = str(model_folder(model))
    policies: list[Policy] = options.policies or _default_policies(mode)
    for repeat in range(options.repeats):
        for policy in policies if repeat % 2 == 0 else reversed(policies):
            run = MODES[mode](_job(options, folder, workload, policy))
            case.runs.append(run)
            _tell(run)
    return case


def _default_policies(mode: str) -> list[Policy]:
    return ["continuous", "static"] if mode == "offline" else ["continuous"]


def _job(options: argparse.Namespace, folder: str, workload: str, policy: Policy) -> Job:
    return Job(
        folder=folder,
        workload_name=workload,
        policy=policy,
        limit=options.limit,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=options.max_model_len,
        num_threads=options.num_threads,
        dtype=options.dtype,
        timeout_s=options.timeout,
    )


def _tell(run: Run) -> None:
    figures = run.figures
    print(
        f"bench:   {run.policy}: {figures.output_tokens_per_s:,.1f} output tokens/s in "
        f"{figures.duration_s:,.1f} s, others used {figures.foreign_cpu_percent:.1f} % of the CPU",
        file=sys.stderr,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("scripts/bench", description=__doc__)
    modes = parser.add_subparsers(dest="mode", required=True)
    common = _common_options()
    engine = _engine_options()
    for mode, text in {
        "offline": "the engine alone, continuous against static batching",
        "http": "a real worker and a real frontend, driven by a client on the same machine",
    }.items():
        one = modes.add_parser(mode, help=text, parents=[common, engine])
        names = ", ".join(SHAPES)
        one.add_argument("--model", default="S", help=f"{names}, or a folder (default: S)")
        one.add_argument("--workload", default="W1", choices=WORKLOADS, help="(default: W1)")
    for mode, text in {
        "attack": "long prompts beside streams: what each does to the other",
        "crowd": "a newcomer beside a tenant with more requests than fit",
        "prefix": "prompts that begin alike, one after the other",
    }.items():
        one = modes.add_parser(mode, help=text, parents=[common, engine])
        one.add_argument("--model", default="M", help=f"{', '.join(SHAPES)}, or a folder")
        one.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    modes.add_parser("all", help="what they show in docs/benchmarks.md", parents=[common, engine])
    text = "a real frontend alone on a core, with a worker that keeps a pace instead of a model"
    _add_frontend_options(modes.add_parser("frontend", help=text, parents=[common]))
    return parser


def _add_frontend_options(parser: argparse.ArgumentParser) -> None:
    variants = get_args(Variant)
    add = parser.add_argument
    add(
        "--variants",
        type=partial(_some_of, variants),
        default=variants,
        help=f"{','.join(variants)} or some of them (default: all)",
    )
    add("--streams", type=_positive, default=256, help="(default: 256)")
    add("--step-ms", type=float, default=20.0, help="between two tokens (default: 20)")
    add("--seconds", type=float, default=10.0, help="of steady state (default: 10)")


def _common_options() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--repeats", type=_positive, default=1, help="runs of each policy or variant (default: 1)")
    add("--timeout", type=float, default=1800.0, help="seconds for each run (default: 1800)")
    add("--output", type=Path, default=RESULTS, help="(default: bench-results)")
    return common


def _engine_options() -> argparse.ArgumentParser:
    engine = argparse.ArgumentParser(add_help=False)
    add = engine.add_argument
    add(
        "--policies",
        type=partial(_some_of, get_args(Policy)),
        help="continuous,static or one of them (default: both; http: continuous)",
    )
    add("--limit", type=_positive, help="only the first so many requests (default: all)")
    add("--max-num-batched-tokens", type=_positive, default=512, help="(default: 512)")
    add("--max-model-len", type=_positive, default=1024, help="(default: 1024)")
    add("--num-threads", type=_positive, help="(default: torch's own choice)")
    add("--dtype", default="auto", choices=get_args(Dtype), help="(default: auto)")
    return engine


def _some_of(known: tuple[str, ...], text: str) -> list[str]:
    names = text.split(",")
    if set(names) - set(known) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"use {','.join(known)} or some of them")
    return [name for name in known if name in names]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
