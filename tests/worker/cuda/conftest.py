"""All of these are slow."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Interpreted kernels take their time; whether the wheel has them is asked elsewhere."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
