"""Frontends of other packages: installed by pip, found by name, refused with a reason."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.processes import environment_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "frontends.md"

Install = Callable[..., Path]


def run(folder: Path, *arguments: str, address: str = "") -> subprocess.CompletedProcess[str]:
    """`chairlift serve ARGUMENTS` with what is installed in the folder."""
    environment = environment_of({"address": address} if address else {})
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-m", "chairlift", "serve", *arguments],
        env=environment | {"PYTHONPATH": os.pathsep.join(path)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def declared(folder: Path, package: str, **frontends: str) -> None:
    """Puts a package that declares these on the path, as pip would."""
    about = folder / f"{package}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    lines = [f"{name} = {value}" for name, value in frontends.items()]
    (about / "entry_points.txt").write_text("\n".join(["[chairlift.frontends]", *lines]))


@pytest.mark.checkout
@pytest.mark.usefixtures("worker")
def test_the_page_s_package(tmp_path: Path, worker_address: str) -> None:
    """Built and installed as the page has it, it answers with the worker's text."""
    project, installed = tmp_path / "project", tmp_path / "installed"
    project.mkdir()
    page = PAGE.read_text("utf-8")
    for name, language in [("pyproject.toml", "toml"), ("chairlift_shout.py", "python")]:
        (block,) = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
        (project / name).write_text(block)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "-qq"]
    command += ["--no-build-isolation", "--root-user-action=ignore", "--target", str(installed)]
    subprocess.run([*command, str(project)], check=True, timeout=100)
    options = ("--frontend", "shout", "--max-tokens", "20", "abc")
    done = run(installed, *options, address=worker_address)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and done.stdout == done.stdout.upper()


def test_its_errors_are_told_in_a_line(tmp_path: Path) -> None:
    """A ChairliftError that leaves a frontend needs no traceback."""
    (tmp_path / "wrong.py").write_text(
        "import chairlift\ndef main(arguments): raise chairlift.ChairliftError(*arguments)\n"
    )
    declared(tmp_path, "wrong", wrong="wrong:main")
    done = run(tmp_path, "--frontend=wrong", "out of order")
    assert (done.returncode, done.stderr) == (1, "chairlift serve: out of order\n")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fly", r"no installed package declares a frontend 'fly'; declared: (\w+, )+missing"),
        ("gone", r"the frontend 'gone' of odd needs no_such_module, which is not installed"),
        ("needy", r"the frontend 'needy' of odd needs no_such_library, which is not installed"),
        ("missing", r"'missing' \(odd:nothing of odd\) can't be imported: AttributeError"),
        ("number", r"'number' \(odd:number of odd\) can't be called"),
        ("twice", r"odd and other both declare a frontend 'twice': uninstall one"),
    ],
)
def test_what_cannot_be_had(tmp_path: Path, name: str, said: str) -> None:
    """One line says what there is or what is missing, and the exit code is 2."""
    (tmp_path / "odd.py").write_text("number = 3\n")
    (tmp_path / "needy.py").write_text("import no_such_library.part\n")
    declared(
        tmp_path,
        "odd",
        missing="odd:nothing",
        number="odd:number",
        gone="no_such_module:main",
        needy="needy:main",
        twice="odd:main",
    )
    declared(tmp_path, "other", twice="other:main")
    done = run(tmp_path, "--frontend", name)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("chairlift serve: ") and re.search(said, line), line
