"""The scripts that measure a GPU run to their end on a CPU, where their figures mean nothing."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import pytest
import torch

from tests.worker.cuda.gpu_scripts import HARNESS, ROOT, gpu_script, last_table

pytestmark = [pytest.mark.checkout, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def test_probe_runs() -> None:
    """Its table has versions, both ceilings, latencies and a kernel that was compiled."""
    done = gpu_script("probe", "--tiny", "--variants", f"{HARNESS}:good_variants")
    assert (done.returncode, done.stderr.strip()) == (0, "")
    found = {what: value for what, value, _ in last_table(done.stdout)}
    assert found["torch"] == torch.__version__
    assert float(found["copy of 1 MiB, GB/s"]) > 0
    assert float(found["a kernel of a chain in a graph, µs"]) > 0
    assert found["kernels loaded that were compiled ahead"] == "no device of 1"


def test_gemm_runs() -> None:
    """A row for each matrix and number of rows, with a time and a share for each mode."""
    done = gpu_script("gemm", "--tiny")
    assert (done.returncode, done.stderr.strip()) == (0, "")
    head, *rows = last_table(done.stdout)
    assert head[:4] == ["matrix", "rows", "bound by", "floor, µs"]
    assert len(rows) == 5 * 3
    for row in rows:
        assert float(row[3]) > 0
        assert float(row[4].split()[0]) > 0 and row[4].endswith("%)")
    assert "100% are a copy's" in done.stdout


def test_attention_runs() -> None:
    """A row for each batch, with its time and the share of what bounds it; two columns for each
    peer, whose cell says why there is no time in it."""
    done = gpu_script("attention", "--tiny", "--peers", "flashinfer", "cudnn")
    assert (done.returncode, done.stderr.strip()) == (0, "")
    head, *rows = last_table(done.stdout)
    assert [row[0] for row in rows] == [
        "1 x decode at 100",
        "3 x decode at 70",
        "2 x chunk of 20 at 70",
    ]
    assert all(float(row[3]) > 0 and row[5].endswith("%") for row in rows)
    assert head[6:] == ["flashinfer, µs", "ours / flashinfer", "cudnn, µs", "ours / cudnn"]
    assert all(row[6:] == ["no device", "", "no device", ""] for row in rows)


def test_attention_alone_of_decodes_or_chunks() -> None:
    """So many of the cases that each is in one of them."""
    attention = importlib.import_module("gpu.attention")
    chosen = [attention._cases(only, attention.CASES) for only in (None, "decode", "chunks")]
    assert [len(cases) for cases in chosen] == [15, 12, 3]
    assert chosen[0] == chosen[1] + chosen[2]


@pytest.mark.parametrize("script", ["gemm", "invariance", "probe", "step"])
def test_without_a_device_only_tiny_runs(script: str) -> None:
    """Said at once, with what to do, and by one process."""
    done = gpu_script(script)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("there is no CUDA device") and "--tiny" in line


def test_numbers_of_rows_are_grouped_by_the_bits_they_give() -> None:
    """One whose common rows differ in a bit opens a group of its own."""
    products = importlib.import_module("gpu.products")
    rows = torch.randn(8, 4)
    other = rows.clone()
    other[0, 0] += 1
    outputs = {1: rows[:1], 2: rows[:2], 4: other[:4], 8: rows}
    assert products.numeric_classes(outputs) == [[1, 2, 8], [4]]


def test_models_have_the_sizes_that_are_known_of_them() -> None:
    """What a step streams, and what a token keeps."""
    models = importlib.import_module("gpu.shapes").MODELS
    sizes = {
        name: (
            round(model.streamed_bytes(torch.bfloat16) / 1e9, 2),
            model.kv_bytes_per_token(torch.bfloat16) / 1024,
        )
        for name, model in models.items()
    }
    assert sizes == {
        "Qwen3-0.6B": (1.19, 112),
        "Llama-3.1-8B": (15.01, 128),
        "Qwen3-8B": (15.14, 144),
        "Qwen3-14B": (27.98, 160),
    }


def test_a_roofline_is_the_slower_of_its_two_parts() -> None:
    """Bytes and products go on at the same time."""
    line = importlib.import_module("gpu.roofline").Roofline(100.0, 1000.0)
    assert (line.seconds(200, 1000), line.bound(200, 1000)) == (2.0, "memory")
    assert (line.seconds(100, 3000), line.bound(100, 3000)) == (3.0, "products")


class Driver:
    """A CUDA driver that fails in one call, or finds other numbers of registers."""

    def __init__(self, failing: str = "", num_registers: int = 40) -> None:
        self._failing = failing
        self._attributes = {4: num_registers, 3: 0}

    def cuModuleLoadData(self, module: Any, image: bytes) -> int:
        return 209 if self._failing == "cuModuleLoadData" else 0

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
        assert name == b"add_kernel"
        return 500 if self._failing == "cuModuleGetFunction" else 0

    def cuFuncGetAttribute(self, value: Any, attribute: int, function: Any) -> int:
        ctypes.cast(value, ctypes.POINTER(ctypes.c_int))[0] = self._attributes[attribute]
        return 0


@pytest.mark.parametrize(
    ("driver", "problem"),
    [
        (Driver(), None),
        (Driver("cuModuleLoadData"), "add_kernel: cuModuleLoadData fails with 209"),
        (Driver("cuModuleGetFunction"), "add_kernel: cuModuleGetFunction fails with 500"),
        (Driver(num_registers=41), "add_kernel: the driver finds (41, 0) registers"),
    ],
)
def test_loading_a_kernel_says_what_is_wrong(
    driver: Driver, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that failed, or that a kernel isn't what was read from its binary."""
    loading, build, cubin = (
        importlib.import_module(f"gpu.{name}") for name in ("loading", "build", "cubin")
    )
    read = cubin.Resources(40, 0, 0)
    monkeypatch.setattr(loading, "resources", lambda _: read)
    problems = list(
        loading.loading_problems(driver, build.Binary("add_kernel", b"", 0, False, False))
    )
    assert [text[: len(problem or "")] for text in problems] == ([problem] if problem else [])
