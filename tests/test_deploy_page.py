"""docs/deploy.md: its units, its commands and its settings are such as there are."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chairlift.shared.settings import ServeSettings, WorkerSettings
from tests.deploy_page import PAGE, PROGRAM, blocks

pytestmark = pytest.mark.checkout
SETTINGS = {*WorkerSettings.model_fields, *ServeSettings.model_fields}
OTHERS_FLAGS = {"app", "user", "no-install-recommends", "no-cache-dir", "extra-index-url"}
OTHERS_FLAGS |= {"create-home", "init"}  # honcho's, apt's, pip's, useradd's, docker's


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_units(tmp_path: Path) -> None:
    """systemd has nothing to complain about, once the program is there."""
    paths = []
    for block in blocks("ini")[:2]:
        name = re.match(r"# /etc/systemd/system/([\w@-]+)\.service", block)
        assert name is not None
        path = tmp_path / f"{name[1]}{'8000' if name[1].endswith('@') else ''}.service"
        path.write_text(block.replace(PROGRAM, sys.executable).replace("User=chairlift\n", ""))
        paths.append(str(path))
    assert len(paths) == 2
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *paths],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert not [line for line in found.stderr.splitlines() if str(tmp_path) in line]
    assert found.returncode == 0, found.stderr


def test_supervisors_programs() -> None:
    """Their commands are ours."""
    parser = configparser.RawConfigParser()
    parser.read_string(blocks("ini")[2])
    commands = [parser[name]["command"].split()[:2] for name in parser.sections()]
    assert commands == [[PROGRAM, "worker"], [PROGRAM, "serve"]]


def test_settings() -> None:
    """Every flag and every variable is one that there is."""
    page = PAGE.read_text("utf-8")
    flags = {*re.findall(r"--([a-z][a-z-]+)", page)} - OTHERS_FLAGS
    variables = {*re.findall(r"CHAIRLIFT_([A-Z_]+)", page)}
    named = {flag.replace("-", "_") for flag in flags} | {name.lower() for name in variables}
    assert not named - SETTINGS
