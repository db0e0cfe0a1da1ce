"""How a family of models tells what it thinks from what it says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """What is thought stands between two tags, at the beginning."""

    name: str
    opening: str
    closing: str

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.opening, self.closing)

    def is_opened_by(self, prompt_end: str) -> bool:
        """Whether a prompt ends with the opening tag, so that the answer begins with thoughts."""
        return prompt_end.rstrip().endswith(self.opening)

    def is_left_open_by(self, message: str) -> bool:
        """Whether the message that the answer continues stops amid thoughts."""
        return message.rfind(self.opening) > message.rfind(self.closing)


THINK = ReasoningFormat("think", "<think>", "</think>")
MISTRAL_THINK = ReasoningFormat("mistral", "[THINK]", "[/THINK]")
REASONING_FORMATS = {one.name: one for one in (THINK, MISTRAL_THINK)}


def detect_reasoning(template_source: str) -> ReasoningFormat | None:
    """By the tags that the chat template takes out of earlier answers, or puts into the prompt."""
    for one in REASONING_FORMATS.values():
        if one.opening in template_source or one.closing in template_source:
            return one
    return None
