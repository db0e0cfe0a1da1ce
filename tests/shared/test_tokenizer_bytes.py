"""The bytes of tokens make up the text."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from chairlift.shared.tokenizer import Tokenizer
from tests.tokenizer_files import CORPUS, TOKENIZERS, tokenizer_json


def make(kind: str) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(TOKENIZERS[kind]().to_str())
    backend.add_tokens([AddedToken("<think é>", special=False, normalized=False)])
    return Tokenizer(tokenizer_json(backend))


MADE = {kind: make(kind) for kind in TOKENIZERS}


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "unigram"])
@given(text=st.sampled_from(CORPUS) | st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_are_the_text(kind: str, text: str) -> None:
    """Together the tokens' bytes are the text, but for a first space that decoders strip."""
    tokenizer = MADE[kind]
    ids = [i for i in tokenizer.encode(text + " <think é>") if i > 2]
    joined = b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace")
    assert tokenizer.decode(ids) in (joined, joined.removeprefix(" "))


def test_wordpiece() -> None:
    """A word that begins has the space that its decoder puts before it."""
    tokenizer = MADE["wordpiece"]
    ids = tokenizer.encode("once upon a river lift")
    assert b"".join(map(tokenizer.token_bytes, ids)) == b" once upon a river lift"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_single_tokens(kind: str) -> None:
    """A special token stands for its name, an id without a token for nothing."""
    tokenizer = MADE[kind]
    assert tokenizer.token_bytes(1) == b"<s>"
    assert tokenizer.token_bytes(10**6) == b""
    assert tokenizer.is_special("<s>") and not tokenizer.is_special("<think é>")
    assert tokenizer.text_of([1]) == "<s>"
