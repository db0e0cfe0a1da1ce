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
class Resources:
    """A thread's, but for shared memory, which is a block's."""

    num_registers: int
    num_local_bytes: int  # registers that were spilt: no kernel of ours has arrays of its own
    static_shared_bytes: int


def resources(cubin: bytes) -> Resources:
    """Raises CalledProcessError if it is none."""
    return parse_resources(_cuobjdump(cubin, "-res-usage"))


def opcodes(cubin: bytes) -> frozenset[str]:
    """Of all its instructions, without their modifiers; takes a quarter of a second. Raises
    CalledProcessError if it is none."""
    return parse_opcodes(_cuobjdump(cubin, "-sass"))


def parse_resources(listing: str) -> Resources:
    """The greatest figures, if there is more than one function."""
    found = [[int(number) for number in row] for row in RESOURCES.findall(listing)]
    registers, stack, shared, local = (max(column) for column in zip(*found, strict=True))
    return Resources(registers, stack + local, shared)


def parse_opcodes(listing: str) -> frozenset[str]:
    return frozenset(INSTRUCTION.findall(listing))


def _cuobjdump(cubin: bytes, option: str) -> str:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
