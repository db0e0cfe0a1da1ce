"""From a kernel's variant to the binary of one kind of device, on a machine that has none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from chairlift.worker.cuda.variant import Variant

WARP_SIZE = 32


@dataclass(frozen=True, slots=True)
class Binary:
    """What a device loads."""

    function: str
    cubin: bytes
    dynamic_shared_bytes: int
    has_dot: bool
    has_copies: bool  # asynchronous ones


class BuildError(Exception):
    """A variant that doesn't compile: which, for what, and why."""


@contextmanager
def no_cache() -> Iterator[None]:
    """Nothing is read that was compiled before, nor kept. Raises BuildError where kernels run in
    Triton's interpreter, which has no compiler."""
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise BuildError("nothing compiles in Triton's interpreter: unset TRITON_INTERPRET")
    from triton import knobs

    with tempfile.TemporaryDirectory(prefix="triton-") as folder, knobs.cache.scope():
        knobs.cache.dir = folder
        yield


def build(variant: Variant, capability: int) -> Binary:
    """For devices of this compute capability, as 90 for 9.0. Raises BuildError."""
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", capability, WARP_SIZE)
    try:
        kernel = triton.compile(source_of(variant), target=target, options=dict(variant.options))
    except Exception as error:  # whatever the compiler's passes raise
        raise BuildError(f"{variant.name} for sm_{capability}: {_innermost(error)}") from error
    return Binary(
        function=kernel.metadata.name,
        cubin=kernel.asm["cubin"],
        dynamic_shared_bytes=kernel.metadata.shared,
        has_dot="tt.dot" in kernel.asm["ttir"],
        has_copies="cp.async" in kernel.asm["ptx"],
    )


def _innermost(error: BaseException) -> BaseException:
    """In a function that a kernel calls, Triton's error is the cause of one at the call, which
    says only where that is."""
    while isinstance(error.__cause__, type(error)):
        error = error.__cause__
    return error


def source_of(variant: Variant) -> Any:
    """What Triton compiles, with what it would have learnt from a launch's arguments.

    Pointers are multiples of 16, which those of torch's allocations are. An integer is one if its
    type says so: "i32:16", as Triton's own ahead-of-time compiler writes it. Of all others a
    launch must learn nothing, or it would compile the kernel again for a 1 and for a multiple of
    16, while requests wait. Raises ValueError if that isn't so, or if the signature isn't the
    kernel's.
    """
    from triton.compiler import ASTSource

    types = dict(variant.signature)
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for parameter in variant.kernel.params:
        given = "constexpr" if parameter.name in variant.constants else types.get(parameter.name)
        if given is None:
            raise ValueError(f"nothing says what {parameter.name} is")
        types.pop(parameter.name, None)
        signature[parameter.name], _, hint = given.partition(":")
        if hint == "16" or (given.startswith("*") and _is_specialised(parameter)):
            attributes[(parameter.num,)] = [["tt.divisibility", 16]]
        elif given[0] in "iu" and not parameter.do_not_specialize:
            raise ValueError(f"{parameter.name} isn't in its do_not_specialize")
    if types:
        raise ValueError(f"the kernel has no {', '.join(types)}")
    return ASTSource(variant.kernel, signature, dict(variant.constants), attributes)


def _is_specialised(parameter: Any) -> bool:
    return not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
