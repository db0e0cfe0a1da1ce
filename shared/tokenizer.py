"""Text to token ids and back, and the chat template that turns messages into text.

Text that a user wrote can't smuggle in a special token: those that it spells are encoded as the
ordinary characters they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from .chat_template import CONTINUED, ChatTemplate, with_parsed_arguments
from .errors import ContextLengthError, InvalidRequestError, ModelError
from .messages import TokenizerFiles
from .token_bytes import TokenBytes

# Private-use characters around a number stand for a special token that the template wrote, and
# for the spelling of one that a user wrote; users can't write these characters themselves.
_MARK = "\ue0f0{}\ue0f1"
_HIDDEN = "\ue0f2{}\ue0f3"
_HIDDEN_PATTERN = re.compile("\ue0f2([0-9]+)\ue0f3")
# Half a surrogate pair, as the JSON in a tool call may spell one, is no character either.
_RESERVED = re.compile(f"[\ue0f0-\ue0f3{CONTINUED}\ud800-\udfff]")


class Tokenizer:
    """Wraps one `tokenizer.json` and the chat template that belongs to it."""

    def __init__(self, tokenizer_json: bytes, config_json: bytes = b"{}") -> None:
        """Raises ModelError when either can't be read."""
        self._tokenizer_json = tokenizer_json
        self._config_json = config_json
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer_json)
            self._plain = tokenizers.Tokenizer.from_buffer(tokenizer_json)
            config = json.loads(config_json)
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelError(f"the tokenizer files can't be read: {error}") from None
        for tokenizer in (self._tokenizer, self._plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        special = {i: token for i, token in added.items() if token.special}
        self._special_tokens = [token.content for token in special.values()]
        self._numbers = {content: n for n, content in enumerate(self._special_tokens)}
        longest_first = sorted(self._special_tokens, key=len, reverse=True)
        self._spelled_special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._plain.encode_special_tokens = True
        self._plain.add_tokens([_mark_like(t, n) for n, t in enumerate(special.values())])
        self._ids_of_marks = {
            self._plain.token_to_id(_MARK.format(n)): i for n, i in enumerate(special)
        }
        self.chat_template = ChatTemplate.from_config(config)

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Reads tokenizer.json, tokenizer_config.json and chat_template.jinja, like Hugging Face.

        Raises ModelError when there is no tokenizer.json.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{folder} has no tokenizer.json: save it with a fast tokenizer")
        return cls(path.read_bytes(), _read_config(folder))

    @classmethod
    def from_files(cls, files: TokenizerFiles) -> Tokenizer:
        return cls(files.tokenizer_json, files.config_json)

    @property
    def files(self) -> TokenizerFiles:
        return TokenizerFiles(self._tokenizer_json, self._config_json)

    @property
    def fingerprint(self) -> bytes:
        """8 bytes that change with the tokenizer."""
        return hashlib.sha256(self._tokenizer_json).digest()[:8]

    @property
    def template_fingerprint(self) -> bytes:
        """8 bytes that change with the chat template and its special tokens."""
        return hashlib.sha256(self._config_json).digest()[:8]

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The library's own object, for the worker's incremental decoding."""
        return self._tokenizer

    def check_can_fit(self, num_characters: int, max_tokens: int, *, param: str) -> None:
        """Before the work of encoding: raises ContextLengthError for a text that would be too long
        even if it consisted of the longest tokens there are."""
        if num_characters > max_tokens * self._longest_token:
            raise ContextLengthError(
                f"{num_characters} characters are more than the {max_tokens} tokens that this "
                "model takes: shorten the text",
                param=param,
            )

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """A raw prompt: what the tokenizer itself puts around a text (BOS), then plain text."""
        clean = _RESERVED.sub("", text)
        ids: list[int] = self._plain.encode(clean, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """All at once, special tokens left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def text_of(self, token_ids: Sequence[int]) -> str:
        """All at once, special tokens too."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def is_special(self, text: str) -> bool:
        """Whether it is a special token, which is left out of an answer's text by default."""
        return text in self._numbers

    def token_bytes(self, token_id: int) -> bytes:
        """What it adds to the text's UTF-8; a special token its name, an unknown id nothing."""
        return self._token_bytes[token_id]

    @cached_property
    def _token_bytes(self) -> TokenBytes:
        return TokenBytes(self._tokenizer)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[int]:
        """The messages through the chat template; see its `render`.

        Only the template adds special tokens. Raises InvalidRequestError when there is no
        template or it refuses the messages.
        """
        try:
            rendered = self.chat_template.render(
                self._hidden(with_parsed_arguments(messages)),
                tools=self._hidden(tools) if tools else None,
                template_kwargs=self._hidden(template_kwargs or {}),
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
        except RecursionError:
            raise InvalidRequestError(
                "the messages or tools are nested too deeply", param="messages"
            ) from None
        marked = self._spelled_special.sub(lambda match: self._as(_MARK, match), rendered)
        text = _HIDDEN_PATTERN.sub(lambda match: self._special_tokens[int(match[1])], marked)
        ids = self._plain.encode(text, add_special_tokens=False).ids
        return [self._ids_of_marks.get(token_id, token_id) for token_id in ids]

    def _hidden(self, value: Any) -> Any:
        """The same with every special token spelled in its strings hidden, names included."""
        if isinstance(value, str):
            clean = _RESERVED.sub("", value)
            return self._spelled_special.sub(lambda match: self._as(_HIDDEN, match), clean)
        if isinstance(value, Mapping):
            return {self._hidden(key): self._hidden(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self._hidden(item) for item in value]
        return value

    def _as(self, form: str, match: re.Match[str]) -> str:
        return form.format(self._numbers[match.group()])


def _mark_like(token: tokenizers.AddedToken, number: int) -> tokenizers.AddedToken:
    """Not special, so that it is found where special tokens are taken for text."""
    return tokenizers.AddedToken(
        _MARK.format(number),
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=False,
        special=False,
    )


def _read_config(folder: Path) -> bytes:
    """Template and special token names alone, so that the fingerprint means just these."""
    config: dict[str, Any] = {}
    path = folder / "tokenizer_config.json"
    if path.is_file():
        try:
            config = json.loads(path.read_bytes())
        except ValueError as error:
            raise ModelError(f"{path} is no JSON: {error}") from None
    template_file = folder / "chat_template.jinja"
    if template_file.is_file():
        config["chat_template"] = template_file.read_text(encoding="utf-8")
    kept = {
        name: _token_text(value)
        for name, value in sorted(config.items())
        if name == "chat_template" or name.endswith("_token")
    }
    return json.dumps(kept, ensure_ascii=False).encode()


def _token_text(value: Any) -> Any:
    """Special tokens are strings, or objects that have the string as `content`."""
    return value["content"] if isinstance(value, dict) and "content" in value else value
