"""The grammar of answers whose calls always parse, in llguidance's dialect of Lark.

Reference: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...shared.errors import InvalidRequestError
from ...shared.sampling_params import MAX_GRAMMAR_CHARACTERS, Grammar
from ...shared.tokenizer import Tokenizer
from .reasoning_format import ReasoningFormat
from .tool_format import ToolFormat

NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
ANY_ARGUMENTS = {"type": "object"}
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
ANY_TEXT = "/(?s:.*)/"  # of characters: without it `~` would match what is no character, EOS too
NO_BRACKET_FIRST = r"/([ \t\n\r]*[^ \t\n\r{\[](?s:.*))?/"


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that may be called."""

    name: str
    parameters: Mapping[str, Any] | None = None  # JSON schema
    is_strict: bool = False


@dataclass(frozen=True, slots=True)
class CallGrammar:
    """What the answer's form follows from.

    With a call required each tool's arguments follow its schema, so far as it can be followed, or
    exactly when strict. Else the strict tools' do, and text may come first; where calls have no
    tag, an answer that begins with a bracket is a call then.
    """

    tokenizer: Tokenizer
    tool_format: ToolFormat
    tools: Sequence[Tool]  # that may be called
    is_required: bool
    is_single: bool  # at most one call
    reasoning_format: ReasoningFormat | None = None
    is_reasoning: bool = False  # the prompt ends amid thoughts

    def build(self) -> Grammar:
        """Raises InvalidRequestError where it can't be."""
        if self.tool_format.syntax == "python":
            message = (
                "this model writes its calls as Python, which can't be constrained: send "
                "tool_choice auto, no strict tools and no parallel_tool_calls=false"
            )
            raise InvalidRequestError(message, param="tool_choice")
        source = "\n".join(self._rules())
        if len(source) > MAX_GRAMMAR_CHARACTERS:
            message = f"the tools' schemas take more than {MAX_GRAMMAR_CHARACTERS} characters"
            raise InvalidRequestError(message, param="tools", code="grammar_too_large")
        return Grammar("lark", source)

    def _rules(self) -> Iterator[str]:
        thoughts, without_tag = "", _without(self.tool_format.opening)
        if self.reasoning_format is not None:
            opening, closing = map(self._tag, self.reasoning_format.tags)
            thoughts = "thoughts" if self.is_reasoning else f"({opening} thoughts)?"
            yield rf"thoughts: THOUGHT {closing} /[ \n]{{0,2}}/"
            yield f"THOUGHT: {ANY_TEXT} & {_without(self.reasoning_format.closing)}"
        if self.is_required:
            yield f"start: {thoughts} calls"
        elif self.tool_format.is_bare:
            yield f"start: {thoughts} (TEXT | calls)"
            yield f"TEXT: {NO_BRACKET_FIRST} & {without_tag}"
        else:
            yield f"start: {thoughts} TEXT calls?"
            yield f"TEXT: {ANY_TEXT} & {without_tag}"
        yield from self._calls()
        for number, tool in enumerate(self.tools):
            yield f"arguments_{number}: %json {json.dumps(self._schema(tool))}"

    def _calls(self) -> Iterator[str]:
        begin, between, end = self._frame()
        calls = "call" if self.is_single else f"call ({between} call)*"
        yield f"calls: {begin} {calls} {end}"
        yield f"call: {' | '.join(map(self._call, range(len(self.tools))))}"

    def _frame(self) -> tuple[str, str, str]:
        """What stands before, between and after the calls."""
        opening = self._tag(self.tool_format.opening)
        if self.tool_format.closing:
            closing = self._tag(self.tool_format.closing)
            return rf'{opening} "\n"', rf'"\n" {closing} "\n" {opening} "\n"', rf'"\n" {closing}'
        if self.tool_format.is_bare:
            return "", '"; "', ""
        if self.tool_format.syntax == "name_and_json":
            return opening, opening, ""
        return f'{opening} " "? "["', '", "', '"]"'

    def _call(self, number: int) -> str:
        name = self.tools[number].name
        if self.tool_format.syntax == "name_and_json":
            return f"{json.dumps(name)} {self._tag('[ARGS]')} arguments_{number}"
        key = self.tool_format.arguments_key
        head = f'{{"name": {json.dumps(name)}, "{key}": '
        return f'{json.dumps(head)} arguments_{number} "}}"'

    def _schema(self, tool: Tool) -> Mapping[str, Any]:
        schema = NO_ARGUMENTS if tool.parameters is None else tool.parameters
        if schema.get("type", "object") != "object":
            message = f"the parameters of {tool.name!r} have to be a schema of type object"
            raise InvalidRequestError(message, param="tools")
        if not (self.is_required or tool.is_strict):
            schema = ANY_ARGUMENTS
        guidance = {**SPACING, "lenient": not tool.is_strict}
        return {**schema, "type": "object", "x-guidance": guidance}

    def _tag(self, tag: str) -> str:
        """As the token that it is, or its letters."""
        token_id = self.tokenizer.backend.token_to_id(tag)
        return json.dumps(tag) if token_id is None else f"<[{token_id}]>"


def _without(tag: str) -> str:
    escaped = re.sub(r"([/|[\]])", r"\\\1", tag)  # all that is special in any tag
    return f"~/(?s:.*){escaped}(?s:.*)/"
