"""A worker process with a tiny random model, shared by the tests of a module."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.processes import chairlift
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama of 512 tokens and its tokenizer."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def worker_address() -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="chairlift-", dir="/tmp")
    yield f"ipc://{directory}"
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def worker(tiny_model: Path, worker_address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A real worker at `worker_address`; four sequences at a time."""
    with chairlift(
        "worker", model=tiny_model, address=worker_address, max_num_seqs=4, dtype="float32"
    ) as process:
        yield process
