"""Compiles this folder's C files with the system's compiler, once, into the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import signal
import stat
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import structlog

from ...shared.errors import ChairliftError

log = structlog.get_logger(__name__)

FLAGS = (
    *("-std=gnu11", "-O3", "-fno-math-errno", "-fno-strict-aliasing"),  # bytes are read as vectors
    *("-fopenmp", "-shared", "-fPIC", "-w"),
)
NATIVE_FLAGS = {"aarch64": "-mcpu=native", "arm64": "-mcpu=native"}  # elsewhere -march=native
TIMEOUT_S = 60.0
INT, LONG, FLOAT, POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
SIGNATURES: dict[str, tuple[type[ctypes._SimpleCData[Any]], ...]] = {  # what the C files define
    "attend": (
        *(POINTER, INT, INT, POINTER, POINTER, LONG, INT),
        *(POINTER, POINTER, LONG, POINTER, POINTER, POINTER),
    ),
    "write_kv": (POINTER, INT, POINTER, LONG, POINTER, POINTER, LONG, LONG, POINTER, POINTER),
    "write_rotated": (
        *(POINTER, INT, LONG, POINTER, POINTER, FLOAT, POINTER, POINTER),
        *(POINTER, POINTER, POINTER, POINTER, POINTER),
    ),
    "rms_norm": (INT, LONG, LONG, POINTER, POINTER, POINTER, FLOAT, POINTER),
    "silu_and_multiply": (INT, LONG, LONG, POINTER, POINTER),
    "find_units": (POINTER,),
    "pack_matrix": (LONG, LONG, POINTER, POINTER),
    "multiply": (POINTER, LONG, POINTER, POINTER),
    "quantize_rows": (INT, LONG, LONG, LONG, POINTER, POINTER, POINTER),
    "rescale_rows": (INT, LONG, LONG, POINTER, POINTER, POINTER, POINTER),
    "run_layers": (POINTER,) * 5,
}
FOLDER = Path(__file__).parent


class NativeKernelError(ChairliftError):
    """There is no kernel: torch does without it."""


@cache
def load_kernels() -> ctypes.CDLL:
    """One library of all of them. torch has to be imported before it: the two then share OpenMP's
    threads. Raises NativeKernelError.
    """
    try:
        command = [*shlex.split(os.environ.get("CC") or "cc"), *FLAGS, _native_flag()]
    except ValueError as error:
        raise NativeKernelError(f"CC is no command: {error}") from None
    try:
        path = _path(command)
        _check_is_ours(path.parent)
        if not _is_whole(path):
            _compile(command, path)
        library = ctypes.CDLL(str(path))
    except (OSError, RuntimeError) as error:
        remedy = "XDG_CACHE_HOME says where compiled kernels are kept"
        raise NativeKernelError(f"{error}: {remedy}") from None
    for name, arguments in SIGNATURES.items():
        function = library[name]
        function.argtypes, function.restype = arguments, None
        setattr(library, name, function)
    return library


def _check_is_ours(folder: Path) -> None:
    """What lies there is run: nobody else may write to it. Makes it. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"others may write to {folder}")


def _is_whole(path: Path) -> bool:
    """A library with its digest beside it: a torn one would kill the process that loads it."""
    try:
        return _digest_of(path).read_text() == hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return False


def _digest_of(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _compile(command: list[str], path: Path) -> None:
    """Each file by a process of its own, then all into one library."""
    log.info("compiling the kernels, once on this machine", to=str(path))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        library = Path(folder) / path.name
        objects = {source: f"{folder}/{source.stem}.o" for source in FOLDER.glob("*.c")}
        commands = [[*command, "-c", str(source), "-o", to] for source, to in objects.items()]
        with ThreadPoolExecutor() as pool:
            list(pool.map(_run, commands))
        _run([*command, *objects.values(), "-o", str(library), "-lm"])
        _digest_of(library).write_text(hashlib.sha256(library.read_bytes()).hexdigest())
        library.replace(path)
        _digest_of(library).replace(_digest_of(path))


def _run(command: list[str]) -> None:
    """Raises NativeKernelError."""
    compiler, pipe = command[0], subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, start_new_session=True)
    except OSError:
        remedy = "install one, like Debian's gcc, or name it in CC"
        raise NativeKernelError(f"no C compiler {compiler}: {remedy}") from None
    try:
        _, errors = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what it started as well
        process.communicate()
        raise NativeKernelError(f"the C compiler {compiler} took over {TIMEOUT_S:g} s") from None
    if process.returncode:
        said = errors.decode(errors="replace").strip().splitlines()
        said = said or [f"it ended with {process.returncode}"]
        raise NativeKernelError(f"the C compiler {compiler} failed (CC names another): {said[0]}")


def _path(command: list[str]) -> Path:
    """Named by what makes it: the sources, the command, and the processor's instruction sets."""
    sources = [source.read_bytes() for source in sorted(FOLDER.glob("*.[ch]"))]
    made_of = (*sources, shlex.join(command).encode(), _processor())
    digest = hashlib.sha256(b"\0".join(made_of)).hexdigest()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "chairlift" / "kernels" / f"kernels-{digest[:32]}.so"


def _native_flag() -> str:
    return NATIVE_FLAGS.get(platform.machine(), "-march=native")


def _processor() -> bytes:
    """Its instruction sets: a home folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")
