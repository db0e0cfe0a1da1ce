"""Settings from flags, the environment and `.env`, and the command that reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from chairlift import __main__, __version__
from chairlift.shared.addresses import default_address
from chairlift.shared.settings import (
    DEMO_MODEL_FOLDER,
    ServeSettings,
    WorkerSettings,
    load_settings,
)
from tests.tcp import Keys


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no `.env` of whoever runs the tests."""
    import os

    for name in [*os.environ]:
        if name.startswith("CHAIRLIFT_") or name == "PORT":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def serve(*arguments: str) -> ServeSettings:
    return load_settings(ServeSettings, "serve", arguments)


def worker(*arguments: str) -> WorkerSettings:
    return load_settings(WorkerSettings, "worker", arguments)


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag beats the environment, that beats `.env`, and plain PORT is the last resort."""
    assert serve().port == 8000
    monkeypatch.setenv("PORT", "1")
    assert serve().port == 1
    Path(".env").write_text("CHAIRLIFT_PORT=2\nSOMETHING_ELSE=x\n")
    assert serve().port == 2
    monkeypatch.setenv("CHAIRLIFT_PORT", "3")
    assert serve().port == 3
    assert serve("--port", "4").port == 4


def test_defaults() -> None:
    """The demo model from the package, on this machine alone."""
    assert worker().model_source == str(DEMO_MODEL_FOLDER)
    assert worker().served_model_name == "demo"
    assert serve().host == "127.0.0.1"
    assert worker().address == serve().address


def test_int8_and_a_gpu_exclude_one_another(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything looks for a GPU."""
    with pytest.raises(SystemExit):
        worker("--quantize", "int8", "--device", "cuda")
    assert "quantize int8 is for CPUs" in capsys.readouterr().err
    assert worker("--quantize", "int8").quantize == "int8"


def test_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The served name is the last part of the model's unless one is given."""
    monkeypatch.setenv("CHAIRLIFT_MODEL", "org/Model-1B")
    assert (worker().model_source, worker().served_model_name) == ("org/Model-1B", "Model-1B")
    assert worker("--served-model-name", "m").served_model_name == "m"


def test_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes have units, flags have a negative, an empty variable is none."""
    monkeypatch.setenv("CHAIRLIFT_MAX_MODEL_LEN", "")
    settings = worker("--kv-cache-bytes", "2GiB", "--no-prefix-caching", "--policy=static")
    assert settings.kv_cache_bytes == 2 << 30
    assert not settings.prefix_caching and settings.policy == "static"
    assert settings.max_model_len is None


def test_frozen() -> None:
    """Settings never change after the start."""
    with pytest.raises(ValidationError):
        serve().port = 1  # type: ignore[misc]  # the test's point


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        (ServeSettings, ["--port", "x"], "--port (CHAIRLIFT_PORT): "),
        (ServeSettings, ["--port", "65536"], "--port"),
        (ServeSettings, ["--prot", "1"], "unrecognized arguments: --prot"),
        (ServeSettings, ["--api-key-file", "nowhere"], "--api-key-file"),
        (ServeSettings, ["--api-keys=k"], "--api-key-file"),
        (ServeSettings, ["--keep-alive-s", "0"], "--keep-alive-s"),
        (ServeSettings, ["--address", "elsewhere"], "ipc:///directory"),
        (ServeSettings, ["--address", "tcp://0.0.0.0:5"], "leaves this machine"),
        (WorkerSettings, ["--address", "tcp://*:5"], "`chairlift keygen`"),
        (WorkerSettings, ["--curve-key", "k"], "--curve-key and --curve-frontends go together"),
        (ServeSettings, ["--curve-worker", "k"], "--curve-key and --curve-worker go together"),
        (ServeSettings, ["--curve-key=k", "--curve-worker=w"], "k can't be read"),
        (WorkerSettings, ["--max-num-seqs", "0"], "--max-num-seqs (CHAIRLIFT_MAX_NUM_SEQS)"),
        (WorkerSettings, ["--max-num-seqs", "500"], "max_num_seqs + 32 (532)"),
        (WorkerSettings, ["--kv-cache-bytes", "-1"], "--kv-cache-bytes"),
        (WorkerSettings, ["--kv-cache-bytes", "0"], "--kv-cache-bytes"),
        (WorkerSettings, ["--dtype", "int3"], "--dtype"),
        (WorkerSettings, ["--num-threads", "nan"], "--num-threads"),
        (WorkerSettings, ["--drain-timeout-s", "nan"], "--drain-timeout-s"),
    ],
)
def test_refused(kind: Any, arguments: Any, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad setting ends the start with code 2 and its name."""
    with pytest.raises(SystemExit) as ending:
        load_settings(kind, "command", arguments)
    assert ending.value.code == 2
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert last_line.startswith("chairlift command: ") and said in last_line


