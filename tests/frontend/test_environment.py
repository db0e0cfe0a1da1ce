"""Clients that are not told where the worker is look where `chairlift serve` would."""

from __future__ import annotations

from pathlib import Path

import pytest

import chairlift
from chairlift.shared.addresses import default_address
from chairlift.shared.errors import AddressError, WorkerUnavailableError
from tests.tcp import Keys

REMOTE = "tcp://192.0.2.1:5555"  # a documentation address: nobody is there


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ADDRESS", "CURVE_KEY", "CURVE_WORKER"):
        monkeypatch.delenv(f"CHAIRLIFT_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    """The environment has those of a frontend that the worker knows."""
    keys = Keys.make(tmp_path)
    monkeypatch.setenv("CHAIRLIFT_CURVE_KEY", str(keys.listed))
    monkeypatch.setenv("CHAIRLIFT_CURVE_WORKER", str(keys.worker_public))
    return keys


def where(client: chairlift.AsyncClient) -> str:
    """The address that the client talks to, by what it says of it."""
    with pytest.raises(WorkerUnavailableError) as error:
        _ = client.tokenizer
    return str(error.value).rpartition(" ")[2]


def test_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument beats CHAIRLIFT_ADDRESS, which beats the default; an empty one is none."""
    assert where(chairlift.AsyncClient()) == default_address()
    monkeypatch.setenv("CHAIRLIFT_ADDRESS", "")
    assert where(chairlift.AsyncClient()) == default_address()
    monkeypatch.setenv("CHAIRLIFT_ADDRESS", "ipc:///tmp/elsewhere")
    assert where(chairlift.AsyncClient()) == "ipc:///tmp/elsewhere"
    assert where(chairlift.AsyncClient("ipc:///tmp/here")) == "ipc:///tmp/here"


def test_no_dotenv() -> None:
    """A library reads no file that happens to lie in the working directory."""
    Path(".env").write_text("CHAIRLIFT_ADDRESS=ipc:///tmp/elsewhere\n")
    assert where(chairlift.AsyncClient()) == default_address()


def test_a_bad_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no address is refused at once, by both clients."""
    monkeypatch.setenv("CHAIRLIFT_ADDRESS", "elsewhere")
    for client in (chairlift.AsyncClient, chairlift.Client):
        with pytest.raises(AddressError, match="'elsewhere'"):
            client()


def test_keys(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys for tcp come from the environment too; one without the other is refused."""
    chairlift.AsyncClient(REMOTE)
    monkeypatch.setenv("CHAIRLIFT_ADDRESS", REMOTE)
    assert where(chairlift.AsyncClient()) == REMOTE
    monkeypatch.delenv("CHAIRLIFT_CURVE_WORKER")
    with pytest.raises(AddressError, match="CHAIRLIFT_CURVE_WORKER"):
        chairlift.AsyncClient()
    chairlift.AsyncClient(curve=keys.of(keys.listed))
    monkeypatch.delenv("CHAIRLIFT_CURVE_KEY")
    with pytest.raises(AddressError, match="chairlift keygen"):
        chairlift.AsyncClient()


@pytest.mark.usefixtures("keys")
def test_keys_are_for_tcp() -> None:
    """A program that talks to a worker on its own machine need not clean its environment."""
    chairlift.AsyncClient("ipc:///tmp/here")
