"""Compiles every kernel that the worker launches, for each kind of device and on none of them.

`scripts/gpu_check --write docs/gpu.md` puts the table there.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import msgspec
import torch
from benchmark.report import aligned

from chairlift.worker.cuda.variant import Variant

from . import cubin
from .build import BuildError, build, no_cache
from .release import run_module
from .shapes import MODELS, OTHERS
from .variants import ALL, variants_of

SHAPES = {**MODELS, **OTHERS}
MODEL = "Llama-3.1-8B"
CAPABILITIES = (80, 89, 90, 100)  # A100; L4, L40S and RTX 4090; H100 and H200; B200
# CUDA Programming Guide, "Compute Capabilities": the most that one block may have.
MAX_SHARED_BYTES = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
RESERVED_SHARED_BYTES = {90: 1024, 100: 1024}  # the system's, beyond that; ptxas counts it in
COPIES = frozenset({"LDGSTS", "UTMALDG", "UBLKCP"})  # asynchronous: cp.async, and two of the TMA
BLOCK = re.compile(r"(<!-- compiled: begin -->\n).*(<!-- compiled: end -->)", re.DOTALL)
HEAD = ["kernel", "dtype", "for", "registers", "spilt, bytes", "shared, KiB", "instructions"]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A variant for one kind of device. Registers are a thread's, shared memory is a block's."""

    name: str
    dtype: str
    capability: int
    num_registers: int
    num_spill_bytes: int
    shared_bytes: int
    has_dot: bool
    instructions: frozenset[str]  # of tensor cores, and copies that nobody waits for

    @property
    def uses_tensor_cores(self) -> bool:
        return any(name.endswith("MMA") for name in self.instructions)


def compile_variant(variant: Variant, dtype: str, capability: int) -> Compiled:
    """Raises BuildError."""
    binary = build(variant, capability)
    needed = cubin.resources(binary.cubin)
    static = max(0, needed.static_shared_bytes - RESERVED_SHARED_BYTES.get(capability, 0))
    is_listed = binary.has_dot or binary.has_copies  # of others the list would be empty
    opcodes = cubin.opcodes(binary.cubin) if is_listed else frozenset[str]()
    return Compiled(
        name=variant.name,
        dtype=dtype,
        capability=capability,
        num_registers=needed.num_registers,
        num_spill_bytes=needed.num_local_bytes,
        shared_bytes=static + binary.dynamic_shared_bytes,
        has_dot=binary.has_dot,
        instructions=frozenset(name for name in opcodes if name.endswith("MMA") or name in COPIES),
    )


def problems(compiled: Compiled) -> Iterator[str]:
    """What would make it slow, or impossible to launch. Nobody runs float32 for its speed."""
    if compiled.shared_bytes > (limit := MAX_SHARED_BYTES[compiled.capability]):
        yield f"needs {compiled.shared_bytes} bytes of shared memory, and there are {limit}"
    if compiled.dtype == "float32":
        return
    if compiled.num_spill_bytes:
        yield f"spills {compiled.num_spill_bytes} bytes a thread"
    if compiled.has_dot and not compiled.uses_tensor_cores:
        yield "multiplies matrices without tensor cores"


def table(rows: Iterable[Compiled]) -> str:
    return aligned([HEAD, *map(_row, rows)])


def _row(row: Compiled) -> list[str]:
    return [
        row.name,
        row.dtype,
        f"sm_{row.capability}",
        str(row.num_registers),
        str(row.num_spill_bytes),
        f"{row.shared_bytes / 1024:.1f}",
        " ".join(sorted(row.instructions)),
    ]


def block(rows: Sequence[Compiled], models: Sequence[str] = (MODEL,)) -> str:
    """What stands in docs/gpu.md between the markers."""
    import triton

    return f"\nTriton {triton.__version__}, {', '.join(models)}:\n\n{table(rows)}\n\n"


def with_block(text: str, rows: Sequence[Compiled]) -> str:
    """The page with this between the markers. Raises ValueError if it has none."""
    if not BLOCK.search(text):
        raise ValueError("nothing says where the table goes")
    return BLOCK.sub(lambda found: found[1] + block(rows) + found[2], text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 if all compile and none has a problem."""
    release, others = _release_parser().parse_known_args(arguments)
    if release.triton and not {"-h", "--help"} & set(others):
        return run_module("gpu.compile", others, release.triton)
    chosen = _parser().parse_args(others)
    rows: list[Compiled] = []
    wrong: list[str] = []
    with no_cache():
        for row in _compiled(list(_variants(chosen))):
            if isinstance(row, BuildError):
                wrong.append(str(row))
                continue
            rows.append(row)
            wrong += [f"{row.name} for sm_{row.capability} {text}" for text in problems(row)]
    print(block(rows, chosen.models))
    for text in wrong:
        print(text, file=sys.stderr)
    if chosen.json:
        chosen.json.write_bytes(msgspec.json.encode(rows))
    if chosen.write:
        page = chosen.write.read_text("utf-8")
        chosen.write.write_text(with_block(page, rows), "utf-8")
    return int(bool(wrong))


def _compiled(work: Sequence[tuple[Variant, str, int]]) -> list[Compiled | BuildError]:
    """In order, by a process for each core."""
    _work[:] = work
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        return list(pool.map(_compile, range(len(work))))


_work: list[tuple[Variant, str, int]] = []  # which forks have without a copy: kernels have none


def _compile(number: int) -> Compiled | BuildError:
    try:
        return compile_variant(*_work[number])
    except BuildError as error:
        return error


def _variants(chosen: argparse.Namespace) -> Iterator[tuple[Variant, str, int]]:
    """With type and capability: a kernel's next to each other, and none twice."""
    seen = set[object]()
    for dtype, model in product(chosen.dtypes, chosen.models):
        columns = [
            variants_of(chosen.variants, SHAPES[model], getattr(torch, dtype), capability)
            for capability in chosen.capabilities
        ]
        for kernel in zip(*columns, strict=True):
            for variant, capability in zip(kernel, chosen.capabilities, strict=True):
                if (what := (_compiled_of(variant), capability)) not in seen:
                    seen.add(what)
                    suffix = f" of {model}" if len(chosen.models) > 1 else ""
                    yield replace(variant, name=variant.name + suffix), dtype, capability


def _compiled_of(variant: Variant) -> object:
    """All that the binary depends on."""
    signature, constants = tuple(variant.signature.items()), tuple(variant.constants.items())
    return variant.kernel, signature, constants, tuple(variant.options.items())


def _release_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--triton", metavar="RELEASE", help="with that, which pip installs for now")
    return parser


def _parser() -> argparse.ArgumentParser:
    parents = [_release_parser()]
    parser = argparse.ArgumentParser("scripts/gpu_check", description=__doc__, parents=parents)
    parser.add_argument(
        "--models", nargs="+", choices=SHAPES, default=[MODEL], metavar="MODEL", help="whose shapes"
    )
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], metavar="DTYPE")
    parser.add_argument(
        "--capabilities", nargs="+", type=int, choices=CAPABILITIES, default=CAPABILITIES
    )
    parser.add_argument(
        "--variants", default=ALL, metavar="MODULE:FUNCTION", help="what yields the kernels"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="the page that has the table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the same for programs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
