"""How fast torch multiplies by each weight of four models, and whether a row's bits depend on how
many other rows there are: PYTHONPATH=scripts .venv/bin/python -m gpu.gemm

Each mode has a process of its own, because cuBLAS reads its environment once. Without a workspace
it can't divide a sum among blocks, which it otherwise does by the number of rows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from benchmark.report import aligned

from chairlift.worker.cuda.linear import UNDIVIDED

from . import roofline
from .products import Product, measure_products
from .roofline import Roofline
from .shapes import MODELS, TINY, MatrixShape, ModelShape
from .timing import here, name_of

NUM_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 2048)
TINY_NUM_ROWS = (1, 2, 16)
MODES: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "no split-K": UNDIVIDED,
}


@dataclass(frozen=True, slots=True)
class Run:
    """What one mode has measured."""

    device: str
    roofline: Roofline
    products: list[Product]


def matrices(models: Sequence[ModelShape]) -> dict[MatrixShape, str]:
    """Each shape once, with all that have it: "Llama-3.1-8B output, Qwen3-8B output"."""
    found: dict[MatrixShape, list[str]] = {}
    for model in models:
        for name, shape in model.matrices.items():
            found.setdefault(shape, []).append(f"{model.name} {name}")
    return {shape: ", ".join(names) for shape, names in found.items()}


def measure(*, is_tiny: bool) -> Run:
    device = here(is_tiny=is_tiny)
    return Run(
        device=name_of(device),
        roofline=roofline.measured(device, roofline.sizes(is_tiny=is_tiny)),
        products=[
            measure_products(shape, name, TINY_NUM_ROWS if is_tiny else NUM_ROWS, device)
            for shape, name in matrices([TINY] if is_tiny else list(MODELS.values())).items()
        ],
    )


def measure_in_process(mode: str, *, is_tiny: bool) -> Run:
    """Raises CalledProcessError if it fails, and what it wrote has been seen."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.json"
        command = [sys.executable, "-m", "gpu.gemm", "--measure", str(file)]
        command += ["--tiny"] if is_tiny else []
        subprocess.run(command, check=True, env=os.environ | MODES[mode])
        return msgspec.json.decode(file.read_bytes(), type=Run)


def speeds(runs: Mapping[str, Run]) -> Iterator[list[str]]:
    """A row for each matrix and number of rows; of each mode the time and its share of what the
    device attained in that process."""
    first = next(iter(runs.values()))
    labels = [f"{mode}{kind}" for mode in runs for kind in ("", ", FP8")]
    yield ["matrix", "rows", "bound by", "floor, µs", *(f"{label}, µs" for label in labels)]
    for index, product in enumerate(first.products):
        for num_rows in product.seconds:
            num_bytes, num_flops = product.num_bytes(num_rows), product.num_flops(num_rows)
            cells = [
                _cell(run.products[index], num_rows, run.roofline, is_fp8)
                for run in runs.values()
                for is_fp8 in (False, True)
            ]
            floor = first.roofline.seconds(num_bytes, num_flops)
            bound = first.roofline.bound(num_bytes, num_flops)
            yield [product.name, str(num_rows), bound, f"{1e6 * floor:.1f}", *cells]


def _cell(product: Product, num_rows: int, ceiling: Roofline, is_fp8: bool) -> str:
    """Time and share, as in "12.3 (81%)". FP8's bytes are fewer, its operations twice as fast."""
    seconds = (product.fp8_seconds if is_fp8 else product.seconds).get(num_rows)
    if seconds is None:
        return "-"
    num_flops = product.num_flops(num_rows) / (2 if is_fp8 else 1)
    num_bytes = product.fp8_bytes(num_rows) if is_fp8 else product.num_bytes(num_rows)
    return f"{1e6 * seconds:.1f} ({ceiling.seconds(num_bytes, num_flops) / seconds:.0%})"


def classes(runs: Mapping[str, Run]) -> Iterator[list[str]]:
    """Which numbers of rows give a row the same bits, and whether its neighbours change any."""
    yield ["matrix", *(part for mode in runs for part in (f"same bits, {mode}", "alone"))]
    for products in zip(*(run.products for run in runs.values()), strict=True):
        cells = [
            part
            for product in products
            for part in (_groups(product.classes), "yes" if product.is_row_alone else "NO")
        ]
        yield [products[0].name, *cells]


def _groups(groups: Sequence[Sequence[int]]) -> str:
    """As in "1-8, 16-2048"."""
    return ", ".join(
        f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0]) for group in groups
    )


def notes(mode: str, run: Run) -> Iterator[str]:
    """What its shares are of, and what torch refused."""
    gb_per_s, tflops = run.roofline.bytes_per_s / 1e9, run.roofline.flops_per_s / 1e12
    yield (
        f"{run.device}, {mode}: 100% are a copy's {gb_per_s:,.0f} GB/s "
        f"and a large product's {tflops:,.1f} TFLOP/s, as measured in the same process."
    )
    for reason in sorted({product.fp8_refusal for product in run.products} - {""}):
        yield f"FP8 refused, {mode}: {reason}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m gpu.gemm", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="to see that it runs, on any machine")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="in this process: its result")
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        chosen.measure.write_bytes(msgspec.json.encode(measure(is_tiny=chosen.tiny)))
        return 0
    here(is_tiny=chosen.tiny)  # or none of the processes that follow can
    runs = {mode: measure_in_process(mode, is_tiny=chosen.tiny) for mode in MODES}
    for mode, run in runs.items():
        print(*notes(mode, run), sep="\n")
    print("", aligned(list(classes(runs))), "", aligned(list(speeds(runs))), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
