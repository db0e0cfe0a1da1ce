"""Tokenizers that workers have sent, kept in the user's cache by their fingerprints."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from ..shared.errors import ModelError
from ..shared.messages import Greeting
from ..shared.tokenizer import Tokenizer


def load(greeting: Greeting) -> Tokenizer | None:
    """The worker's tokenizer if it was met before; None when it wasn't or the file is no good."""
    try:
        packed = _path(greeting.tokenizer, greeting.chat_template).read_bytes()
        tokenizer = Tokenizer(*msgspec.msgpack.decode(packed, type=tuple[bytes, bytes]))
    except (OSError, RuntimeError, msgspec.DecodeError, ModelError):  # RuntimeError: no home
        return None
    found = (tokenizer.fingerprint, tokenizer.template_fingerprint)
    return tokenizer if found == (greeting.tokenizer, greeting.chat_template) else None


def store(tokenizer: Tokenizer) -> None:
    """Best effort: a cache that can't be written costs one transfer the next time."""
    files = tokenizer.files
    with suppress(OSError, RuntimeError):
        path = _path(tokenizer.fingerprint, tokenizer.template_fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(msgspec.msgpack.encode((files.tokenizer_json, files.config_json)))
        temporary.replace(path)


def _path(tokenizer: bytes, chat_template: bytes) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "chairlift" / "tokenizers" / f"{tokenizer.hex()}-{chat_template.hex()}"
