"""supervisord and nginx with configurations of a test, ended with it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.processes import environment_of, stop

START_TIMEOUT_S = 20.0
SUPERVISORD = """
[unix_http_server]
file={folder}/socket
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{folder}/socket
[supervisord]
nodaemon=true
logfile={folder}/log
pidfile={folder}/pid
childlogdir={folder}
"""
NGINX = """
{user}
daemon off;
pid {folder}/pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {servers}
}}
"""


def program(name: str, package: str) -> str:
    """Its path; fails the test that needs it where it is missing."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if path is None:
        pytest.fail(f"{name} is missing: apt-get install {package}")
    return path


@dataclass(frozen=True, slots=True)
class Supervisord:
    """Running, with its control."""

    folder: Path

    def control(self, *arguments: str) -> str:
        """What `supervisorctl` says."""
        command = [program("supervisorctl", "supervisor"), "-c", f"{self.folder}/configuration"]
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout.strip()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextmanager
def supervisord(folder: Path, programs: str) -> Iterator[Supervisord]:
    configuration = folder / "configuration"
    configuration.write_text(SUPERVISORD.format(folder=folder) + programs)
    process = subprocess.Popen(
        [program("supervisord", "supervisor"), "-c", str(configuration)],
        env=environment_of({}),
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield Supervisord(folder)
    finally:
        stop(process)


@contextmanager
def nginx(folder: Path, servers: str, port: int) -> Iterator[None]:
    """Until then it listens at the port."""
    configuration = folder / "nginx"
    user = "user root;" if os.getuid() == 0 else ""  # else its workers can't enter our folder
    configuration.write_text(NGINX.format(folder=folder, user=user, servers=servers))
    process = subprocess.Popen(
        [program("nginx", "nginx-light"), "-e", "stderr", "-p", folder, "-c", configuration]
    )
    try:
        _until_it_listens(port)
        yield
    finally:
        stop(process)


def _until_it_listens(port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise AssertionError(f"nobody ever listened at port {port}")
