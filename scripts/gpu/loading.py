"""Whether a device loads what was compiled for it without one, and finds it as it was read."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .build import Binary, build, no_cache
from .compile import CAPABILITIES
from .cubin import resources
from .shapes import MODELS
from .variants import variants_of

MODEL = "Qwen3-0.6B"
NUM_REGISTERS, LOCAL_BYTES = 4, 3  # CUfunction_attribute


@dataclass(frozen=True, slots=True)
class Loaded:
    """`num_loaded` is None where there is no device."""

    num_compiled: int
    num_loaded: int | None
    problems: list[str]

    @property
    def summary(self) -> str:
        found = "no device" if self.num_loaded is None else str(self.num_loaded)
        return f"{found} of {self.num_compiled}"


def load_all(path: str, device: torch.device, max_variants: int | None) -> Loaded:
    """Those that `path` names, of a device's own capability; without a device only compiled."""
    capability = CAPABILITIES[0]
    if device.type == "cuda":
        torch.zeros(1, device=device)  # makes the context that modules are loaded into
        major, minor = torch.cuda.get_device_capability(device)
        capability = 10 * major + minor
    with no_cache():
        variants = variants_of(path, MODELS[MODEL], torch.bfloat16, capability)[:max_variants]
        binaries = [build(variant, capability) for variant in variants]
    if device.type != "cuda":
        return Loaded(len(binaries), None, [])
    driver = ctypes.CDLL("libcuda.so.1")
    problems = [text for binary in binaries for text in loading_problems(driver, binary)]
    return Loaded(len(binaries), len(binaries) - len(problems), problems)


def loading_problems(driver: Any, binary: Binary) -> Iterator[str]:
    """At most one: the call of the CUDA driver that failed, or figures that differ."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    calls = {
        "cuModuleLoadData": (ctypes.byref(module), binary.cubin),
        "cuModuleGetFunction": (ctypes.byref(function), module, binary.function.encode()),
    }
    for name, arguments in calls.items():
        if error := getattr(driver, name)(*arguments):
            yield f"{binary.function}: {name} fails with {error}"
            return
    read = resources(binary.cubin)
    found = (_attribute(driver, NUM_REGISTERS, function), _attribute(driver, LOCAL_BYTES, function))
    if found != (read.num_registers, read.num_local_bytes):
        yield f"{binary.function}: the driver finds {found} registers and local bytes, not {read}"


def _attribute(driver: Any, attribute: int, function: ctypes.c_void_p) -> int:
    value = ctypes.c_int()
    driver.cuFuncGetAttribute(ctypes.byref(value), attribute, function)
    return value.value
