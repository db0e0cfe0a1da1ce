"""`chairlift chat`: a conversation with the worker's model.

The main thread waits for a line, for there Ctrl-C arrives and readline works. So this has the
blocking Client, whose own thread keeps in touch with the worker meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from ...shared.errors import ChairliftError, InvalidRequestError
from ...shared.harmless import harmless
from ...shared.logs import configure_logs
from ...shared.settings import load_settings
from ..sync_client import Client
from .broken_pipe import forget_output
from .chat_settings import ChatSettings
from .conversation import Conversation
from .keyboard import Keyboard
from .live_answer import LiveAnswer
from .plain_answer import PlainAnswer
from .speaker import Speaker

WELCOME = "{model} listens. /help lists the commands; Ctrl-C cuts an answer, Ctrl-D leaves."


def main(arguments: list[str]) -> int:
    """The exit code. What fails raises ChairliftError, but at a terminal the chat goes on."""
    settings = load_settings(ChatSettings, "chat", arguments)
    configure_logs(settings.log_format, settings.log_level)
    with Client(settings.address, curve=settings.load_curve()) as client:
        client.connect()
        chat = Chat(Speaker(client, settings), Conversation(settings.system), Keyboard())
        try:
            chat.run()
        except BrokenPipeError:
            forget_output()
            return 1
    return 0


class Chat:
    """Takes turns: someone at the keyboard, then the speaker."""

    def __init__(self, speaker: Speaker, conversation: Conversation, keyboard: Keyboard) -> None:
        self._speaker = speaker
        self._conversation = conversation
        self._keyboard = keyboard
        self._console = Console()
        self._notes = Console(stderr=True)
        self._is_over = False

    def run(self) -> None:
        """At a terminal what fails is told, and the chat goes on; a script's ends."""
        if self._keyboard.is_terminal:
            self._note(WELCOME.format(model=self._speaker.name))
        for turn in self._keyboard.turns():
            try:
                self._take(turn)
            except ChairliftError as error:
                if not self._keyboard.is_terminal:
                    raise
                self._note(str(error), style="red")
            if self._is_over:
                return

    def _take(self, turn: str) -> None:
        if not turn.startswith("/"):
            self._conversation.ask(turn.strip())
            self._answer()
            return
        name, _, rest = turn.partition(" ")
        if name not in COMMANDS:
            raise InvalidRequestError(
                f"there is no {name}: use {', '.join(COMMANDS)}, or begin with a space what "
                "is meant for the model"
            )
        command = COMMANDS[name]
        if rest.strip() and not command.takes_text:
            raise InvalidRequestError(f"{name} takes no text")
        command.run(self, rest.strip())

    def _answer(self) -> None:
        """What came of an answer is kept, also when it was cut or failed."""
        said: list[str] = []
        reason = None
        try:
            pieces = self._speaker.answer(self._conversation.messages)
            with self._keyboard.hushed(), self._paper() as paper, closing(pieces):
                for piece in pieces:
                    said.append(piece.chunk.content)
                    paper.add(piece.chunk)
                    reason = piece.finish_reason
        except KeyboardInterrupt:
            if not self._keyboard.is_terminal:
                raise
            self._note("cut")
        finally:
            self._conversation.answer("".join(said))
        if reason == "length":
            self._note("cut: no more tokens fit, or --max-tokens allows no more")

    def _paper(self) -> LiveAnswer | PlainAnswer:
        """What the answer is written on."""
        if sys.stdout.isatty() and not self._console.is_dumb_terminal:
            return LiveAnswer(self._console)
        return PlainAnswer(sys.stdout)

    def _note(self, text: str, style: str = "dim") -> None:
        self._notes.print(Text(harmless(text)), style=style, soft_wrap=True)

    def _help(self, _: str) -> None:
        for name, command in COMMANDS.items():
            self._note(f"{name + ' TEXT' * command.takes_text:14} {command.duty}")

    def _retry(self, _: str) -> None:
        self._conversation.ask_again()
        self._answer()

    def _system(self, text: str) -> None:
        self._conversation.system = text
        self._note("from now on the model is told this first" if text else "nothing is told first")

    def _clear(self, _: str) -> None:
        self._conversation.clear()
        self._note("forgotten")

    def _exit(self, _: str) -> None:
        self._is_over = True


@dataclass(frozen=True, slots=True)
class Command:
    duty: str
    run: Callable[[Chat, str], None]
    takes_text: bool = False


COMMANDS = {
    "/help": Command("lists the commands", Chat._help),
    "/retry": Command("forgets the last answer and asks for another", Chat._retry),
    "/system": Command("is what the model is told before all else", Chat._system, takes_text=True),
    "/clear": Command("forgets the conversation", Chat._clear),
    "/exit": Command("leaves, like Ctrl-D", Chat._exit),
}
