"""Text to token ids and back, and the chat template that turns messages into text.

Text that a user wrote can't smuggle in a special token: those that it spells are encoded as the
ordinary characters they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from .chat_template import ChatTemplate
from .errors import ModelError
from .messages import TokenizerFiles

# Private-use characters around a number stand for a special token's spelling in user text while
# the template is rendered; the pattern finds them again.
_MARK = "\ue0f0{}\ue0f1"
_MARKED = re.compile("\ue0f0([0-9]+)\ue0f1")


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
        self._plain.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._special_tokens = sorted((t.content for t in added if t.special), key=len)[::-1]
        self._spelled_special = re.compile("|".join(map(re.escape, self._special_tokens)) or "$^")
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
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The library's own object, for the worker's incremental decoding."""
        return self._tokenizer

    def encode(self, text: str) -> list[int]:
        """A raw prompt: what the tokenizer itself puts around a text (BOS), then plain text."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=True).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """All at once, special tokens left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The messages through the chat template.

        Only the template adds special tokens. Raises InvalidRequestError when there is no
        template or it refuses the messages.
        """
        rendered = self.chat_template.render(
            [self._marked(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
        )
        ids: list[int] = []
        for index, part in enumerate(_MARKED.split(rendered)):
            if index % 2:  # the number of a special token that a user spelled out
                text = self._special_tokens[int(part)]
                ids += self._plain.encode(text, add_special_tokens=False).ids
            else:
                ids += self._tokenizer.encode(part, add_special_tokens=False).ids
        return ids

    def _marked(self, value: Any) -> Any:
        """The same message with every special token spelled in its strings replaced by a mark."""
        if isinstance(value, str):
            clean = _MARKED.sub("", value)
            return self._spelled_special.sub(self._mark, clean)
        if isinstance(value, Mapping):
            return {key: self._marked(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self._marked(item) for item in value]
        return value

    def _mark(self, match: re.Match[str]) -> str:
        return _MARK.format(self._special_tokens.index(match.group()))


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
