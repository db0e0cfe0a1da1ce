"""How OpenMP's threads wait for one another. Imported before torch, which it does not import."""

from __future__ import annotations

import os

# Between two parallel regions a step spends some 10 us in Python, so threads that spin that long
# are ready at once: on two idle cores a step of the demo model takes 3.3 ms instead of 8.8. Threads
# that spin without end wait for cores which frontends hold: 128 ms, with another process busy.
SPIN_COUNT = "3000"


def limit_spinning() -> None:
    """Unless the user has set it; has no effect once torch is imported."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
