"""What every test may ask for: an address of its own, and sockets that are gone afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import settings

from tests.gpu import pytest_collection_modifyitems as pytest_collection_modifyitems
from tests.gpu import pytest_configure as pytest_configure
from tests.gpu import pytest_terminal_summary as pytest_terminal_summary

TERM_TIMEOUT_S = 5.0

# Spinning OpenMP threads would wait for cores that other test processes hold (measured: 89 s
# instead of 5 for one file). Read when torch is imported, so before any test module is.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# Without a GPU its kernels run in Triton's interpreter. Functions of Triton's own are made when
# somebody imports it, as transformers does: so this is before any test module is.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# With both set a worker doesn't begin its program anew (test_supervisor.py tries it).
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")

# Ours, not hypothesis' own `ci`, which would try the same examples in every run.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=False)
settings.register_profile("fuzz", deadline=None, print_blob=True, max_examples=20_000)
settings.register_profile("quick", deadline=None, print_blob=True, max_examples=10)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))


@pytest.fixture(scope="session")
def bench_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the synthetic model of scripts/bench goes, made once for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def address() -> Iterator[str]:
    """`ipc://` and a private directory, short enough for any socket's name."""
    directory = tempfile.mkdtemp(prefix="chairlift-", dir="/tmp")
    yield f"ipc://{directory}"
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def zmq_context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """Fails the test that leaves one of its sockets open, where term() would wait forever."""
    context = zmq.Context()
    yield context
    if not _ends_within(context, TERM_TIMEOUT_S):
        pytest.fail(f"a socket is still open: the context did not end in {TERM_TIMEOUT_S} s")


def _ends_within(context: zmq.Context[zmq.Socket[bytes]], timeout_s: float) -> bool:
    thread = threading.Thread(target=context.term, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return not thread.is_alive()
