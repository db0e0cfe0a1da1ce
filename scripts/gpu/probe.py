"""What a GPU, its driver and its libraries do, before anything is built upon it.

PYTHONPATH=scripts .venv/bin/python -m gpu.probe
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
from benchmark.report import aligned

from . import libraries, roofline
from .latencies import measure_latencies
from .loading import load_all
from .roofline import Roofline
from .timing import here
from .variants import ALL


@dataclass(frozen=True, slots=True)
class Finding:
    """A row of the table; what it is held against may be nothing."""

    what: str
    found: str
    ceiling: str = "-"


def machine(device: torch.device) -> Iterator[Finding]:
    yield Finding("Python", platform.python_version())
    yield Finding("torch", str(torch.__version__))
    yield Finding("CUDA of torch", str(torch.version.cuda))
    yield Finding("cuDNN", str(torch.backends.cudnn.version()))
    yield Finding("Triton", triton.__version__)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        yield Finding("device", properties.name)
        yield Finding("capability", f"sm_{properties.major}{properties.minor}")
        yield Finding("multiprocessors", str(properties.multi_processor_count))
        yield Finding("memory, GiB", f"{properties.total_memory / 2**30:.1f}")
        yield Finding("L2, MiB", f"{properties.L2_cache_size / 2**20:.0f}")


def ceilings(device: torch.device, sizes: roofline.Sizes) -> Iterator[Finding]:
    """What the device attains, held against its data sheet."""
    attained, promised = roofline.measured(device, sizes), roofline.datasheet(device)
    yield Finding(
        f"copy of {sizes.copied_bytes >> 20} MiB, GB/s",
        f"{attained.bytes_per_s / 1e9:,.0f}",
        _share(attained, promised, "bytes_per_s"),
    )
    yield Finding(
        f"bfloat16 product of {sizes.matrix_size} cubed, TFLOP/s",
        f"{attained.flops_per_s / 1e12:,.1f}",
        _share(attained, promised, "flops_per_s"),
    )


def _share(attained: Roofline, promised: Roofline | None, name: str) -> str:
    if promised is None:
        return "no data sheet"
    share = getattr(attained, name) / getattr(promised, name)
    unit = 1e9 if name == "bytes_per_s" else 1e12
    return f"data sheet {getattr(promised, name) / unit:,.0f} ({share:.0%})"


def latencies(device: torch.device) -> Iterator[Finding]:
    """No roofline has them: they are what a step costs however little it computes."""
    for name, seconds in measure_latencies(device).items():
        yield Finding(f"{name}, µs", f"{1e6 * seconds:.2f}", "0: overhead")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 if a kernel that was compiled ahead of time doesn't load."""
    parser = argparse.ArgumentParser("python -m gpu.probe", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="to see that it runs, on any machine")
    parser.add_argument(
        "--variants", default=ALL, metavar="MODULE:FUNCTION", help="what yields the kernels"
    )
    chosen = parser.parse_args(arguments)
    device = here(is_tiny=chosen.tiny)
    loaded = load_all(chosen.variants, device, max_variants=1 if chosen.tiny else None)
    rows = [
        *machine(device),
        *ceilings(device, roofline.sizes(is_tiny=chosen.tiny)),
        *latencies(device),
        Finding("kernels loaded that were compiled ahead", loaded.summary, "all"),
    ]
    for text in loaded.problems:
        print(text, file=sys.stderr)
    print(*(f"{what}: {found}" for what, found in libraries.facts(device).items()), "", sep="\n")
    cells = [[row.what, row.found, row.ceiling] for row in rows]
    print(aligned([["", "found", "roofline"], *cells]))
    return int(bool(loaded.problems))


if __name__ == "__main__":
    sys.exit(main())
