"""A mark for what multiplies in int8."""

from __future__ import annotations

import pytest

from chairlift.worker.models.int8_linear import has_vnni

needs_vnni = pytest.mark.skipif(not has_vnni(), reason="this CPU has no VNNI")
