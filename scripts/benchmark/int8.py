"""What `--quantize int8` gains in speed and costs in accuracy."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from chairlift.worker.process import tune

from . import options as shared
from .figures import LABELS, Figures, medians, ratio
from .job import Job
from .options import Modes, job_of
from .processes import measure_in_process
from .report import Section, repeats, table_of

Quantize = Literal["none", "int8"]


@dataclass(frozen=True, slots=True)
class QuantizedRun:
    """One measurement of one kind of weights."""

    quantize: Quantize
    figures: Figures


@dataclass(frozen=True, slots=True)
class SpeedCase:
    """Every run in the order they were."""

    model: str
    concurrency: int
    runs: list[QuantizedRun] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"int8-{Path(self.model).name}"

    @property
    def about(self) -> str:
        num_runs = repeats(len(self._of("int8")))
        return f"Model {self.model}, {self.concurrency} at a time, mostly decodes{num_runs}."

    def table(self) -> list[list[str]]:
        kinds: tuple[Quantize, ...] = ("none", "int8")
        columns = {kind: medians(self._of(kind)) for kind in kinds}
        ratios = {"int8 / none": partial(ratio, columns["int8"], columns["none"])}
        return table_of(columns, LABELS, ratios)

    def save(self, folder: Path) -> list[Path]:
        return []

    def _of(self, quantize: Quantize) -> list[Figures]:
        return [run.figures for run in self.runs if run.quantize == quantize]


def add_parser(modes: Modes) -> None:
    text = "what --quantize int8 gains in speed and costs in accuracy"
    one = modes.add_parser("int8", help=text, parents=[shared.common(), shared.engine("M")])
    one.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    one.set_defaults(measure=measure)


def measure(options: argparse.Namespace) -> Iterator[Section]:
    """The engine's speed, of the model; accuracy, of the demo model and of random layers."""
    job = job_of(options, "tiny" if options.quick else "decode")
    case = SpeedCase(options.model, job.concurrency)
    for repeat in range(options.repeats):
        case.runs.extend(_pair(job, int8_first=repeat % 2 == 1))
        yield case
    tune(os.environ)  # before torch is there
    from . import int8_accuracy  # nothing else in this process needs torch

    yield int8_accuracy.demo_model(int8_accuracy.QUICK if options.quick else int8_accuracy.Sizes())
    yield int8_accuracy.layers()


def _pair(job: Job, *, int8_first: bool) -> Iterator[QuantizedRun]:
    """They take turns in going first, so that a slow drift of the machine hits both."""
    kinds: tuple[Quantize, ...] = ("int8", "none") if int8_first else ("none", "int8")
    for kind in kinds:
        run = measure_in_process("offline", replace(job, given={**job.given, "quantize": kind}))
        yield QuantizedRun(kind, run.figures)
