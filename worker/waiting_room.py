"""Where sequences wait for their grammars to be compiled. The threads are the compiler's."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .faults import error_of, finish_of
from .grammar import Compilation, GrammarCompiler, GrammarError
from .sequence import Sequence

POLL_S = 0.002  # a grammar takes about one millisecond


@dataclass(frozen=True, slots=True)
class Guest:
    """Goes on after the output tokens that its request has had, when it has its constraint."""

    sequence: Sequence
    output_token_ids: list[int]
    compilation: Compilation


class WaitingRoom:
    """Owns the sequences between their arrival and the scheduler. A sequence leaves it when its
    grammar is compiled, or can't be, or takes too long; or it is taken out, having ended."""

    def __init__(self, compiler: GrammarCompiler | None = None) -> None:
        self._compiler = compiler
        self._guests: dict[Sequence, Guest] = {}

    def __len__(self) -> int:
        return len(self._guests)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._guests

    @property
    def patience_s(self) -> float:
        """How long nobody need look at what is compiled."""
        return POLL_S if self._guests else math.inf

    @property
    def has_news(self) -> bool:
        return any(guest.compilation.future.done() for guest in self._guests.values())

    def enter(self, sequence: Sequence, output_token_ids: list[int]) -> None:
        """Raises GrammarError where there is no compiler."""
        grammar = sequence.params.grammar
        assert grammar is not None, "nothing to wait for"
        if self._compiler is None:
            message = "this worker can't constrain its model's output"
            raise GrammarError(message, code="grammar_not_supported")
        compilation = self._compiler.start(grammar)
        self._guests[sequence] = Guest(sequence, output_token_ids, compilation)

    def discard(self, sequence: Sequence) -> bool:
        """Whether it was here."""
        guest = self._guests.pop(sequence, None)
        if guest is not None and self._compiler is not None:
            self._compiler.leave(guest.compilation)
        return guest is not None

    def leaving(self) -> list[Guest]:
        """Those who have their constraint now, or their finish, in the order of their arrival."""
        guests = [guest for guest in self._guests.values() if self._has_waited(guest)]
        for guest in guests:
            self.discard(guest.sequence)
        return guests

    def _has_waited(self, guest: Guest) -> bool:
        sequence = guest.sequence
        error = error_of(lambda: self._constrain(guest))
        if error is not None:
            sequence.finish = finish_of(sequence, error)
        return sequence.constraint is not None or sequence.finish is not None

    def _constrain(self, guest: Guest) -> None:
        assert self._compiler is not None
        guest.sequence.constraint = self._compiler.result(guest.compilation)
