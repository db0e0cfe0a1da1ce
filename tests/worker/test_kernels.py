"""Which kernels a worker has, and why not the better ones."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import torch

from chairlift.worker.attention.cpu import TorchCpuAttention
from chairlift.worker.attention.native import NativeCpuAttention
from chairlift.worker.kernels import compiler as compiler_module
from chairlift.worker.kernels.choice import available_kernels, cpu_kernels
from chairlift.worker.kernels.compiler import NativeKernelError, load_kernels
from chairlift.worker.models.linear import Linear
from chairlift.worker.models.linear_choice import linear_factory, row_quantizer
from chairlift.worker.models.native_linear import Unit, abilities
from chairlift.worker.models.native_row_quantizer import NativeRowQuantizer
from tests.worker.attention_shape import shape_of

SHAPE, DTYPE = shape_of(), torch.float32


def forget_kernels() -> None:
    compiler_module.load_kernels.cache_clear()
    abilities.cache_clear()


def has_avx512() -> bool:
    return " avx512f " in Path("/proc/cpuinfo").read_text()


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget_kernels()
    yield tmp_path
    forget_kernels()


def test_the_native_kernel_is_compiled_once(empty_cache: Path) -> None:
    """Into the user's cache, where the next start finds it."""
    assert isinstance(cpu_kernels("auto", SHAPE, 4, DTYPE).attention, NativeCpuAttention)
    (compiled,) = empty_cache.rglob("*.so")
    made_at = compiled.stat().st_mtime_ns
    forget_kernels()
    assert isinstance(cpu_kernels("native", SHAPE, 4, DTYPE).attention, NativeCpuAttention)
    assert [path.stat().st_mtime_ns for path in empty_cache.rglob("*.so")] == [made_at]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("nosuchcompiler", "no C compiler nosuchcompiler: install one"),
        ("false", "compiler false failed .CC names another.: it ended with 1"),
        ("cc --nosuchoption", "compiler cc failed .CC names another.: .*nosuchoption"),
    ],
)
def test_without_a_compiler_torch_does_it(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, command: str, why: str
) -> None:
    """With one warning that says what to do; asked for by name, the kernels' absence is an error
    that says the same."""
    monkeypatch.setenv("CC", command)
    with structlog.testing.capture_logs() as lines:
        kernels = available_kernels("auto")
        assert isinstance(cpu_kernels(kernels, SHAPE, 4, DTYPE).attention, TorchCpuAttention)
        assert isinstance(linear_factory("none", kernels)(torch.ones(4, 96), None), Linear)
    (warning,) = (line for line in lines if line["log_level"] == "warning")
    assert re.search(why, warning["why"])
    for start in (lambda: available_kernels("native"), load_kernels):
        with pytest.raises(NativeKernelError, match=why):
            start()


def test_a_cache_that_can_not_be_written(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variable that puts it elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with pytest.raises(NativeKernelError, match=r"/proc/nowhere.*XDG_CACHE_HOME"):
        available_kernels("native")


@pytest.mark.parametrize("damage", ["torn", "empty", "another", "no digest"])
def test_a_damaged_library_is_compiled_anew(empty_cache: Path, damage: str) -> None:
    """Loading a torn one would kill the process, at every start."""
    load_kernels()
    (compiled,) = empty_cache.rglob("*.so")
    whole = compiled.read_bytes()
    damaged = {"torn": whole[: len(whole) // 2], "empty": b"", "another": whole[:-1] + b"x"}
    compiled.unlink()  # this process has it mapped
    compiled.write_bytes(damaged.get(damage, whole))
    if damage == "no digest":
        compiled.with_suffix(".sha256").unlink()
    forget_kernels()
    load_kernels()
    assert compiled.stat().st_size == len(whole) and compiled.with_suffix(".sha256").exists()


def test_a_cache_that_others_may_write_to(empty_cache: Path) -> None:
    """What lies there would be run."""
    folder = empty_cache / "chairlift" / "kernels"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(NativeKernelError, match="others may write"):
        load_kernels()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (r"printf '\\377\\376' >&2; exit 1", "failed"),
        ("sleep 60", "took over 0.5 s"),
    ],
)
def test_a_compiler_that_misbehaves(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    """It writes what is no text, or never ends: then it is ended, and what it started."""
    compiler = empty_cache / "compiler"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(compiler_module, "TIMEOUT_S", 0.5)
    with pytest.raises(NativeKernelError, match=why):
        load_kernels()


def test_a_compiler_that_is_no_command(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    monkeypatch.setenv("CC", "cc '")
    with pytest.raises(NativeKernelError, match="CC is no command"):
        load_kernels()


def test_a_kernel_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a broken compiler could make one."""
    monkeypatch.setattr(NativeCpuAttention, "attend", lambda self, layer, q, step: q * 2)
    with structlog.testing.capture_logs() as lines:
        assert isinstance(cpu_kernels("auto", SHAPE, 4, DTYPE).attention, TorchCpuAttention)
    assert "wrong" in lines[0]["why"]


def test_heads_that_it_does_not_know() -> None:
    """Wider ones than the kernel has room for."""
    wide = shape_of(head_dim=1024)
    assert isinstance(cpu_kernels("auto", wide, 4, DTYPE).attention, TorchCpuAttention)


def test_torch_on_request() -> None:
    assert isinstance(cpu_kernels("torch", SHAPE, 4, DTYPE).attention, TorchCpuAttention)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these flags are x86's")
@pytest.mark.parametrize("flags", ["-mno-avx512f", "-O1 -fno-tree-vectorize"])
def test_processors_with_narrower_vectors_compute_the_same(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, flags: str
) -> None:
    """The C files suppose no instruction set: compiled for less they pass the same test."""
    monkeypatch.setenv("CC", f"cc {flags}")
    for dtype in (torch.float32, torch.bfloat16):
        shape = shape_of(group=7, head_dim=64)
        attention = cpu_kernels("native", shape, 4, dtype).attention
        assert isinstance(attention, NativeCpuAttention)
    assert isinstance(row_quantizer("native"), NativeRowQuantizer)
    able = abilities()
    assert ((torch.float32, Unit.VECTORS) in able) == (has_avx512() and "avx512" not in flags)
    for dtype in (torch.float32, torch.bfloat16):
        assert linear_factory("none", "native")(torch.ones(4, 96, dtype=dtype), None)
