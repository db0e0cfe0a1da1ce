"""Chat templates as Hugging Face models ship them: jinja2, sandboxed, no access to anything.

Reference: https://huggingface.co/docs/transformers/chat_templating_writing
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

from .errors import InvalidRequestError, ModelError


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

        Raises InvalidRequestError with the template's own words when it refuses.
        """
        if self._template is None:
            raise InvalidRequestError(
                "this model has no chat template: use /v1/completions", code="no_chat_template"
            )
        try:
            return self._template.render(
                messages=messages if self._knows_developer else _without_developer(messages),
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except Exception as error:  # a template is a program, it may raise anything
            raise InvalidRequestError(
                f"the model's chat template refused the messages: {error}", param="messages"
            ) from None


def _without_developer(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [
        {**message, "role": "system"} if message.get("role") == "developer" else message
        for message in messages
    ]


def _compiled(source: Any) -> jinja2.Template:
    try:
        return _environment().from_string(source)
    except (jinja2.TemplateError, TypeError) as error:
        raise ModelError(f"the model's chat template can't be compiled: {error}") from None


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(value: Any, indent: int | None = None) -> str:
    """Unlike jinja2's own: no HTML escapes, which no model has seen in training."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
