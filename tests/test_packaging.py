"""What the repository promises to those who install it: links, files, versions, scripts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import chairlift
from chairlift.frontend.frontends import OUR_EXTRAS
from chairlift.frontend.terminal.chat_settings import ChatSettings
from chairlift.frontend.terminal.tap import TapSettings
from chairlift.frontend.terminal.top import TopSettings
from chairlift.frontend.terminal.trace import TraceSettings
from chairlift.shared.settings import ClientSettings, ServeSettings, WorkerSettings

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("frontend", "shared", "worker")


def _git(*arguments: str) -> list[str]:
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        pytest.skip(f"no git checkout: {done.stderr.strip()}")
    return done.stdout.splitlines()


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project


def _wheel_files() -> list[str]:
    builder = WheelBuilder(str(ROOT))
    return [file.distribution_path for file in builder.recurse_included_files()]


@pytest.mark.parametrize("folder", FOLDERS)
def test_links_are_links(folder: str) -> None:
    """chairlift/ holds a link to each folder, tracked as a link and not as a copy."""
    assert (ROOT / "chairlift" / folder).readlink() == Path("..") / folder
    (entry,) = _git("ls-files", "--stage", f"chairlift/{folder}")
    assert entry.startswith("120000 ")


def test_the_wheel_holds_every_file_once() -> None:
    """All that is tracked in the three folders is in the wheel, data too, and nothing else is."""
    listed = _git("ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS)
    expected = {f"chairlift/{path}" for path in listed if (ROOT / path).exists()}
    expected |= {f"chairlift/{path.name}" for path in (ROOT / "chairlift").glob("*.py")}
    expected |= {"chairlift/py.typed"}
    found = _wheel_files()
    assert sorted(found) == sorted(expected)


def test_the_demo_model_is_packaged() -> None:
    """The wheel brings the demo model, so that an installed server talks without a download."""
    if not any((ROOT / "shared" / "demo_model").glob("*")):
        pytest.skip("the demo model has not been trained yet")
    names = {Path(path).name for path in _wheel_files() if "/demo_model/" in path}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert any(name.endswith(".safetensors") for name in names)


def test_our_frontends_are_there() -> None:
    """Each that pyproject.toml declares can be loaded and called."""
    declared: dict[str, str] = _project()["entry-points"]["chairlift.frontends"]
    assert set(declared) == set(OUR_EXTRAS)
    for name, value in declared.items():
        assert callable(EntryPoint(name, value, "chairlift.frontends").load())


def test_versions_agree() -> None:
    """The package, its metadata and the changelog's first release name one version."""
    assert _project()["version"] == chairlift.__version__
    changelog = ROOT / "CHANGELOG.md"
    if changelog.exists():
        releases = re.findall(r"^## \[?v?(\d+\.\d+\.\d+)", changelog.read_text("utf-8"), re.M)
        assert releases[:1] in ([], [chairlift.__version__])


