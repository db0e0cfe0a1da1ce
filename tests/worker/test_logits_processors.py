"""Processors that an operator declares: found by their names, refused with a reason, or applied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chairlift.shared.settings import WorkerSettings, load_settings
from chairlift.worker.logits_processors import (
    GROUP,
    LogitsProcessorError,
    load_logits_processors,
    process,
)

SOURCE = """
import torch

def never_seven(output_token_ids, logits):
    logits[7] = float("-inf")

def flat(output_token_ids, logits):
    return torch.zeros_like(logits)

number = 3
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a package with these entry points on the path, as pip would."""

    def install(entry_points: str) -> None:
        (tmp_path / "lift_processors.py").write_text(SOURCE)
        about = tmp_path / "lift_processors-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: lift-processors\nVersion: 1\n"
        )
        (about / "entry_points.txt").write_text(f"[{GROUP}]\n{entry_points}\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


def test_named_processors_come_in_the_order_of_their_names(install: Callable[[str], None]) -> None:
    """Whatever order the package declares them in."""
    install("flat = lift_processors:flat\nnever_seven = lift_processors:never_seven")
    processors = load_logits_processors(["never_seven", "flat"])
    assert [processor.__name__ for processor in processors] == ["never_seven", "flat"]
    row = torch.ones(10)
    process(processors[0], [], row)
    assert row[7] == float("-inf")
    process(processors[1], [], row)
    assert not row.any()


def test_none_are_applied_unless_they_are_named(install: Callable[[str], None]) -> None:
    """An installed package alone changes nothing."""
    install("flat = lift_processors:flat")
    assert load_logits_processors(()) == ()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("typo", "declares 'typo'.*declared: gone, missing, number"),
        ("missing", r"lift_processors:nothing\) can't be loaded"),
        ("gone", "no_such_module"),
        ("number", "can't be called"),
    ],
)
def test_what_cannot_be_had_is_refused_with_its_name(
    install: Callable[[str], None], name: str, why: str
) -> None:
    """The error names the flag, the processor, and what there is instead."""
    install(
        "missing = lift_processors:nothing\ngone = no_such_module:x\n"
        "number = lift_processors:number"
    )
    with pytest.raises(LogitsProcessorError, match=why) as error:
        load_logits_processors([name])
    assert str(error.value).startswith("--logits-processors: ")


def test_setting_is_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a flag and in the environment; empty by default."""
    monkeypatch.delenv("CHAIRLIFT_LOGITS_PROCESSORS", raising=False)
    assert load_settings(WorkerSettings, "worker", []).logits_processors == ()
    given = load_settings(WorkerSettings, "worker", ["--logits-processors", "a,b_c"])
    assert given.logits_processors == ("a", "b_c")
    monkeypatch.setenv("CHAIRLIFT_LOGITS_PROCESSORS", "x")
    assert load_settings(WorkerSettings, "worker", []).logits_processors == ("x",)
