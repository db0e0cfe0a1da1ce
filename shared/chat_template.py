"""Chat templates as Hugging Face models ship them: jinja2, sandboxed and bounded.

Reference: https://huggingface.co/docs/transformers/chat_templating_writing
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2

from .bounded_template import BoundedTemplate, TemplateLimitError
from .errors import InvalidRequestError, ModelError

MAX_REASON = 1000  # characters of what a template says when it refuses


class ChatTemplate:
    """Turns messages into the text that the model was trained on."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str]) -> None:
        """Raises ModelError when the source is no template."""
        self._knows_developer = "developer" in str(source)
        self._special_tokens = dict(special_tokens)
        self._template = _compiled(source) if source else None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ChatTemplate:
        """From tokenizer_config.json; of several named templates the one named `default`."""
        source = config.get("chat_template")
        if isinstance(source, list):
            source = next((t.get("template") for t in source if t.get("name") == "default"), None)
        tokens = {k: v for k, v in config.items() if k.endswith("_token") and isinstance(v, str)}
        return cls(source, tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """A developer's message is a system message to templates that know no developer.

        Raises InvalidRequestError, with the template's own words when it refuses.
        """
        if self._template is None:
            raise InvalidRequestError(
                "this model has no chat template: use /v1/completions", code="no_chat_template"
            )
        values = {
            "messages": messages if self._knows_developer else _without_developer(messages),
            "tools": None,  # templates were tried with both defined
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            **self._special_tokens,
        }
        try:
            return self._template.render(values)
        except (TemplateLimitError, RecursionError, MemoryError) as error:
            raise InvalidRequestError(
                f"the model's chat template was stopped: {str(error) or 'no memory is left'}",
                param="messages",
                code="chat_template_limit",
            ) from None
        except Exception as error:  # a template is a program, it may raise anything
            raise InvalidRequestError(
                f"the model's chat template refused the messages: {str(error)[:MAX_REASON]}",
                param="messages",
            ) from None


def _without_developer(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [
        {**message, "role": "system"} if message.get("role") == "developer" else message
        for message in messages
    ]


def _compiled(source: Any) -> BoundedTemplate:
    try:
        return BoundedTemplate(source)
    except Exception as error:  # jinja2's own, but also from Python's compiler, RecursionError too
        raise ModelError(f"the model's chat template can't be compiled: {error}") from None


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
