"""A kernel with all that is fixed when it is compiled: what is launched is what is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Variant:
    """Launched by `variant[grid](*arguments)`, and compiled ahead of time without a device."""

    name: str
    kernel: Any  # a function under triton.jit
    signature: Mapping[str, str]  # of its arguments in order, as Triton writes types: *bf16, i32
    constants: Mapping[str, int | float | bool]  # its constexprs
    num_warps: int
    num_stages: int = 1
    max_registers: int | None = None  # of a thread, so that more programs fit a multiprocessor

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        """What launches it with the arguments of `signature`."""
        launch = self.kernel[grid]
        return lambda *arguments: launch(*arguments, **self.constants, **self.options)

    @property
    def options(self) -> dict[str, int | bool]:
        """The compiler's. Products are fused with sums whatever its version takes for granted."""
        options: dict[str, int | bool] = {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
        }
        if self.max_registers is not None:
            options["maxnreg"] = self.max_registers
        return options


def next_power_of_2(number: int) -> int:
    """The first that is not less: a block of a kernel has no other sizes."""
    return 1 << (number - 1).bit_length()
