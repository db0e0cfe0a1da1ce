"""honcho with the Procfile's commands, and every process that comes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

from tests.gpu import DEVICE
from tests.integration.fleet import ROOT


class Honcho:
    """Running within its block; nothing of it is left behind."""

    def __init__(self, folder: Path, model: Path, port: int) -> None:
        self.port = port
        self._known: set[int] = set()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CHAIRLIFT_")}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
            "CHAIRLIFT_MODEL": str(model),
            "CHAIRLIFT_DEVICE": DEVICE,
            "CHAIRLIFT_ADDRESS": f"ipc://{folder / 'sockets'}",
            "CHAIRLIFT_PORT": str(port),
        }
        self._log = folder / "honcho.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "honcho", "-f", ROOT / "Procfile", "-d", folder, "start"],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def descendants(self) -> set[int]:
        """Of all generations, remembered from now on."""
        found, parents = set[int](), {self.process.pid}
        while parents:
            parents = {pid for parent in parents for pid in _children(parent)}
            found |= parents
        self._known |= found
        return found

    @property
    def alive(self) -> set[int]:
        """Those that were ever seen as descendants and that run."""
        return {pid for pid in self._known if _is_alive(pid)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        left = self.descendants | self.alive
        self.process.kill()
        self.process.wait()
        for pid in left:
            if _is_alive(pid):
                os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> set[int]:
    try:
        return {
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        }
    except OSError:
        return set()


def _is_alive(pid: int) -> bool:
    """A zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
