"""Who owns one request, and who is next. Sans-IO: knows frontends by their ids."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..shared.messages import MAX_GENERATION, Submit


@dataclass(frozen=True, slots=True)
class Takeover:
    """One frontend's last: its number for it, and the generation that it made."""

    attempt: int
    generation: int


@dataclass(slots=True)
class Ownership:
    """A line of readers who may own the request; the first of them is its owner.

    The generation counts the takeovers. After a worker's restart it tells the owner, who comes
    back with the highest, from one that was taken over while it was frozen.

    | what frontend F sends                         | the line              | generation     |
    |-----------------------------------------------|-----------------------|----------------|
    | Submit, of a request that is not known        | F alone               | the Submit's   |
    | Submit, generation equal, or F never owned it | F joins at the end    | stays          |
    | Submit, generation higher                     | F goes to the front * | the Submit's   |
    | Submit, generation lower, F owned it †        | F is fenced off       | stays          |
    | Attach that takes over                        | F replaces the owner  | goes up by one |
    | ... said again, when another took over since  | F is fenced off       | stays          |
    | Attach that takes over what has ended         | F joins at the end    | stays          |
    | Attach that watches                           | as it was             | stays          |
    | Detach, Cancel, a Sync without it, silence    | F leaves it           | stays          |

    * Whoever owned it under another worker is fenced off, wherever in the line, as is the owner
      before by a takeover; an owner who only joined reads on.
    † Also under this worker, when F can't know yet that it was taken over: it was sent before.
    """

    generation: int
    line: list[bytes] = field(default_factory=list)  # of frontend ids
    _takeovers: dict[bytes, Takeover] = field(default_factory=dict)

    @property
    def owner_id(self) -> bytes | None:
        return self.line[0] if self.line else None

    def fences(self, submit: Submit, *, was_owner: bool) -> bool:
        """Whether it comes from an owner whom another has followed."""
        is_owner = submit.frontend_id == self.owner_id
        return was_owner and submit.generation < self.generation and not is_owner

    def submit(self, submit: Submit) -> bool:
        """Whether its sender takes the place of another."""
        is_newer = submit.generation > self.generation
        if is_newer:
            self._lead(submit.frontend_id, submit.generation)
        else:
            self.join(submit.frontend_id)
        return is_newer

    def take_over(self, frontend_id: bytes, attempt: int) -> bool:
        """False when it was said before, and another has come since."""
        if frontend_id != self.owner_id:
            former = self._takeovers.get(frontend_id)
            is_repeated = former is not None and former.attempt == attempt
            if former is not None and is_repeated and former.generation < self.generation:
                return False
            self._lead(frontend_id, min(self.generation + 1, MAX_GENERATION))
        self._takeovers[frontend_id] = Takeover(attempt, self.generation)
        return True

    def join(self, frontend_id: bytes) -> None:
        if frontend_id not in self.line:
            self.line.append(frontend_id)

    def leave(self, frontend_id: bytes) -> None:
        if frontend_id in self.line:
            self.line.remove(frontend_id)

    def _lead(self, frontend_id: bytes, generation: int) -> None:
        self.leave(frontend_id)
        self.line.insert(0, frontend_id)
        self.generation = generation
