"""docs/protocol.md says what the code does: fields, limits, bytes, codes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.protocol_page import (
    PAGE,
    STRUCTS,
    bytes_on_page,
    golden_bytes,
    rows_of,
    rows_on_page,
)

pytestmark = pytest.mark.checkout
SOURCES = [*Path(__file__).parents[1].glob("worker/*.py"), PAGE.parents[1] / "shared/finishes.py"]
CODE = re.compile(r'(?:code(?:: str)? ?=|failure\()\s*"(\w+)"')


@pytest.mark.parametrize("heading", STRUCTS)
def test_fields(heading: str) -> None:
    """Places, names, types, limits and defaults."""
    assert rows_on_page(PAGE.read_text("utf-8"), heading) == rows_of(STRUCTS[heading])


def test_bytes() -> None:
    """An example of every message, as this version sends it."""
    assert bytes_on_page(PAGE.read_text("utf-8")) == golden_bytes()


def test_codes() -> None:
    """Every code that a worker gives, and no other."""
    given = {code for source in SOURCES for code in CODE.findall(source.read_text("utf-8"))}
    section = PAGE.read_text("utf-8").partition("## Codes")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z_]+)`", section)) - {"error", "abort"} == given
