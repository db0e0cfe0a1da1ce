"""The simulation notices a broken protocol; `scripts/mutants` tries them all."""

from __future__ import annotations

import pytest

from tests.mutants.__main__ import chosen, try_out

# Quick to notice, and of every part.
SAMPLE = (
    "no rewind",
    "the pointer moves on a refused send",
    "nothing is submitted again to a new worker",
    "former epochs are listened to",
    "no grace for orphans",
    "suspects run with the others",
)

pytestmark = [pytest.mark.slow, pytest.mark.checkout]


@pytest.mark.parametrize("name", SAMPLE)
def test_a_broken_protocol_is_noticed(name: str) -> None:
    """A seed of the simulation finds the mutant by one of its rules."""
    (mutant,) = chosen([name], None)
    assert try_out(mutant).rule
