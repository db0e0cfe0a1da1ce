"""How the reply to one conversation is going to be read, and what it is held to."""

from __future__ import annotations

from dataclasses import dataclass

from ...shared.errors import InvalidRequestError
from ...shared.sampling_params import Grammar
from ...shared.tokenizer import Tokenizer
from ..replies.reasoning_format import ReasoningFormat, detect_reasoning
from ..replies.reply_grammar import ReplyGrammar
from ..replies.tool_format import TOOL_FORMATS, ToolFormat, detect_tool_format
from .tools import ToolUse

PROMPT_END = 8  # tokens, in which thoughts may be opened


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the model writes calls and thoughts, so far as it does."""

    tokenizer: Tokenizer
    tool_format: ToolFormat | None
    reasoning_format: ReasoningFormat | None

    @classmethod
    def of(cls, tokenizer: Tokenizer, tool_format: str) -> Dialect:
        """With the tool format of this name, or with `auto` the one that the template tells of."""
        source = tokenizer.chat_template.source
        known = TOOL_FORMATS.get(tool_format)
        if tool_format == "auto":
            known = detect_tool_format(source)
        return cls(tokenizer, known, detect_reasoning(source))

    def plan(
        self,
        prompt: list[int],
        continued: str | None,
        tools: ToolUse,
        output: Grammar | None,
        grammar_param: str,
    ) -> ReplyPlan:
        """For a prompt that ends with the `continued` text of the final message, or with none.

        Raises InvalidRequestError for what this model can't be held to.
        """
        if tools.callable and self.tool_format is None:
            message = (
                "this model's chat template knows of no tools: leave them out, or tell the server "
                "how the model calls them with --tool-format"
            )
            raise InvalidRequestError(message, param="tools", code="unsupported_parameter")
        tool_format = self.tool_format if tools.callable else None
        is_reasoning = self._is_reasoning(prompt, continued)
        needs_frame = output is not None and (tool_format or self.reasoning_format)
        if tools.needs_grammar or needs_frame:
            output = ReplyGrammar(
                self.tokenizer,
                tool_format,
                tools.callable,
                tools.is_required,
                tools.is_single,
                output,
                self.reasoning_format,
                is_reasoning,
            ).build()
        return ReplyPlan(
            tool_format,
            self.reasoning_format,
            tools.names,
            is_reasoning,
            output,
            "tools" if output and (tools.is_required or not grammar_param) else grammar_param,
            self._has_special_tags(tool_format),
        )

    def _is_reasoning(self, prompt: list[int], continued: str | None) -> bool:
        if self.reasoning_format is None:
            return False
        if continued is not None:
            return self.reasoning_format.is_left_open_by(continued)
        return self.reasoning_format.is_opened_by(self.tokenizer.text_of(prompt[-PROMPT_END:]))

    def _has_special_tags(self, tool_format: ToolFormat | None) -> bool:
        formats = [one for one in (tool_format, self.reasoning_format) if one]
        return any(self.tokenizer.is_special(tag) for one in formats for tag in one.tags)


@dataclass(frozen=True, slots=True)
class ReplyPlan:
    """Without anything known of the model, text is text."""

    tool_format: ToolFormat | None = None
    reasoning_format: ReasoningFormat | None = None
    tool_names: tuple[str, ...] = ()  # of those that may be called
    is_reasoning: bool = False  # the prompt ends amid thoughts
    grammar: Grammar | None = None
    grammar_param: str = ""  # the field to blame for it
    has_special_tags: bool = False  # special tokens have to be part of the text
