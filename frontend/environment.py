"""What a client takes from the environment where its program says nothing.

The variables are those of `chairlift serve`. No `.env` is read: that is for commands.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..shared.addresses import Endpoints, default_address
from ..shared.curve import FrontendCurve


def endpoints_from_environment() -> Endpoints:
    """CHAIRLIFT_ADDRESS, or this user's own; raises AddressError."""
    return Endpoints.parse(os.environ.get("CHAIRLIFT_ADDRESS") or default_address())


def curve_from_environment() -> FrontendCurve | None:
    """CHAIRLIFT_CURVE_KEY and CHAIRLIFT_CURVE_WORKER; raises AddressError."""
    return FrontendCurve.given(_path("CHAIRLIFT_CURVE_KEY"), _path("CHAIRLIFT_CURVE_WORKER"))


def _path(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value) if value else None
