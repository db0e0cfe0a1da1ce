"""How many threads OpenMP may have, and how they wait. Knows no torch: it comes before it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

# Between two parallel regions a step spends some 10 us in Python, so threads that spin that long
# are ready at once: on two idle cores a step of the demo model takes 3.3 ms instead of 8.8. Threads
# that spin without end wait for cores which frontends hold: 128 ms, with another process busy.
SPIN_COUNT = "3000"

CGROUP = Path("/sys/fs/cgroup")


def limit_spinning() -> None:
    """Unless the user has set it; has no effect once torch is imported."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def quota_cores(cgroup: Path = CGROUP) -> int | None:
    """How many cores' worth of time a container's limit leaves the process; None without a limit.

    torch counts the machine's cores, or those the process may run on. More threads than the limit
    has cores stand still together for most of each period, while they wait for one another.
    """
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # no such group, or "max"
            quota, period = map(int, " ".join((cgroup / f).read_text() for f in files).split())
            if quota > 0:
                return max(1, quota // period)
    return None
