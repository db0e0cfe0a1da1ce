"""What several modes take on the command line, and the Job that it makes."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, get_args

from pydantic import ValidationError

from chairlift.shared.settings import WorkerSettings

from .errors import BenchmarkError
from .job import Dtype, Job, Policy
from .synthetic import SHAPES, model_folder
from .workload import WORKLOADS

Modes: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

RESULTS = Path(__file__).resolve().parents[2] / "bench-results"
OWN_OPTIONS = {"policy": "--policies"} | {
    name: f"--{name.replace('_', '-')}"
    for name in ("model", "dtype", "max_num_batched_tokens", "max_model_len", "num_threads")
}


def common() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    text = "runs of each that is compared (default: 1)"
    parent.add_argument("--repeats", type=positive, default=1, help=text)
    add_output(parent)
    return parent


def add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--timeout", type=float, default=1800.0, help="seconds for each run (default: 1800)")
    add("--output", type=Path, default=RESULTS, help="(default: bench-results)")


def engine(default_model: str) -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    add = parent.add_argument
    add("--model", default=default_model, help=f"{', '.join(SHAPES)}, or a folder")
    add("--max-num-batched-tokens", type=positive, default=512, help="(default: 512)")
    add("--max-model-len", type=positive, default=1024, help="(default: 1024)")
    add("--num-threads", type=positive, help="(default: torch's own choice)")
    add("--dtype", default="auto", choices=get_args(Dtype), help="(default: auto)")
    text = "any other setting of the worker, like kv_cache_bytes=1GiB; may come again"
    add("--set", action="append", default=[], metavar="NAME=VALUE", dest="given", help=text)
    return parent


def workload() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    add = parent.add_argument
    add("--workload", default="W1", choices=WORKLOADS, help="(default: W1)")
    add("--limit", type=positive, help="only the first so many requests (default: all)")
    return parent


def policies(default: Sequence[Policy]) -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    known = get_args(Policy)
    parent.add_argument(
        "--policies",
        type=partial(some_of, known),
        default=default,
        help=f"{','.join(known)} or one of them (default: {','.join(default)})",
    )
    return parent


def job_of(options: argparse.Namespace, workload_name: str, policy: Policy = "continuous") -> Job:
    """Raises BenchmarkError for a model that isn't there and a setting that can't be."""
    job = Job(
        folder=str(model_folder(options.model)),
        workload_name=workload_name,
        policy=policy,
        limit=getattr(options, "limit", None),  # not all modes have it
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=options.max_model_len,
        num_threads=options.num_threads,
        dtype=options.dtype,
        timeout_s=options.timeout,
    )
    return replace(job, given=settings_given(options.given, job.settings()))


def settings_given(texts: Sequence[str], own: Mapping[str, Any]) -> dict[str, str | bool]:
    """WorkerSettings by name, beside our own: a switch as a bool, all else as it was given. Raises
    BenchmarkError for what the worker would refuse, and what has an option of its own."""
    given = dict(map(_name_and_value, texts))
    try:
        checked = WorkerSettings(**{"_env_file": None, **own, **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"{name}: " for name in first["loc"][:1])
        message = first["msg"].removeprefix("Value error, ")
        raise BenchmarkError(f"the worker refuses its settings: {where}{message}") from None
    values = {name: getattr(checked, name) for name in given}
    return {n: values[n] if isinstance(values[n], bool) else text for n, text in given.items()}


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    name = name.replace("-", "_")
    known = sorted(WorkerSettings.model_fields.keys() - OWN_OPTIONS - {"address"})
    if not equals:
        raise BenchmarkError(f"--set {text}: write it as NAME=VALUE")
    if name in OWN_OPTIONS:
        raise BenchmarkError(f"--set {name}: use {OWN_OPTIONS[name]}")
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there is {', '.join(known)}"
        raise BenchmarkError(f"--set {name}: no such setting; {hint}")
    return name, value


def some_of(known: tuple[str, ...], text: str) -> list[str]:
    names = text.split(",")
    if set(names) - set(known) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"use {','.join(known)} or some of them")
    return [name for name in known if name in names]


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
