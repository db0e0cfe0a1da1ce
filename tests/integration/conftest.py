"""A worker process with a tiny random model, shared by the tests of a module."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chairlift import Client
from tests.integration.processes import READY_TIMEOUT_S, chairlift, serving
from tests.integration.tool_models import Served, ToolModel
from tests.tiny_model import make_tiny_model

LONG_MODEL_LEN = 8192


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama of 512 tokens and its tokenizer."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the tiny one; an answer to the end takes seconds, in which one can look on."""
    return make_tiny_model(tmp_path_factory.mktemp("long"), max_model_len=LONG_MODEL_LEN)


@contextmanager
def short_address() -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="chairlift-", dir="/tmp")
    yield f"ipc://{directory}"
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def worker_address() -> Iterator[str]:
    with short_address() as address:
        yield address


@pytest.fixture(scope="module")
def worker(tiny_model: Path, worker_address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A real worker at `worker_address`; four sequences at a time."""
    with chairlift(
        "worker", model=tiny_model, address=worker_address, max_num_seqs=4, dtype="float32"
    ) as process:
        yield process


@pytest.fixture(scope="module")
def worker_of_long_answers(
    tmp_path_factory: pytest.TempPathFactory, worker_address: str
) -> Iterator[subprocess.Popen[bytes]]:
    """As `worker`, and ready; with room for answers that can be left in their midst."""
    model = make_tiny_model(tmp_path_factory.mktemp("tiny"), max_model_len=8192)
    with chairlift(
        "worker", model=model, address=worker_address, max_num_seqs=4, dtype="float32"
    ) as process:
        with Client(worker_address) as client:
            client.connect(READY_TIMEOUT_S)
        yield process


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The tool model that is the parameter, with a worker and a frontend; one after the other."""
    kind: ToolModel = request.param
    model = kind.make(tmp_path_factory.mktemp(kind.name))
    with (
        short_address() as address,
        chairlift("worker", model=model, address=address, dtype="float32") as worker,
        serving(address) as url,
    ):
        yield Served(kind, model, url, address, worker.pid)
