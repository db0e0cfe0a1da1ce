"""One weight and rows of activations: how long their product takes, and a row's bits in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F

from .shapes import MatrixShape
from .timing import seconds_per_call

UNCACHED_BYTES = 200_000_000  # four times an H200's L2: so many copies of a weight take turns
DTYPE = torch.bfloat16
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, slots=True)
class Fp8Seconds:
    seconds: dict[int, float]  # by number of rows, as far as it went
    refusal: str  # what torch said then, or nothing


@dataclass(frozen=True, slots=True)
class Product:
    """All numbers of rows by one weight."""

    name: str
    shape: MatrixShape
    seconds: dict[int, float]  # by number of rows
    fp8_seconds: dict[int, float]
    fp8_refusal: str
    classes: list[list[int]]  # numbers of rows between which a row's bits are the same
    is_row_alone: bool  # whatever the other rows hold, a row's bits are the same

    def num_flops(self, num_rows: int) -> int:
        return 2 * num_rows * self.shape.num_elements

    def num_bytes(self, num_rows: int) -> int:
        """Weight and rows read, results written."""
        return DTYPE.itemsize * (self.shape.num_elements + self._rows_elements(num_rows))

    def fp8_bytes(self, num_rows: int) -> int:
        """Results are bfloat16 as well."""
        num_inputs = self.shape.num_elements + num_rows * self.shape.in_features
        return FP8.itemsize * num_inputs + DTYPE.itemsize * num_rows * self.shape.out_features

    def _rows_elements(self, num_rows: int) -> int:
        return num_rows * (self.shape.in_features + self.shape.out_features)


def measure_products(
    shape: MatrixShape, name: str, all_num_rows: Sequence[int], device: torch.device
) -> Product:
    """Random weights and activations of `device`."""
    num_copies = max(2, -(-UNCACHED_BYTES // (DTYPE.itemsize * shape.num_elements)))
    if device.type == "cpu":
        num_copies = 2  # only to see that it runs
    weights = [_random(shape.out_features, shape.in_features, device) for _ in range(num_copies)]
    inputs = _random(max(all_num_rows), shape.in_features, device)
    fp8 = _fp8_seconds(weights, inputs, all_num_rows)
    return Product(
        name=name,
        shape=shape,
        seconds={n: _seconds(weights, inputs[:n]) for n in all_num_rows},
        fp8_seconds=fp8.seconds,
        fp8_refusal=fp8.refusal,
        classes=numeric_classes({n: F.linear(inputs[:n], weights[0]) for n in all_num_rows}),
        is_row_alone=all(_is_row_alone(inputs[:n], weights[0]) for n in all_num_rows),
    )


def numeric_classes(outputs: dict[int, torch.Tensor]) -> list[list[int]]:
    """Groups of numbers of rows whose common rows agree in every bit.

    `outputs[n]` is [n, out_features], of the first n of the same rows.
    """
    groups: list[list[int]] = []
    for num_rows, output in sorted(outputs.items()):
        for group in groups:
            if torch.equal(outputs[group[-1]], output[: group[-1]]):
                group.append(num_rows)
                break
        else:
            groups.append([num_rows])
    return groups


def _random(num_rows: int, num_columns: int, device: torch.device) -> torch.Tensor:
    return torch.randn(num_rows, num_columns, device=device, dtype=torch.float32).to(DTYPE)


def _seconds(weights: Sequence[torch.Tensor], rows: torch.Tensor) -> float:
    return seconds_per_call([partial(F.linear, rows, weight) for weight in weights], rows.device)


def _is_row_alone(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    others = torch.randn_like(rows)
    others[-1] = rows[-1]
    return torch.equal(F.linear(rows, weight)[-1], F.linear(others, weight)[-1])


def _fp8_seconds(
    weights: Sequence[torch.Tensor], inputs: torch.Tensor, all_num_rows: Sequence[int]
) -> Fp8Seconds:
    """With a scale for each row of both."""
    scaled_weights = [_fp8(weight) for weight in weights]
    found: dict[int, float] = {}
    try:
        for num_rows in all_num_rows:
            rows = _fp8(inputs[:num_rows])
            calls = [partial(_fp8_product, rows, weight) for weight in scaled_weights]
            found[num_rows] = seconds_per_call(calls, inputs.device)
    except (RuntimeError, ValueError) as error:
        return Fp8Seconds(found, str(error).splitlines()[0])
    return Fp8Seconds(found, "")


@dataclass(frozen=True, slots=True)
class Fp8Matrix:
    values: torch.Tensor  # [num_rows, num_columns], float8
    scales: torch.Tensor  # [num_rows, 1], float32


def _fp8(matrix: torch.Tensor) -> Fp8Matrix:
    greatest = torch.finfo(FP8).max
    scales = matrix.abs().amax(dim=1, keepdim=True).float() / greatest
    return Fp8Matrix((matrix / scales).clamp(-greatest, greatest).to(FP8), scales)


def _fp8_product(rows: Fp8Matrix, weight: Fp8Matrix) -> torch.Tensor:
    return torch.ops.aten._scaled_mm(
        rows.values,
        weight.values.t(),
        scale_a=rows.scales,
        scale_b=weight.scales.t(),
        out_dtype=DTYPE,
    )
