"""What the fake model says and in which letters. Pure functions, so an oracle can say it too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import tokenizers
from tokenizers import decoders, models

from chairlift.shared.tokenizer import Tokenizer
from chairlift.worker.sequence import Sequence

VOCAB_SIZE = 90
END = 0  # of a text
CHARACTERS = "a", "b", "é", "€", "ß", "😀", "中", "👩‍👧", "z"


@dataclass(frozen=True)
class Language:
    """A tokenizer, and the model that speaks it: the next token of a sequence."""

    tokenizer: Tokenizer
    vocab_size: int
    next_of: Callable[[Sequence], int]


def next_token(prompt_seed: int, position: int) -> int:
    """Of the simplest model: never 0, which ends a text."""
    return 1 + (prompt_seed * 31 + position * 17 + position * position) % (VOCAB_SIZE - 1)


def plain_next(sequence: Sequence) -> int:
    """A sequence's first token is its seed."""
    return next_token(sequence.token_ids[0], sequence.num_tokens)


def historic_next(sequence: Sequence) -> int:
    """Depends on all that sampling may depend on: seed, position, and what came before."""
    last = sequence.token_ids[-1]
    value = sequence.token_ids[0] * 31 + sequence.num_output_tokens * 17 + last * 7
    return (value + sequence.output_counts[last] * 13 + sequence.params.seed * 5) % VOCAB_SIZE


def spoken_next(sequence: Sequence) -> int:
    """One byte of a text after the other."""
    speech = _speech(sequence.token_ids[0], sequence.params.seed)
    return 1 + speech[sequence.num_output_tokens]


@cache
def _speech(first: int, seed: int) -> bytes:
    numbers = ((first * 7 + seed * 11 + i * i * 3 + i) % len(CHARACTERS) for i in range(64))
    return "".join(CHARACTERS[number] for number in numbers).encode()


def letters() -> Tokenizer:
    """Single letters, so that a wrong text points at a token."""
    return _tokenizer({chr(33 + i): i for i in range(VOCAB_SIZE)}, decoders.Fuse())


def single_bytes() -> Tokenizer:
    """Token 1 + b is the byte b: characters come in up to four pieces."""
    spelling = {b: chr(b) for b in (*range(33, 127), *range(161, 173), *range(174, 256))}
    others = (b for b in range(256) if b not in spelling)
    spelling |= {b: chr(256 + n) for n, b in enumerate(others)}  # as GPT-2 does
    vocabulary = {"\u2400": END} | {spelling[b]: 1 + b for b in range(256)}
    return _tokenizer(vocabulary, decoders.ByteLevel())


def _tokenizer(vocabulary: dict[str, int], decoder: decoders.Decoder) -> Tokenizer:
    library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    library.decoder = decoder
    return Tokenizer(library.to_str().encode())


@cache
def languages() -> tuple[Language, Language]:
    """One of letters, one of bytes."""
    return (
        Language(letters(), VOCAB_SIZE, historic_next),
        Language(single_bytes(), 257, spoken_next),
    )