def test_every_dependency_is_pinned() -> None:
    """constraints.txt pins what pyproject.toml asks for, at a version that it admits."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    project = _project()
    extras: dict[str, list[str]] = project["optional-dependencies"]
    for line in [*project["dependencies"], *(line for extra in extras.values() for line in extra)]:
        requirement = Requirement(line)
        if requirement.name != "chairlift":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), line


def test_every_script_is_listed() -> None:
    """scripts/README.md has a line for each script, and none for one that is gone."""
    table = (ROOT / "scripts" / "README.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `([^`]+)` \|", table, re.M))
    scripts = {path.name for path in (ROOT / "scripts").iterdir() if path.is_file()}
    assert listed == scripts - {"README.md"}


def test_shell_scripts_are_executable_and_strict() -> None:
    """Every shell script can be run as it is and stops at its first error."""
    paths = [path for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix]
    for path in [*paths, ROOT / ".ci" / "run"]:
        assert os.access(path, os.X_OK), path
        assert "\nset -euo pipefail\n" in path.read_text("utf-8"), path


def test_the_frontend_comes_first_in_the_procfile() -> None:
    """honcho gives PORT to the first process and PORT + 100 to the next."""
    names = re.findall(r"^(\w+):", (ROOT / "Procfile").read_text("utf-8"), re.M)
    assert names == ["frontend", "worker"]


# Each leaves its environment in a file and waits for the other's: honcho ends both with the first.
PROCFILE = """\
frontend: env -0 >f && mv f frontend.seen; until [ -e worker.seen ]; do sleep 0.01; done
worker: env -0 >w && mv w worker.seen; until [ -e frontend.seen ]; do sleep 0.01; done
"""


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """scripts/server in a folder of its own, with processes that only tell their environment."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "Procfile").write_text(PROCFILE)
    (tmp_path / "shared").symlink_to(ROOT / "shared")
    (tmp_path / "scripts" / "bootstrap").write_text("#!/bin/sh\n")
    (tmp_path / "scripts" / "bootstrap").chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for tool in ("honcho", "dotenv"):
        (tmp_path / ".venv" / "bin" / tool).symlink_to(ROOT / ".venv" / "bin" / tool)
    return Path(shutil.copy(ROOT / "scripts" / "server", tmp_path / "scripts" / "server"))


