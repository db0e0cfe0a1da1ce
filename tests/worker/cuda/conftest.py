"""Where there is no GPU the kernels run in Triton's interpreter, which has to be said before they
are imported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Interpreted kernels take their time; whether the wheel has them is asked elsewhere."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
