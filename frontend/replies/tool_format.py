"""How a family of models writes its calls of tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """Calls come after `opening`, if it is not bare also at the very beginning."""

    name: str
    opening: str
    closing: str = ""
    is_bare: bool = False
    syntax: Literal["json", "python", "name_and_json"] = "json"
    arguments_key: str = "arguments"  # for what is constrained; read is either
    has_short_ids: bool = False

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.opening, self.closing) if self.closing else (self.opening,)


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>")
LLAMA_JSON = ToolFormat("llama_json", "<|python_tag|>", is_bare=True, arguments_key="parameters")
PYTHONIC = ToolFormat(
    "pythonic", "<|python_start|>", "<|python_end|>", is_bare=True, syntax="python"
)
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", has_short_ids=True)
MISTRAL_ARGS = ToolFormat(
    "mistral_args", "[TOOL_CALLS]", syntax="name_and_json", has_short_ids=True
)
TOOL_FORMATS = {one.name: one for one in (HERMES, LLAMA_JSON, PYTHONIC, MISTRAL, MISTRAL_ARGS)}


def detect_tool_format(template_source: str) -> ToolFormat | None:
    """By what the chat template tells the model to write; None when it knows of no tools."""
    if "[TOOL_CALLS]" in template_source:
        return MISTRAL_ARGS if "[ARGS]" in template_source else MISTRAL
    if "<tool_call>" in template_source:
        return HERMES if "<function=" not in template_source else None  # XML, which isn't read here
    if "[func_name1(" in template_source:
        return PYTHONIC
    if '"parameters"' in template_source and "python" in template_source:
        return LLAMA_JSON
    return PYTHONIC if PYTHONIC.opening in template_source else None
