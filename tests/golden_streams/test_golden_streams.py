"""Streams are what clients have always been sent."""

from __future__ import annotations

import pytest
import structlog

from tests.golden_streams.cases import ENDPOINTS, path_of, recorded


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_streams_are_the_recorded_ones(endpoint: str) -> None:
    """Byte for byte, but for ids, times and fingerprints; `python -m tests.golden_streams` writes
    them anew after a change that was meant."""
    with structlog.testing.capture_logs():
        assert recorded(endpoint) == path_of(endpoint).read_text("utf-8")
