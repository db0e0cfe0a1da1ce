"""What was said so far, as the chat template takes it."""

from __future__ import annotations

from dataclasses import dataclass

from ...shared.errors import InvalidRequestError
from ..prompt import ChatMessage


@dataclass
class Turn:
    """A question, and what came of its answer: nothing, if that failed or was cut at once."""

    question: str
    answer: str = ""


class Conversation:
    """Only its last question may lack an answer. Another one takes that one's place then, since
    many templates want question and answer to alternate."""

    def __init__(self, system: str = "") -> None:
        self.system = system
        self._turns: list[Turn] = []

    @property
    def messages(self) -> list[ChatMessage]:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self._turns:
            messages.append({"role": "user", "content": turn.question})
            if turn.answer:
                messages.append({"role": "assistant", "content": turn.answer})
        return [*messages]

    def ask(self, question: str) -> None:
        if self._turns and not self._turns[-1].answer:
            self._turns.pop()
        self._turns.append(Turn(question))

    def ask_again(self) -> None:
        """Forgets the last answer; raises InvalidRequestError when nothing was asked yet."""
        if not self._turns:
            raise InvalidRequestError("nothing was asked yet")
        self._turns[-1].answer = ""

    def answer(self, text: str) -> None:
        self._turns[-1].answer = text

    def clear(self) -> None:
        """Keeps what the model is told before all else."""
        self._turns.clear()
