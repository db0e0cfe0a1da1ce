"""What a compiled kernel needs and is made of, read by a tool that Triton brings along."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass

RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
# `/*0060*/   @!P1 BRA 0x200 ;`: its address, what it depends on, what it does.
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]+)")


@dataclass(frozen=True, slots=True)
class Cubin:
    """The figures are a thread's, but for shared memory, which is a block's."""

    num_registers: int
    num_local_bytes: int  # registers that were spilt: no kernel of ours has arrays of its own
    static_shared_bytes: int
    opcodes: frozenset[str]


def read_cubin(cubin: bytes) -> Cubin:
    """Raises CalledProcessError if it is none."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return parse(done.stdout)


def parse(listing: str) -> Cubin:
    """Of `cuobjdump -res-usage -sass`; the greatest figures, if there is more than one function."""
    found = [[int(number) for number in row] for row in RESOURCES.findall(listing)]
    registers, stack, shared, local = (max(column) for column in zip(*found, strict=True))
    opcodes = frozenset(INSTRUCTION.findall(listing))
    return Cubin(registers, stack + local, shared, opcodes)
