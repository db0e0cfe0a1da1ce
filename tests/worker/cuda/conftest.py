"""All of these are slow; and interpreted kernels multiply as kernels do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from chairlift.worker.cuda import attention, attention_variants
from tests.worker.cuda.attention_cases import NUM_PROGRAMS, SPLIT_TILES
from tests.worker.cuda.device import DEVICE

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Interpreted kernels take their time; whether the wheel has them is asked elsewhere."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


def multiply(builder: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
    product = np.einsum("ij,jk->ik", a.data, b.data, dtype=d.data.dtype)
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


@pytest.fixture(autouse=True, scope="session")
def rows_of_products_are_independent() -> Iterator[None]:
    """Wherever it is in a tile, a row is summed in one order, as by tensor cores. The interpreter
    asks BLAS, which on some processors has another kernel for the last rows."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE.type == "cpu":
            patch.setattr(interpreter.InterpreterBuilder, "create_dot", multiply)
        yield


@pytest.fixture(scope="module")
def small_splits() -> Iterator[None]:
    """Small splits, and two programs that decode, so that few sequences keep them busy; and tiny
    tensors, for which a second thread only waits."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_variants, "SPLIT_TILES", SPLIT_TILES)
        patch.setattr(attention, "_num_programs", lambda *_: NUM_PROGRAMS)
        yield
    torch.set_num_threads(num_threads)
