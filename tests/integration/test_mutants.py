"""The simulation notices a broken protocol; `scripts/mutants` tries them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.__main__ import ROOT, chosen, try_out
from tests.mutants.catalog import MUTANTS, Mutant

# Quick to notice, and of every part.
SAMPLE = (
    "no rewind",
    "the pointer moves on a refused send",
    "nothing is submitted again to a new worker",
    "former epochs are listened to",
    "no grace for orphans",
    "suspects run with the others",
)

pytestmark = pytest.mark.checkout


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_broken_protocol_is_noticed(name: str) -> None:
    """A seed of the simulation finds the mutant by one of its rules."""
    (mutant,) = chosen([name], None)
    assert try_out(mutant).rule


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_still_fits(mutant: Mutant) -> None:
    """Its text is there once: where the source has changed, the mutant is written anew."""
    assert (ROOT / mutant.file).read_text("utf-8").count(mutant.old) == 1


def test_a_mutant_that_does_not_fit_is_named(tmp_path: Path) -> None:
    """Nothing is tried with a mutant that breaks nothing."""
    (tmp_path / "file.py").write_text("one two two", "utf-8")
    with pytest.raises(ValueError, match=r"'gone'.* 0 times"):
        Mutant("gone", "file.py", "three", "four").apply(tmp_path)
    with pytest.raises(ValueError, match="2 times"):
        Mutant("twice", "file.py", "two", "four").apply(tmp_path)
    Mutant("fits", "file.py", "one", "four").apply(tmp_path)
    assert (tmp_path / "file.py").read_text("utf-8") == "four two two"
