"""Who can be measured on the same weights and the same workload."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from .errors import BenchmarkError
from .figures import Figures
from .job import Job
from .machine import listeners, with_descendants
from .over_http import Served, measure_served
from .processes import fetch, foreign_environment, measure_in_process, servers

LOOPBACK_URL = re.compile(r"http://(127\.0\.0\.1|localhost):(?P<port>[0-9]{1,5})/?")


class Contender(Protocol):
    """Started for each measurement and stopped after it, so that nobody is there meanwhile."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Raises BenchmarkError when it is not installed."""
        ...

    def measure(self, job: Job) -> Figures:
        """Raises BenchmarkError when it can't start, or doesn't do what was asked."""
        ...


class Chairlift:
    """Ours: a worker and a frontend, over HTTP."""

    name = "chairlift"
    version = "of this checkout"

    def measure(self, job: Job) -> Figures:
        with servers(job) as running:
            return measure_served(Served(running.port, running.pids), job)


class Transformers:
    """Continuous batching of Hugging Face transformers, called in process.

    That is in its favour: no HTTP, no text, no streams. Its own server takes no token ids, and
    can't be told to go on after an end of text.
    """

    name = "transformers"

    @property
    def version(self) -> str:
        try:
            return version("transformers")
        except PackageNotFoundError:
            raise BenchmarkError("not installed: scripts/bootstrap --dev") from None

    def measure(self, job: Job) -> Figures:
        run = measure_in_process("transformers_batching", job, foreign_environment())
        return run.figures


@dataclass(frozen=True, slots=True)
class RunningServer:
    """One that somebody has started on this machine, with the same weights; it stays."""

    name: str
    port: int

    @classmethod
    def at(cls, name: str, url: str) -> RunningServer:
        """Raises BenchmarkError for a URL that isn't http://127.0.0.1:PORT: the load is meant for
        one's own machine only, whose use by others is measured too."""
        found = LOOPBACK_URL.fullmatch(url)
        if not found or not 0 < int(found["port"]) < 65536:
            raise BenchmarkError(f"--url {url}: must be http://127.0.0.1:PORT, on this machine")
        return cls(name, int(found["port"]))

    @property
    def version(self) -> str:
        return f"at port {self.port}"

    def measure(self, job: Job) -> Figures:
        pids = {pid for found in listeners(self.port) for pid in with_descendants(found)}
        return measure_served(Served(self.port, sorted(pids), {"model": self._model()}), job)

    def _model(self) -> str:
        """Some servers want the name in each request."""
        try:
            return str(json.loads(fetch(self.port, "/v1/models"))["data"][0]["id"])
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
            raise BenchmarkError(
                f"no server tells its model at http://127.0.0.1:{self.port}/v1/models: {error}"
            ) from None
