"""Every kernel compiles for every kind of device as it should, which takes no device."""

from __future__ import annotations

import dataclasses
import importlib
import re
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import triton

from tests.worker.cuda.gpu_scripts import HARNESS, ROOT, gpu_script

pytestmark = [pytest.mark.checkout, pytest.mark.slow]

PAGE = ROOT / "docs" / "gpu.md"
LARGE_HEADS = "heads-16/8x256"
CAPABILITIES = (80, 89, 90, 100)
TENSOR_CORES = {80: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
LISTING = """
  REG:40 STACK:8 SHARED:1024 LOCAL:16 CONSTANT[0]:400 TEXTURE:0 SURFACE:0 SAMPLER:0
        /*0060*/               @!P1 BRA 0x200 ;              /* 0x0000000000641947 */
        /*0070*/               @UP0 UTCHMMA gdesc[UR4] ;     /* 0x000fe20003800000 */
        /*0080*/                    HGMMA.64x64x16.F32 R4 ;  /* 0x0000000000ff782f */
        /*0090*/                    LDGSTS.E.128 [R4] ;      /* 0x000fe20003800000 */
"""


@pytest.fixture
def compile_script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("gpu.compile")


@pytest.fixture(scope="module")
def worker_kernels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Those that the page lists, for a capability: compiled once. A process for each, so that no
    test's time limit is one for all of them."""

    @cache
    def compiled(capability: int) -> Path:
        file = tmp_path_factory.mktemp("compiled") / "rows.json"
        done = gpu_script("compile", "--capabilities", str(capability), "--json", str(file))
        assert (done.returncode, done.stderr.strip()) == (0, "")
        return file

    return compiled


def _rows(compile_script: Any, file: Path) -> Any:
    return msgspec.json.decode(file.read_bytes(), type=list[compile_script.Compiled])


def test_good_kernels_compile_for_every_capability(compile_script: Any, tmp_path: Path) -> None:
    """A product is made by the tensor cores of each, and loads while it computes."""
    file = tmp_path / "rows.json"
    done = gpu_script("compile", "--variants", f"{HARNESS}:good_variants", "--json", str(file))
    assert (done.returncode, done.stderr.strip()) == (0, "")
    rows = _rows(compile_script, file)
    assert [(row.name, row.capability) for row in rows] == [
        (name, capability) for name in ("add", "matmul") for capability in CAPABILITIES
    ]
    for row in rows:
        assert 8 < row.num_registers < 255
        assert row.has_dot == (row.name == "matmul")
        wanted = {TENSOR_CORES[row.capability], "LDGSTS"} if row.has_dot else set()
        assert row.instructions == wanted
        assert (row.shared_bytes >= 2 * 64 * 64 * 2) == row.has_dot


def test_bad_kernels_are_named() -> None:
    """One that spills, one that needs too much shared memory, and two that aren't compiled."""
    options = ("--variants", f"{HARNESS}:bad_variants", "--capabilities", "90")
    done = gpu_script("compile", *options)
    assert done.returncode == 1
    spilling, greedy, forgetful, varying = done.stderr.splitlines()
    assert spilling.startswith("spilling for sm_90 spills ")
    assert greedy.startswith("greedy for sm_90 needs ")
    assert forgetful == "forgetful for sm_90: nothing says what out is"
    assert varying == "varying for sm_90: value isn't in its do_not_specialize"


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_worker_s_kernels_have_no_problem(
    compile_script: Any, worker_kernels: Callable[[int], Path], capability: int
) -> None:
    """Each compiles, without spills, within shared memory, and multiplies on tensor cores."""
    rows = _rows(compile_script, worker_kernels(capability))
    assert {row.capability for row in rows} <= {capability}
    assert len({row.name for row in rows}) == len(rows)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_other_shapes_and_types_compile_as_well(compile_script: Any, dtype: str) -> None:
    """For one capability: groups of 1, 2, 4 and 7, heads of 64, 96, 128 and (in 16 bits) 256, with
    a window and without; in bfloat16 also each model of which something is measured, with a 5."""
    others = [*importlib.import_module("gpu.shapes").OTHERS]
    models = list(compile_script.SHAPES) if dtype == "bfloat16" else [compile_script.MODEL, *others]
    if dtype == "float32":
        others.remove(LARGE_HEADS)
        models.remove(LARGE_HEADS)
    options = ("--dtypes", dtype, "--capabilities", "90")
    done = gpu_script("compile", "--models", *models, *options)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    for name in others:
        for kernel in ("decode", "chunk", "windowed_chunk"):
            assert f"| attention_{kernel} of {name} " in done.stdout


@pytest.mark.parametrize(("dtype", "capabilities"), [("bfloat16", "80 89 100"), ("float32", "89")])
def test_attention_of_large_heads_fits_the_other_devices(dtype: str, capabilities: str) -> None:
    """Whose shared memory differs, and whose tiles are chosen by it: the least is that of sm_89."""
    options = ("--dtypes", dtype, "--variants", "gpu.variants:attention_alone")
    models = ("--models", LARGE_HEADS, "--capabilities", *capabilities.split())
    done = gpu_script("compile", *models, *options)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_the_oldest_release_of_triton_compiles_them_as_well() -> None:
    """Of those that pyproject.toml allows; it is the one that ran on a device."""
    done = gpu_script("compile", "--triton", oldest_release(), "--capabilities", "90")
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert f"Triton {oldest_release()}." in done.stdout


def oldest_release() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (requirement,) = project["optional-dependencies"]["gpu"]
    found = re.match(r"triton>=([0-9.]+);", requirement)
    assert found is not None
    return found[1]


def test_a_release_that_is_not_there_is_an_error() -> None:
    """With what pip says of it."""
    done = gpu_script("compile", "--triton", "0.0.1")
    assert done.returncode == 1
    assert "No matching distribution found for triton==0.0.1" in done.stderr


def test_the_page_has_what_is_compiled(
    compile_script: Any, worker_kernels: Callable[[int], Path]
) -> None:
    """docs/gpu.md's table is the one that this version of Triton gives."""
    page = PAGE.read_text("utf-8")
    if f"Triton {triton.__version__}," not in page:
        pytest.skip("the page is of another version of Triton")
    columns = [_rows(compile_script, worker_kernels(number)) for number in CAPABILITIES]
    rows = [row for kernel in zip(*columns, strict=True) for row in kernel]
    assert page == compile_script.with_block(page, rows), "scripts/gpu_check --write docs/gpu.md"


def test_a_listing_is_read(compile_script: Any) -> None:
    """Registers, local memory, shared memory and opcodes, behind a predicate as well."""
    cubin = importlib.import_module("gpu.cubin")
    assert cubin.parse_resources(LISTING) == cubin.Resources(40, 24, 1024)
    assert cubin.parse_opcodes(LISTING) == {"BRA", "UTCHMMA", "HGMMA", "LDGSTS"}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, None),
        ({"instructions": frozenset({"LDGSTS"})}, "multiplies matrices without tensor cores"),
        ({"num_spill_bytes": 8}, "spills 8 bytes a thread"),
        ({"shared_bytes": 163 * 1024 + 1}, "needs 166913 bytes of shared memory"),
        ({"dtype": "float32", "instructions": frozenset(), "num_spill_bytes": 8}, None),
        ({"dtype": "float32", "shared_bytes": 163 * 1024 + 1}, "needs 166913 bytes"),
    ],
)
def test_problems_are_those_of_speed_and_of_size(
    compile_script: Any, given: dict[str, Any], problem: str | None
) -> None:
    """Of float32, which isn't for speed, only size counts."""
    row = compile_script.Compiled(
        name="dot",
        dtype="bfloat16",
        capability=80,
        num_registers=255,
        num_spill_bytes=0,
        shared_bytes=163 * 1024,
        has_dot=True,
        instructions=frozenset({"HMMA"}),
    )
    found = list(compile_script.problems(dataclasses.replace(row, **given)))
    assert [text[: len(problem or "")] for text in found] == ([problem] if problem else [])