@pytest.mark.parametrize("where", ["environment", "file"])
def test_typo(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A variable that would be one of ours but for a typo is refused with the right name."""
    if where == "environment":
        monkeypatch.setenv("CHAIRLIFT_MAX_NUM_SEQ", "1")
    else:
        Path(".env").write_text("CHAIRLIFT_MAX_NUM_SEQ=1\n")
    with pytest.raises(SystemExit):
        serve()
    assert "did you mean CHAIRLIFT_MAX_NUM_SEQS?" in capsys.readouterr().err


def test_keys_for_tcp(tmp_path: Path) -> None:
    """Each side takes its own secret and the other's public keys; ipc takes none."""
    keys = Keys.make(tmp_path)
    ours = ["--curve-key", str(keys.worker), "--curve-frontends", str(keys.frontends)]
    theirs = ["--curve-key", str(keys.listed), "--curve-worker", str(keys.worker_public)]
    assert worker("--address", "tcp://*:5", *ours).load_curve() == keys.of_worker()
    assert serve("--address", "tcp://h:5", *theirs).load_curve() == keys.of(keys.listed)
    assert worker().load_curve() is None and serve().load_curve() is None
    with pytest.raises(SystemExit):
        worker("--address", f"ipc://{tmp_path}", *ours)


def test_keys_are_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """API keys come from the environment, several at a time, and are never shown."""
    monkeypatch.setenv("CHAIRLIFT_API_KEYS", "key1, key2\nkey3")
    settings = serve()
    assert [key.get_secret_value() for key in settings.api_keys or ()] == ["key1", "key2", "key3"]
    assert "key1" not in repr(settings) and "key2" not in str(settings.model_dump())


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Help lists the flags, and not the setting that is no flag."""
    with pytest.raises(SystemExit) as ending:
        serve("--help")
    text = capsys.readouterr().out
    assert ending.value.code == 0
    assert "--max-requests-per-key" in text and "--api-keys" not in text


@pytest.mark.parametrize("load", [serve, worker])
def test_help_shows_real_defaults(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A default is shown as a user could write it, or told in words."""
    with pytest.raises(SystemExit):
        load("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert f"(default: {default_address()})" in text
    assert "(default: info)" in text
    assert "factory" not in text and "None" not in text


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The command tells its version and its use, and refuses what it does not know."""
    assert __main__.main(["version"]) == 0
    assert __main__.main([]) == 0
    assert __version__ in capsys.readouterr().out
    assert __main__.main(["fly"]) == 2
    assert "'fly'" in capsys.readouterr().err


BARE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pydantic", "fastapi", "uvicorn", "torch", "rich"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from chairlift.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("version", 0, __version__),
        ("serve", 2, "pip install 'chairlift[server]'"),
        ("chat", 2, "pip install 'chairlift[terminal]'"),
        ("worker", 2, "pip install 'chairlift[worker]'"),
    ],
)
def test_base_install(command: str, code: int, said: str) -> None:
    """Without the extras the version works, and the rest says which one to install."""
    ran = subprocess.run(
        [sys.executable, "-c", BARE, command], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == code
    assert said in ran.stdout + ran.stderr and "Traceback" not in ran.stderr
