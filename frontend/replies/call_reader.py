"""Reads calls of tools where an answer's text may have some.

A call begins when its name and its arguments' first brace are there, and is complete with the last
brace: what would close it after that may be missing. Only tools that the request names are called.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Collection

from .json_scanner import JsonScanner
from .pieces import Pieces
from .python_call import PythonScanner, arguments_of
from .tape import SPACE, Reading, Tape
from .tool_format import ToolFormat

BARE = ("{", "[")  # what calls that have no tag begin with
ARGUMENTS = ("arguments", "parameters")
IGNORED = ("id", "type")  # of a call in JSON
LETTERS = frozenset(string.ascii_letters + string.digits + "_-.")
HEADER = re.compile(r"([\w.-]+)(?:\[CALL_ID\]\w*)?\[ARGS\]")
MAX_HEADER = 400


class CallReader:
    """What is no call, or stops being one, is content from there on."""

    def __init__(
        self,
        tape: Tape,
        pieces: Pieces,
        tool_format: ToolFormat | None,
        tool_names: Collection[str],
    ) -> None:
        self._tape = tape
        self._pieces = pieces
        self._syntax = tool_format.syntax if tool_format else "json"
        self._tool_names = frozenset(tool_names)

    def read(self, tag: str) -> Reading[bool]:
        """After the tag, or the bracket, which is held; whether a complete call came last."""
        if tag in BARE:
            self._tape.read_to(self._tape.at - 1)
        is_list = yield from self._read_sign("[")
        yield from self._tape.read_space()
        while (yield from self._read_call(is_list)):
            self._pieces.complete_call()
            yield from self._tape.drop_space()
            sign = yield from self._tape.peek()
            if sign in (",", ";"):
                self._tape.read()
                yield from self._tape.read_space()
            elif sign != "{":
                if sign == "]" and is_list:
                    self._tape.read()
                    yield from self._tape.drop_space()
                return True
        self._pieces.say(self._tape.release())
        return False

    def _read_call(self, is_list: bool) -> Reading[bool]:
        """Whether a complete call was read, then nothing of it is held; else what was no call."""
        if (yield from self._tape.peek()) == "{":
            return (yield from self._read_json_call())
        if self._syntax == "python" and is_list:
            return (yield from self._read_python_call())
        if self._syntax == "name_and_json" and not is_list:
            return (yield from self._read_name_and_json())
        return False

    def _read_json_call(self) -> Reading[bool]:
        """`{"name": "f", "arguments": {}}`, in whichever order."""
        self._tape.read()
        name: str | None = None
        arguments: str | None = None
        while True:
            key = yield from self._read_key()
            if key == "name" and name is None:
                name = yield from self._read_string()
                is_ok = name in self._tool_names
            elif key in ARGUMENTS and arguments is None:
                arguments = yield from self._read_arguments(name)
                is_ok = arguments is not None
            else:
                is_ok = key in IGNORED and (yield from self._read_string()) is not None
            if not is_ok:
                return False
            if name is not None and arguments is not None:
                break
            if not (yield from self._read_sign(",")):
                return False
        if arguments:
            self._give_whole_call(name, arguments)
        yield from self._read_rest_of_call()
        return True

    def _read_rest_of_call(self) -> Reading[None]:
        """The last bracket, which may be missing, and what may stand before it."""
        while not (yield from self._read_sign("}")):
            if not (yield from self._read_sign(",")):
                break
            if (yield from self._read_key()) not in IGNORED:
                break
            if (yield from self._read_string()) is None:
                break
        else:
            self._tape.release()
        if self._tape.held.strip(SPACE):
            self._pieces.say(self._tape.release())

    def _read_name_and_json(self) -> Reading[bool]:
        """`name[ARGS]{}`, in some versions with an id between the two."""
        begin = len(self._tape.held)
        while not (header := self._tape.held[begin:]).endswith("[ARGS]"):
            character = yield from self._tape.peek()
            if character not in LETTERS | {"[", "]"} or len(header) == MAX_HEADER:
                return False
            self._tape.read()
        match = HEADER.fullmatch(header)
        if match is None or match[1] not in self._tool_names:
            return False
        return (yield from self._read_arguments(match[1])) is not None

    def _read_python_call(self) -> Reading[bool]:
        """`name(key=literal)`"""
        begin = len(self._tape.held)
        while (yield from self._tape.peek()) in LETTERS:
            self._tape.read()
        name = self._tape.held[begin:]
        if name not in self._tool_names or not (yield from self._read_sign("(")):
            return False
        bracket = len(self._tape.held) - 1
        if not (yield from self._read_with(PythonScanner())):
            return False
        arguments = arguments_of(self._tape.held[bracket:])
        if arguments is None:
            return False
        self._give_whole_call(name, arguments)
        return True

    def _give_whole_call(self, name: str, arguments: str) -> None:
        self._tape.release()
        self._pieces.begin_call(name)
        self._pieces.pass_on(arguments)

    def _read_arguments(self, name: str | None) -> Reading[str | None]:
        """None when they are no object. Passed on as they come, so that nothing is left to return,
        when it is known whose they are."""
        yield from self._tape.read_space()
        if (yield from self._tape.peek()) != "{":
            return None
        if name is None:
            return (yield from self._read_json())
        self._tape.release()
        self._pieces.begin_call(name)
        is_complete = yield from self._read_with(JsonScanner(), self._pieces.pass_on)
        return "" if is_complete else None

    def _read_key(self) -> Reading[str | None]:
        key = yield from self._read_string()
        return key if (yield from self._read_sign(":")) else None

    def _read_string(self) -> Reading[str | None]:
        yield from self._tape.read_space()
        if (yield from self._tape.peek()) != '"':
            return None
        text = yield from self._read_json()
        return None if text is None else str(json.loads(text))

    def _read_json(self) -> Reading[str | None]:
        begin = len(self._tape.held)
        is_complete = yield from self._read_with(JsonScanner())
        return self._tape.held[begin:] if is_complete else None

    def _read_with(
        self, scanner: JsonScanner | PythonScanner, emit: Callable[[str], None] | None = None
    ) -> Reading[bool]:
        """Whether it found the end."""
        tape = self._tape
        while not scanner.is_complete:
            yield from tape.peek()
            end = scanner.take(tape.text, tape.at)
            if end == tape.at:
                return False
            tape.read_to(end)
            if emit:
                emit(tape.release())
        return True

    def _read_sign(self, sign: str) -> Reading[bool]:
        yield from self._tape.read_space()
        is_there = (yield from self._tape.peek()) == sign
        if is_there:
            self._tape.read()
        return is_there
