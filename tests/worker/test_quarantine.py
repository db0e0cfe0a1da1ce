"""Which requests may join a step, after deaths of the worker."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chairlift.worker import quarantine as module
from chairlift.worker.pulse import Pulse
from chairlift.worker.quarantine import MAX_CHANCES, Quarantine

A, B, C = (letter * 16 for letter in (b"a", b"b", b"c"))


class Deaths:
    """A quarantine, and workers that die in a step."""

    def __init__(self) -> None:
        self.pulse = Pulse(32)
        self.quarantine = Quarantine(self.pulse)

    def die(self, *in_step: bytes, by_chance: bool = False) -> bytes | None:
        self.pulse.begin_step(in_step)
        condemned = self.quarantine.learn(by_chance=by_chance)
        self.pulse.reset()
        return condemned

    def suspects(self) -> set[bytes]:
        return {request_id for request_id in (A, B, C) if self.quarantine.is_suspect(request_id)}


def test_nobody_is_suspected_without_a_death() -> None:
    """A quarantine of its own knows no requests."""
    quarantine = Quarantine()
    assert not quarantine.is_suspect(A)
    assert not quarantine.is_condemned(A)


def test_all_in_the_fatal_step_are_suspects() -> None:
    """Those in the step are, others are not, and nobody is condemned for one death."""
    deaths = Deaths()
    assert deaths.die(A, B) is None
    assert deaths.suspects() == {A, B}
    assert not any(map(deaths.quarantine.is_condemned, (A, B, C)))


def test_a_lone_request_is_condemned_at_its_second_death_only() -> None:
    """The only request of an idle worker gets its lone step as well."""
    deaths = Deaths()
    assert deaths.die(A) is None
    assert deaths.die(A) == A
    assert deaths.quarantine.is_condemned(A)
    assert not deaths.quarantine.is_suspect(A)


def test_who_ran_alone_is_cleared() -> None:
    """Cleared in the worker at once, and in the parent after that worker's death."""
    deaths = Deaths()
    deaths.die(A, B)
    deaths.pulse.clear(A)
    assert deaths.suspects() == {B}
    assert deaths.die(B) == B
    assert deaths.suspects() == set()
    assert not deaths.quarantine.is_condemned(A)


def test_who_had_no_turn_stays_a_suspect() -> None:
    """The death of another suspect says nothing of those that wait for their lone step."""
    deaths = Deaths()
    deaths.die(A, B, C)
    assert deaths.die(B) == B
    assert deaths.suspects() == {A, C}


def test_a_death_outside_of_steps_accuses_nobody() -> None:
    """While it loads or waits, a worker dies of something else."""
    deaths = Deaths()
    assert deaths.die() is None
    assert deaths.suspects() == set()


def test_chance_condemns_after_three_strikes() -> None:
    """A SIGKILL from outside may hit a lone step twice; the third time it is the request."""
    deaths = Deaths()
    deaths.die(A, by_chance=True)
    for _ in range(MAX_CHANCES - 1):
        assert deaths.die(A, by_chance=True) is None
        assert deaths.suspects() == {A}
    assert deaths.die(A, by_chance=True) == A


def test_strikes_end_with_a_clearing() -> None:
    """Who ran alone in between starts over."""
    deaths = Deaths()
    for _ in range(3 * MAX_CHANCES):
        deaths.die(A, by_chance=True)
        assert deaths.die(A, by_chance=True) is None
        deaths.pulse.clear(A)
        deaths.die(by_chance=True)
    assert not deaths.quarantine.is_condemned(A)


@given(st.lists(st.lists(st.sampled_from([A, B, C]), unique=True), max_size=30))
def test_only_a_lone_suspect_is_condemned(steps: list[list[bytes]]) -> None:
    """Whatever deaths come, nobody is condemned but for a lone step as a suspect."""
    deaths = Deaths()
    for in_step in steps:
        suspects = deaths.suspects()
        condemned = deaths.die(*in_step)
        is_due = len(in_step) == 1 and in_step[0] in suspects
        assert condemned == (in_step[0] if is_due else None)


def test_the_oldest_are_forgotten() -> None:
    """Memory is bounded: beyond the limits the oldest suspects and condemned go."""
    pulse = Pulse(module.MAX_SUSPECTS + 1)
    quarantine = Quarantine(pulse)
    many = [number.to_bytes(16, "big") for number in range(module.MAX_SUSPECTS + 1)]
    pulse.begin_step(many)
    quarantine.learn(by_chance=False)
    assert not quarantine.is_suspect(many[0])
    assert all(map(quarantine.is_suspect, many[1:]))
