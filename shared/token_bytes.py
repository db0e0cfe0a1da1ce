"""The bytes that each token stands for; those of a text's tokens together are the text in UTF-8."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tokenizers

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


def token_bytes_table(tokenizer: tokenizers.Tokenizer) -> list[bytes]:
    """By token id; nothing for an id without a token.

    Decoders that look at a token's neighbours, such as those that strip the first space of a text,
    are beyond this.
    """
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    to_bytes = _to_bytes(list(_parts(json.loads(tokenizer.to_str())["decoder"])))
    table = [b""] * (max(vocab.values(), default=-1) + 1)
    for token, token_id in vocab.items():
        table[token_id] = to_bytes(token)
    for token_id, added in tokenizer.get_added_tokens_decoder().items():
        table[token_id] = added.content.encode()
    return table


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
