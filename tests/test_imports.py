"""Who may import whom and what: the folders' borders, read from the syntax tree and then tried."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

import chairlift

PACKAGE = Path(chairlift.__file__ or "").parent
SIDES = {"shared", "frontend", "worker"}
MAY_IMPORT = {
    "shared": {"shared"},
    "frontend": {"shared", "frontend"},
    "worker": {"shared", "worker"},
}
ONLY_IN = {  # a library that has one home
    "torch": "worker",
    "triton": "worker",
    "numpy": "worker",
    "safetensors": "worker",
    "llguidance": "worker",
    "fastapi": "frontend",
    "starlette": "frontend",
    "uvicorn": "frontend",
    "opentelemetry": "frontend",
    "rich": "frontend",
    "transformers": "the tests",
}
TORCH_FREE = {
    "worker/pulse.py",
    "worker/quarantine.py",
    "worker/child.py",
    "worker/stop_signals.py",
    "worker/supervisor.py",
    "worker/faults.py",
    "worker/stream.py",
    "worker/ownership.py",
    "worker/streams.py",
    "worker/publisher.py",
    "worker/journey.py",
    "worker/step_times.py",
    "worker/sequence.py",
    "worker/scores.py",
    "worker/pool.py",
    "worker/pace.py",
    "worker/scheduler.py",
    "worker/speculation.py",
    "worker/static_scheduler.py",
    "worker/block_manager.py",
}
RUNS_WHAT_IT_READS = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
TELLS_THE_TIME = {  # what `created` shows, and what is traced
    "worker/main.py",
    "frontend/api/answer_form.py",
    "frontend/api/spans.py",
}
BANNED_CALLS = {"recv_pyobj", "send_pyobj"}


def violations(source: str, path: str) -> list[str]:
    """What is wrong in the file at `path`, counted from the package: `worker/loop.py`."""
    return [
        f"{path}:{line}: {problem}"
        for node in ast.walk(ast.parse(source))
        for line, problem in _problems(node, PurePosixPath(path))
    ]


def _problems(node: ast.AST, path: PurePosixPath) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield from ((node.lineno, text) for text in _absolute(alias.name, path))
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        module = node.module or ""
        yield from ((node.lineno, text) for text in _absolute(module, path))
        if module == "torch" and any(alias.name == "load" for alias in node.names):
            yield node.lineno, "torch.load unpickles"
    elif isinstance(node, ast.ImportFrom):
        for target in _targets(node, path):
            yield from ((node.lineno, text) for text in _relative(target, path))
    elif isinstance(node, ast.Name) and node.id in {"eval", "exec", "__import__"}:
        yield node.lineno, f"{node.id} runs what it reads"
    elif isinstance(node, ast.Attribute):
        yield from ((node.lineno, text) for text in _attribute(node, path))
    elif isinstance(node, ast.keyword) and node.arg in {"allow_pickle", "trust_remote_code"}:
        yield node.lineno, f"{node.arg} runs what it reads"


def _absolute(module: str, path: PurePosixPath) -> Iterator[str]:
    top = module.partition(".")[0]
    side = path.parts[0]
    if top in SIDES or top == "chairlift":
        yield f"{module} is ours: import it relatively"
    if top in RUNS_WHAT_IT_READS:
        yield f"{module} runs what it reads"
    if top in ONLY_IN and side in SIDES and side != ONLY_IN[top]:
        yield f"{top} belongs to {ONLY_IN[top]}"
    if top == "torch" and str(path) in TORCH_FREE:
        yield "this module plans without torch"


def _targets(node: ast.ImportFrom, path: PurePosixPath) -> list[tuple[str, ...]]:
    """What a relative import names, from the package on; () is the package itself."""
    package = path.parts[:-1]
    above = len(package) - (node.level - 1)
    if above < 0:
        return [("..",)]
    base = package[:above] + tuple(node.module.split(".") if node.module else ())
    return [base] if base else [(alias.name,) for alias in node.names]


def _relative(target: tuple[str, ...], path: PurePosixPath) -> Iterator[str]:
    side = path.parts[0]
    if target[0] == "..":
        yield "reaches beyond the package"
    elif side in SIDES and target[0] not in MAY_IMPORT[side] | {"__version__"}:
        yield f"{side} may not import {target[0]}"


def _attribute(node: ast.Attribute, path: PurePosixPath) -> Iterator[str]:
    owner = node.value.id if isinstance(node.value, ast.Name) else None
    if (owner, node.attr) == ("time", "time") and str(path) not in TELLS_THE_TIME:
        yield "the wall clock jumps: nothing may expire by it"
    if node.attr in BANNED_CALLS:
        yield f"{node.attr} pickles"
    if (owner, node.attr) == ("torch", "load"):
        yield "torch.load unpickles"
    if owner == "builtins" and node.attr in {"eval", "exec", "__import__"}:
        yield f"{node.attr} runs what it reads"


def _modules(side: str) -> list[str]:
    """Dotted names; a `__main__` is left out, because importing it is running it."""
    paths = sorted((PACKAGE / side).rglob("*.py"))
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def _loads_torch(modules: list[str]) -> bool:
    program = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() == "True"


def test_the_code_keeps_its_borders() -> None:
    """No file of ours imports or calls what its place forbids."""
    paths = [path for side in sorted(SIDES) for path in sorted((PACKAGE / side).rglob("*.py"))]
    paths += sorted(PACKAGE.glob("*.py"))
    assert len(paths) > 10, "the files were not found"
    found = [
        problem
        for path in paths
        for problem in violations(path.read_text("utf-8"), path.relative_to(PACKAGE).as_posix())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("side", ["shared", "frontend"])
def test_clients_load_no_torch(side: str) -> None:
    """Importing every module of shared or frontend brings in no torch, not even through another."""
    assert not _loads_torch(_modules(side))


def test_planning_loads_no_torch() -> None:
    """The worker's planning modules can be imported where torch is not installed."""
    modules = [
        "chairlift." + path.removesuffix(".py").replace("/", ".")
        for path in sorted(TORCH_FREE)
        if (PACKAGE / path).exists()
    ]
    assert modules
    assert not _loads_torch(modules)


