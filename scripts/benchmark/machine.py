"""The machine: what it is, how busy it is with others, how much memory a process takes."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from .errors import BenchmarkError

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
IDLE_COLUMNS = (3, 4)  # idle and waiting for disks
LISTENING = re.compile(r"^ *\d+: [0-9A-F]*:([0-9A-F]{4}) [0-9A-F:]+ 0A .* (\d+) 1 ", re.MULTILINE)
NUM_COLUMNS = 8  # what follows, guests' time, is contained in the first two


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the figures were taken."""

    cpu: str
    num_cores: int
    memory_gib: float
    system: str
    python: str
    torch: str
    date: str

    @classmethod
    def this(cls) -> Machine:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(
            cpu=_cpu_model(),
            num_cores=len(os.sched_getaffinity(0)),
            memory_gib=round(memory / 2**30, 1),
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            torch=version("torch"),
            date=time.strftime("%Y-%m-%d %H:%M %z"),
        )


def _cpu_model() -> str:
    """The name alone is vague on virtual machines, so family and model follow it."""
    pairs = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    values = {name.strip(): value.strip() for name, _, value in reversed(pairs)}
    name = values.get("model name", platform.machine())
    return f"{name} (family {values.get('cpu family', '?')}, model {values.get('model', '?')})"


@dataclass(frozen=True, slots=True)
class Load:
    """What else the machine did meanwhile."""

    foreign_cpu_percent: float  # of the whole machine
    load_average: float  # over the minute before


class LoadMeter:
    """Running from its creation on; `own` are the processes that the measurement consists of."""

    def __init__(self, own: Sequence[int]) -> None:
        self._own = own
        self._load_average = os.getloadavg()[0]
        self._busy_s, self._total_s = _machine_times()
        self._own_s = self._cpu_s()

    def read(self) -> Load:
        """Raises BenchmarkError when one of the processes is gone."""
        busy_s, total_s = _machine_times()
        foreign_s = busy_s - self._busy_s - (self._cpu_s() - self._own_s)
        share = max(0.0, foreign_s) / max(total_s - self._total_s, 1 / TICKS_PER_S)
        return Load(100 * share, self._load_average)

    def _cpu_s(self) -> float:
        try:
            return sum(map(cpu_s, self._own))
        except FileNotFoundError:
            raise BenchmarkError("a process that is measured has ended meanwhile") from None


def cpu_s(pid: int) -> float:
    """Spent by all threads, and of children only by those that were waited for."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, after_name[11:15])) / TICKS_PER_S


def _machine_times() -> tuple[float, float]:
    """Seconds that all cores together were busy, and seconds in all; time stolen by other guests
    of the host counts as busy."""
    columns = Path("/proc/stat").read_text().splitlines()[0].split()[1 : NUM_COLUMNS + 1]
    ticks = [int(column) for column in columns]
    total = sum(ticks)
    idle = sum(ticks[column] for column in IDLE_COLUMNS)
    return (total - idle) / TICKS_PER_S, total / TICKS_PER_S


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of a process."""

    peak_mib: float
    now_mib: float

    @classmethod
    def of(cls, pid: int) -> Memory:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
        return cls(int(sizes["VmHWM"]) / 1024, int(sizes["VmRSS"]) / 1024)

    @classmethod
    def of_all(cls, pids: Sequence[int]) -> Memory:
        """Their sum, so what they share counts for each; the peaks may be of different moments."""
        each = [cls.of(pid) for pid in pids]
        return cls(sum(one.peak_mib for one in each), sum(one.now_mib for one in each))


def with_descendants(pid: int) -> list[int]:
    """The process, its children, theirs, and so on."""
    found = [pid]
    for parent in found:  # grows meanwhile
        for task in Path(f"/proc/{parent}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def listeners(port: int) -> list[int]:
    """Who accepts connections at this port, as far as this user may see."""
    tables = [Path(f"/proc/net/{name}") for name in ("tcp", "tcp6")]
    text = "".join(table.read_text() for table in tables if table.exists())
    sockets = {f"socket:[{inode}]" for at, inode in LISTENING.findall(text) if int(at, 16) == port}
    pids = (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal())
    return [pid for pid in pids if sockets & set(_open_files(pid))]


def _open_files(pid: int) -> Iterator[str]:
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            yield os.readlink(link)
    except OSError:  # another user's, or gone
        return