def _serve(server: Path, *arguments: str, **environment: str) -> dict[str, set[str]]:
    """The environment that each process got, as NAME=value."""
    clean = {name: value for name, value in os.environ.items() if not _is_setting(name)}
    done = subprocess.run(
        [str(server), *arguments],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    paths = list(server.parent.parent.glob("*.seen"))
    found = {path.stem: set(path.read_text("utf-8").split("\0")) for path in paths}
    for path in paths:
        path.unlink()
    return found


def _is_setting(name: str) -> bool:
    return name == "PORT" or name.startswith("CHAIRLIFT_")


def test_server_defaults_to_port_8000(server: Path) -> None:
    """Without flags, environment and .env the frontend gets port 8000."""
    assert "PORT=8000" in _serve(server)["frontend"]


def test_server_takes_flags(server: Path) -> None:
    """--port is the frontend's, any other flag becomes a setting of both processes."""
    found = _serve(server, "--port", "9000", "--max-num-seqs", "32", "--model=/a b/c")
    assert {"PORT=9000", "CHAIRLIFT_PORT=9000"} <= found["frontend"]
    for process in ("frontend", "worker"):
        assert {"CHAIRLIFT_MAX_NUM_SEQS=32", "CHAIRLIFT_MODEL=/a b/c"} <= found[process]


def test_flags_win_over_environment_and_that_over_dotenv(server: Path) -> None:
    """The nearer to the command line, the stronger a setting is."""
    dotenv = 'PORT=7000\nCHAIRLIFT_MODEL=file\nCHAIRLIFT_POLICY="file"\nCHAIRLIFT_NAME="a file"\n'
    (server.parent.parent / ".env").write_text(dotenv)
    assert "PORT=7000" in _serve(server)["frontend"]
    found = _serve(
        server, "--model", "flag", PORT="8100", CHAIRLIFT_MODEL="env", CHAIRLIFT_POLICY="env"
    )
    expected = {"CHAIRLIFT_MODEL=flag", "CHAIRLIFT_POLICY=env", "CHAIRLIFT_NAME=a file"}
    assert expected | {"PORT=8100"} <= found["frontend"]
    assert expected <= found["worker"]


def test_port_in_the_environment_wins(server: Path) -> None:
    """PORT of the environment beats CHAIRLIFT_PORT of `.env`, whatever settings prefer."""
    (server.parent.parent / ".env").write_text("CHAIRLIFT_PORT=7777\n")
    assert "CHAIRLIFT_PORT=7777" in _serve(server)["frontend"]
    assert "CHAIRLIFT_PORT=8100" in _serve(server, PORT="8100")["frontend"]


@pytest.mark.parametrize(
    ("flag", "variable"),
    [
        ("--offline", "CHAIRLIFT_OFFLINE=true"),
        ("--no-prefix-caching", "CHAIRLIFT_PREFIX_CACHING=false"),
        ("--prefix-caching=false", "CHAIRLIFT_PREFIX_CACHING=false"),
    ],
)
def test_server_takes_switches(server: Path, flag: str, variable: str) -> None:
    """Written as the commands have them, or with a value after `=`."""
    found = _serve(server, flag, "--port=9000")
    assert {variable, "CHAIRLIFT_PORT=9000"} <= found["worker"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model"], "don't know model"),
        (["--"], "don't know --"),
        (["--model"], "--model needs a value"),
        (["--model", "--port"], "--model needs a value"),
        (["--api-keys", "secret"], "use --api-key-file"),
        (["--foo"], "there is no setting --foo"),
        (["--foo", "1"], "there is no setting --foo"),
        (["--no-foo"], "there is no setting --no-foo"),
        (["--no-model"], "there is no setting --no-model"),
    ],
)
def test_server_refuses_what_it_cannot_read(server: Path, arguments: list[str], said: str) -> None:
    """A missing value, what is no setting and a secret in a flag end with exit code 2; the last
    line says why."""
    done = subprocess.run(
        [str(server), *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert "usage: scripts/server" in done.stderr
    assert said in done.stderr.splitlines()[-1]


def test_what_the_readme_lists_is_there() -> None:
    """Every file and folder under "Where things are" exists where it is listed."""
    text = (ROOT / "README.md").read_text("utf-8")
    (tree,) = re.findall(r"## Where things are\n+```\n(.*?)```", text, re.S)
    folders = {0: ROOT}
    for line in tree.splitlines():
        entries = re.match(r"( *)((?:[\w.]+(?:\.py|/)(?: |$)+)*)", line)
        assert entries is not None
        depth = len(entries[1]) // 2
        for name in entries[2].split():
            path = folders[depth] / name
            assert path.exists(), path
            if name.endswith("/"):
                folders[depth + 1] = path


SWITCHES = {
    name.replace("_", "-")
    for kind in (WorkerSettings, ServeSettings)
    for name, field in kind.model_fields.items()
    if field.annotation is bool
}


def _flags(kind: type[WorkerSettings] | type[ClientSettings]) -> set[str]:
    names = {name.replace("_", "-") for name in kind.model_fields}
    return {"help", *names, *(f"no-{name}" for name in names & SWITCHES)}


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "SECURITY.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "docs/frontends.md",
        "docs/int8.md",
        "docs/reliability.md",
        "docs/watching.md",
    ],
)
def test_documented_flags_exist(document: str) -> None:
    """Every flag in the documents is one of the command that it stands with, or of any where none
    is named, and a switch has no value."""
    worker, serve = _flags(WorkerSettings), _flags(ServeSettings)
    commands = {
        "chairlift worker": worker,
        "chairlift serve": {*serve, "frontend"},
        "chairlift chat": _flags(ChatSettings),
        "chairlift top": _flags(TopSettings),
        "chairlift tap": _flags(TapSettings),
        "chairlift trace": _flags(TraceSettings),
        "chairlift keygen": {"directory"},
        "scripts/server": worker | serve,
    }
    text = (ROOT / document).read_text("utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if "scripts/" in line and "scripts/server" not in line:
            continue  # a tool with flags of its own
        named = [flags for command, flags in commands.items() if command in line]
        allowed = set().union(*named or commands.values())
        found = re.findall(r"(?<![\w-])--([a-z][a-z0-9-]*)(?: (true|false)\b)?", line)
        assert {flag for flag, _ in found} <= allowed, line
        assert not [flag for flag, value in found if value and flag in SWITCHES], line