def test_the_import_probe_sees_torch() -> None:
    """The probe behind the tests above does report torch where it is imported."""
    assert _loads_torch(["torch"])


@pytest.mark.parametrize(
    ("path", "source", "problem"),
    [
        ("shared/codec.py", "from ..worker import loop", "shared may not import worker"),
        ("shared/codec.py", "from ..frontend.client import X", "shared may not import frontend"),
        ("shared/codec.py", "from .. import worker", "shared may not import worker"),
        ("shared/codec.py", "from .. import AsyncClient", "shared may not import AsyncClient"),
        ("frontend/app.py", "from ..worker.loop import Loop", "frontend may not import worker"),
        ("frontend/api/chat.py", "from ...worker import loop", "frontend may not import worker"),
        ("worker/models/llama.py", "from ... import frontend", "worker may not import frontend"),
        ("worker/loop.py", "def f():\n    from ..frontend import app", "may not import frontend"),
        ("worker/loop.py", "from chairlift.shared import codec", "import it relatively"),
        ("worker/loop.py", "import chairlift.shared", "import it relatively"),
        ("worker/loop.py", "import shared.codec as codec", "import it relatively"),
        ("__main__.py", "from worker import loop", "import it relatively"),
        ("worker/loop.py", "from ... import x", "reaches beyond the package"),
        ("shared/tokenizer.py", "import torch", "torch belongs to worker"),
        ("frontend/app.py", "from torch.nn import functional", "torch belongs to worker"),
        ("frontend/app.py", "import os, numpy as np", "numpy belongs to worker"),
        ("worker/models/llama.py", "import transformers", "transformers belongs to the tests"),
        ("worker/loop.py", "from fastapi import FastAPI", "fastapi belongs to frontend"),
        ("worker/scheduler.py", "import torch", "plans without torch"),
        ("worker/block_manager.py", "from torch import Tensor", "plans without torch"),
        ("shared/codec.py", "import pickle", "pickle runs what it reads"),
        ("worker/loop.py", "from marshal import loads", "marshal runs what it reads"),
        ("worker/loop.py", "import dill as json", "dill runs what it reads"),
        ("worker/loop.py", "x = eval('1')", "eval runs what it reads"),
        ("worker/loop.py", "run = exec", "exec runs what it reads"),
        ("worker/loop.py", "import builtins\nbuiltins.eval('1')", "eval runs what it reads"),
        ("worker/weights.py", "torch.load(path)", "torch.load unpickles"),
        ("worker/weights.py", "from torch import load", "torch.load unpickles"),
        ("worker/weights.py", "numpy.load(path, allow_pickle=True)", "allow_pickle runs"),
        ("worker/intake.py", "socket.recv_pyobj()", "recv_pyobj pickles"),
        ("frontend/link.py", "self.socket.send_pyobj(x)", "send_pyobj pickles"),
    ],
)
def test_a_planted_violation_is_caught(path: str, source: str, problem: str) -> None:
    """Each way across a border that we know of is reported, with its file and line."""
    (found,) = violations(source, path)
    assert problem in found
    assert found.startswith(f"{path}:")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("worker/models/llama.py", "import torch\nfrom ..batch import Batch"),
        ("worker/models/llama.py", "from ...shared.errors import ModelError"),
        ("worker/model_runner.py", "model.eval()\nlm.load(path)\nfrom .models import llama"),
        ("frontend/app.py", "from .. import __version__\nfrom ..shared import messages"),
        ("frontend/app.py", "from . import client\nfrom fastapi import FastAPI"),
        ("shared/codec.py", "from .messages import Frame\nimport msgpack"),
        ("__main__.py", "from .worker import loop\nfrom .frontend import app"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    """The checker has no complaint about an import within the borders."""
    assert violations(source, path) == []
