"""What a worker's process has to have before torch is there, which it does not import."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

# Read once, when a process begins.
TUNING = {
    # Between two parallel regions a step spends some 10 us in Python, so OpenMP's threads are ready
    # at once if they spin that long: on two idle cores a step of the demo model takes 3.3 ms, not
    # 8.8. Those that spin without end wait for cores which frontends hold: 128 ms, with another
    # process busy.
    "GOMP_SPINCOUNT": "3000",
    # Pages of 2 MiB. Weights are read from end to end in every step, and a page's end stops the
    # processor from reading ahead: a step of a 0.4 B model with 16 sequences took 54 ms on small
    # pages and 48.5 on large ones.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
PROGRAMS = {"chairlift", "__main__.py"}  # the installed script; `python -m chairlift`
RESTARTED = "_CHAIRLIFT_RESTARTED"
CGROUP = Path("/sys/fs/cgroup")


def tune(environment: MutableMapping[str, str]) -> bool:
    """Sets what the user has not; whether there was any such."""
    missing = TUNING.keys() - environment.keys()
    environment.update({name: TUNING[name] for name in missing})
    return bool(missing)


def restart_tuned() -> None:
    """Begins this program again, in the same process, unless it has its settings. Takes 0.1 s.

    Only where it is `chairlift`: another may have done something already, or come from stdin.
    """
    if Path(sys.argv[0]).name not in PROGRAMS or not sys.executable:
        return
    if RESTARTED not in os.environ and tune(os.environ):
        os.environ[RESTARTED] = "1"  # once: glibc hides its variable from a program with privileges
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


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
