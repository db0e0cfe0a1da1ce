"""The grammar of replies that think first, call tools or say what they must.

In llguidance's dialect of Lark.

Reference: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...shared.errors import InvalidRequestError
from ...shared.sampling_params import MAX_GRAMMAR_BYTES, Grammar
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
class ReplyGrammar:
    """What the reply's form follows from.

    With a call required each tool's arguments follow its schema, so far as it can be followed, or
    exactly when strict. Else the strict tools' do, and instead of calls may come what `output`
    describes. Without that, text may come before them; where calls have no tag, a reply that begins
    with a bracket is a call then.
    """

    tokenizer: Tokenizer
    tool_format: ToolFormat | None
    tools: Sequence[Tool] = ()  # that may be called
    is_required: bool = False
    is_single: bool = False  # at most one call
    output: Grammar | None = None
    reasoning_format: ReasoningFormat | None = None
    is_reasoning: bool = False  # the prompt ends amid thoughts

    def build(self) -> Grammar:
        """Raises InvalidRequestError where it can't be."""
        if self.tool_format is not None and self.tool_format.syntax == "python":
            message = (
                "this model writes its calls as Python, which can't be constrained: send "
                "tool_choice auto, no strict tools, no parallel_tool_calls=false and no "
                "response_format"
            )
            raise InvalidRequestError(message, param="tool_choice")
        rules = "\n".join(self._rules())
        if len(rules.encode()) > MAX_GRAMMAR_BYTES:
            message = f"the tools' schemas take more than {MAX_GRAMMAR_BYTES} bytes"
            raise InvalidRequestError(message, param="tools", code="grammar_too_large")
        if self.output is None or self.is_required:
            return Grammar("lark", rules)
        return Grammar(self.output.kind, self.output.source, rules)

    def _rules(self) -> Iterator[str]:
        thoughts = ""
        if self.reasoning_format is not None:
            opening = self._tag(self.reasoning_format.opening)
            thoughts = "thoughts" if self.is_reasoning else f"({opening} thoughts)?"
            yield r"thoughts: thought /[ \n]{0,2}/"
            yield from self._up_to("thought", self.reasoning_format.closing)
        if self.tool_format is None:
            yield f"start: {thoughts} @output"
            return
        yield from self._after(thoughts, self.tool_format)
        yield from self._calls(self.tool_format)
        for number, tool in enumerate(self.tools):
            schema = json.dumps(self._schema(tool), ensure_ascii=False)
            yield f"arguments_{number}: %json {schema}"

    def _after(self, thoughts: str, tool_format: ToolFormat) -> Iterator[str]:
        without_tag = _without(tool_format.opening)
        if self.is_required:
            yield f"start: {thoughts} calls"
        elif self.output is not None:
            yield f"start: {thoughts} (@output | calls)"
        elif tool_format.is_bare:
            yield f"start: {thoughts} (TEXT | calls)"
            yield f"TEXT: {NO_BRACKET_FIRST} & {without_tag}"
        else:
            yield f"start: {thoughts} (TEXT | text opened)"
            yield f"TEXT: {ANY_TEXT} & {without_tag}"
            yield from self._up_to("text", tool_format.opening)

    def _calls(self, tool_format: ToolFormat) -> Iterator[str]:
        begin, between, end = self._frame(tool_format)
        calls = "call" if self.is_single else f"call ({between} call)*"
        opening = "" if tool_format.is_bare else self._tag(tool_format.opening)
        yield f"calls: {opening} opened"
        yield f"opened: {begin} {calls} {end}"
        each = (self._call(tool_format, number) for number in range(len(self.tools)))
        yield f"call: {' | '.join(each)}"

    def _frame(self, tool_format: ToolFormat) -> tuple[str, str, str]:
        """What stands before, between and after the calls, once they are opened."""
        opening = self._tag(tool_format.opening)
        if tool_format.closing:
            closing = self._tag(tool_format.closing)
            return r'"\n"', rf'"\n" {closing} "\n" {opening} "\n"', rf'"\n" {closing}'
        if tool_format.is_bare:
            return "", '"; "', ""
        if tool_format.syntax == "name_and_json":
            return "", opening, ""
        return '" "? "["', '", "', '"]"'

    def _call(self, tool_format: ToolFormat, number: int) -> str:
        name = self.tools[number].name
        if tool_format.syntax == "name_and_json":
            return f"{json.dumps(name)} {self._tag('[ARGS]')} arguments_{number}"
        key = tool_format.arguments_key
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

    def _up_to(self, rule: str, tag: str) -> Iterator[str]:
        """A rule for any text and then the tag. Of letters the tag would be a part of the longest
        text, which can't end amid it: so that is the shortest text which ends with the tag."""
        if self.tokenizer.backend.token_to_id(tag) is None:
            yield f"{rule}[lazy]: /(?s:.*){_escaped(tag)}/"
        else:
            yield f"{rule}: {rule.upper()}_LESS_TAG {self._tag(tag)}"
            yield f"{rule.upper()}_LESS_TAG: {ANY_TEXT} & {_without(tag)}"


def _without(tag: str) -> str:
    return f"~/(?s:.*){_escaped(tag)}(?s:.*)/"


def _escaped(tag: str) -> str:
    """With what is special in any tag."""
    return re.sub(r"([/|[\]])", r"\\\1", tag)
