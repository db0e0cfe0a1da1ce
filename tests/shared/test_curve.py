"""Keys are made once, kept close, and asked for wherever a stream leaves the machine."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
from zmq.auth import load_certificate

from chairlift.__main__ import main
from chairlift.shared.addresses import Endpoints
from chairlift.shared.curve import check_curve
from chairlift.shared.errors import AddressError
from tests.tcp import Keys


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys.make(tmp_path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keygen_writes_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A public file to give away and a secret one that only its owner can read."""
    assert main(["keygen", "web-1", "--directory", str(tmp_path / "keys")]) == 0
    secret = tmp_path / "keys" / "web-1.key_secret"
    assert (mode(secret.parent), mode(secret)) == (0o700, 0o600)
    public_key, secret_key = load_certificate(secret)
    assert secret_key and zmq.curve_public(secret_key) == public_key
    assert load_certificate(secret.with_suffix(".key")) == (public_key, None)
    said = capsys.readouterr().out
    assert str(secret) in said and "--curve-frontends" in said and "--curve-worker" in said
    assert secret_key.decode() not in said


@pytest.mark.parametrize("left", ["web.key", "web.key_secret"])
def test_keygen_never_overwrites(
    left: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even half of a pair: who trusts the old key would be locked out."""
    tmp_path.chmod(0o700)
    (tmp_path / left).write_text("old")
    assert main(["keygen", "web", "--directory", str(tmp_path)]) == 1
    assert "never overwritten" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(left, "old")]


@pytest.mark.parametrize("name", ["", "../web", "a/b", ".hidden", "-x", "a b", "x" * 65])
def test_keygen_refuses_strange_names(name: str, tmp_path: Path) -> None:
    """A name becomes two file names in the directory and nothing else."""
    with pytest.raises(SystemExit) as ending:
        main(["keygen", "--directory", str(tmp_path / "keys"), "--", name])
    assert ending.value.code == 2
    assert not (tmp_path / "keys").exists()


def test_keygen_refuses_an_open_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Secret keys lie where nobody else can look."""
    tmp_path.chmod(0o755)
    assert main(["keygen", "web", "--directory", str(tmp_path)]) == 1
    assert "chmod 700" in capsys.readouterr().err


def test_keys_load(keys: Keys) -> None:
    """What keygen wrote is what both sides take, and no secret is ever shown."""
    worker, frontend = keys.of_worker(), keys.of(keys.listed)
    assert frontend.worker_key == zmq.curve_public(worker.secret_key)
    assert repr(worker.secret_key) not in repr(worker)
    assert repr(frontend.secret_key) not in repr(frontend)


def load_worker(keys: Keys) -> object:
    return keys.of_worker()


def load_frontend(keys: Keys) -> object:
    return keys.of(keys.listed)


Damage = Callable[[Keys], object]


@pytest.mark.parametrize(
    ("damage", "load", "complaint"),
    [
        (lambda k: k.worker.chmod(0o640), load_worker, "read by other users: chmod go="),
        (lambda k: k.listed.chmod(0o604), load_frontend, "read by other users: chmod go="),
        (lambda k: k.worker_public.chmod(0o664), load_frontend, "written by other users"),
        (lambda k: k.frontends.chmod(0o770), load_worker, "written by other users"),
        (lambda k: (k.frontends / "listed.key").chmod(0o602), load_worker, "written by other"),
        (lambda k: k.worker.unlink(), load_worker, "can't be read"),
        (lambda k: k.worker_public.unlink(), load_frontend, "can't be read"),
        (lambda k: (k.frontends / "listed.key").unlink(), load_worker, "nobody could connect"),
        (lambda k: k.worker_public.replace(k.worker), load_worker, "no secret key"),
        (lambda k: k.worker.replace(k.worker_public), load_frontend, "never leave"),
        (lambda k: k.worker_public.write_bytes(b"\xff" * 99), load_frontend, "no key file"),
        (
            lambda k: k.worker_public.write_text('public-key = "short"'),
            load_frontend,
            "no key file",
        ),
        (
            lambda k: k.worker_public.write_text(f'public-key = "{"#" * 40}"'),
            load_frontend,
            "no key file",
        ),
        (lambda k: (k.frontends / "x.key").write_text("x"), load_worker, "x.key is no key file"),
        (lambda k: os.mkfifo(k.frontends / "x.key", 0o600), load_worker, "x.key is no key file"),
    ],
)
def test_bad_keys_are_refused(
    damage: Damage, load: Callable[[Keys], object], complaint: str, keys: Keys
) -> None:
    """Each bad or unguarded file is refused with its name and the remedy."""
    damage(keys)
    with pytest.raises(AddressError, match=complaint):
        load(keys)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "*", "[::]", "10.0.0.1", "example.org", "[2001:db8::1]"]
)
def test_tcp_beyond_this_machine_needs_keys(host: str) -> None:
    """Without keys anyone could read and write there."""
    with pytest.raises(AddressError, match="chairlift keygen"):
        check_curve(Endpoints.parse(f"tcp://{host}:5600"), None)


def test_where_keys_are_good(keys: Keys) -> None:
    """With keys every tcp address is fine, loopback too."""
    worker, frontend = keys.of_worker(), keys.of(keys.listed)
    for host in ("127.0.0.1", "10.0.0.1"):
        check_curve(Endpoints.parse(f"tcp://{host}:5600"), worker)
        check_curve(Endpoints.parse(f"tcp://{host}:5600"), frontend)
    check_curve(Endpoints.parse("tcp://*:5600"), worker)
    check_curve(Endpoints.parse("tcp://127.0.0.1:5600"), None)
    check_curve(Endpoints.parse("ipc:///run/chairlift"), None)


def test_keys_for_ipc_are_refused(keys: Keys) -> None:
    """A setting that would do nothing is no setting: the directory's mode guards ipc."""
    with pytest.raises(AddressError, match="keys do nothing"):
        check_curve(Endpoints.parse("ipc:///run/chairlift"), keys.of_worker())


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "[::]"])
def test_a_frontend_needs_a_real_host(host: str, keys: Keys) -> None:
    """A worker listens on every interface; a frontend has to know where it is."""
    with pytest.raises(AddressError, match="names no machine"):
        check_curve(Endpoints.parse(f"tcp://{host}:5600"), keys.of(keys.listed))
