"""tcp addresses and CURVE keys for tests that leave the ipc directory."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from chairlift.shared.curve import FrontendCurve, WorkerCurve
from chairlift.shared.keygen import make_keys


def free_port(num_ports: int = 1) -> int:
    """The first of so many that are free, and that no connection is given as its own end."""
    while True:
        port = random.randrange(20_000, 30_000)
        try:
            with ExitStack() as probes:
                for number in range(port, port + num_ports):
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", number))
        except OSError:
            continue
        return port


def free_address() -> str:
    """`tcp://127.0.0.1:port` where this port and the next are free."""
    return f"tcp://127.0.0.1:{free_port(2)}"


@dataclass(frozen=True)
class Keys:
    """Of a worker, of a frontend that it knows, and of a stranger, below one folder."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Keys:
        make_keys("worker", folder / "worker")
        make_keys("listed", folder / "frontends")
        make_keys("stranger", folder / "elsewhere")
        return cls(folder)

    @property
    def worker(self) -> Path:
        return self.folder / "worker" / "worker.key_secret"

    @property
    def worker_public(self) -> Path:
        return self.folder / "worker" / "worker.key"

    @property
    def frontends(self) -> Path:
        return self.folder / "frontends"

    @property
    def listed(self) -> Path:
        return self.frontends / "listed.key_secret"

    @property
    def stranger(self) -> Path:
        return self.folder / "elsewhere" / "stranger.key_secret"

    def admit_the_stranger(self) -> None:
        public = self.stranger.with_suffix(".key")
        public.rename(self.frontends / public.name)

    def of_worker(self) -> WorkerCurve:
        return WorkerCurve.load(self.worker, self.frontends)

    def of(self, secret: Path) -> FrontendCurve:
        return FrontendCurve.load(secret, self.worker_public)
