"""The bytes that each token stands for; those of a text's tokens together are the text in UTF-8."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tokenizers

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """By token id, one at a time: of 150,000 all would take a third of a second."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Decoders that look at a token's neighbours, such as those that strip the first space of a
        text, are beyond this."""
        self._tokenizer = tokenizer
        decoder = tokenizer.decoder
        parts = _parts(json.loads(decoder.__getstate__()) if decoder else None)
        self._to_bytes = _to_bytes(list(parts))
        added = tokenizer.get_added_tokens_decoder()
        self._known = {token_id: token.content.encode() for token_id, token in added.items()}

    def __getitem__(self, token_id: int) -> bytes:
        """Nothing for an id without a token."""
        known = self._known.get(token_id)
        if known is None:
            token = self._tokenizer.id_to_token(token_id)
            known = self._known[token_id] = b"" if token is None else self._to_bytes(token)
        return known


def _parts(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    for part in (decoder or {}).get("decoders", []):
        yield from _parts(part)
    if decoder:
        yield decoder


def _to_bytes(parts: list[Mapping[str, Any]]) -> Callable[[str], bytes]:
    """As the decoder's parts say; see https://huggingface.co/docs/tokenizers/api/decoders"""
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        letters = _letters_of_bytes()
        return lambda token: b"".join(letters.get(letter, letter.encode()) for letter in token)

    def spelled(token: str) -> bytes:
        if "ByteFallback" in kinds and (byte := _BYTE.fullmatch(token)):
            return bytes.fromhex(byte[1])
        for part in parts:
            token = _decoded(token, part)
        return token.encode()

    return spelled


def _decoded(token: str, part: Mapping[str, Any]) -> str:
    match part:
        case {"type": "Replace", "pattern": {"String": old}, "content": new}:
            return token.replace(old, new)
        case {"type": "Metaspace", "replacement": space}:
            return token.replace(space, " ")
        case {"type": "WordPiece", "prefix": prefix}:
            return token[len(prefix) :] if token.startswith(prefix) else f" {token}"
        case {"type": "BPEDecoder", "suffix": suffix}:
            return token.replace(suffix, " ")
    return token


def _letters_of_bytes() -> dict[str, bytes]:
    """GPT-2's: what is printable in Latin-1 is itself, the rest follows from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): bytes([byte]) for byte in printable}
    return letters | {chr(256 + n): bytes([byte]) for n, byte in enumerate(others)}
