"""Whatever a grammar for calls lets a model write is read as calls, with arguments that conform."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
import tokenizers
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken

from chairlift.frontend.replies.reasoning_format import THINK
from chairlift.frontend.replies.reply import Reply
from chairlift.frontend.replies.reply_grammar import ReplyGrammar, Tool
from chairlift.frontend.replies.tool_format import (
    HERMES,
    LLAMA_JSON,
    MISTRAL,
    MISTRAL_ARGS,
    PYTHONIC,
    ToolFormat,
)
from chairlift.shared.errors import InvalidRequestError
from chairlift.shared.sampling_params import Grammar, checked_sampling_params
from chairlift.shared.tokenizer import Tokenizer
from chairlift.worker.grammar import Vocabulary, compile_grammar
from tests.tokenizer_files import EOS_ID, TOKENIZERS, tokenizer_json

TAGS = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]",
    "<|python_tag|>",
]  # fmt: skip
SMALL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "unit": {"enum": ["°C", "</tool_call>"]},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9},
                 "maxItems": 2},
        "is": {"type": "boolean"},
    },
    "required": ["unit", "days"],
    "additionalProperties": False,
}  # fmt: skip
TOOLS = [Tool("weather", SMALL, is_strict=True), Tool("now")]
FORMATS = [HERMES, LLAMA_JSON, MISTRAL, MISTRAL_ARGS]


def make(kind: str, tags: str) -> Tokenizer:
    """A tokenizer for which the tags are special tokens, added ones, or just letters."""
    backend = tokenizers.Tokenizer.from_str(TOKENIZERS[kind]().to_str())
    if tags != "letters":
        backend.add_tokens([AddedToken(tag, special=tags == "special") for tag in TAGS])
    return Tokenizer(tokenizer_json(backend))


KINDS = [("byte_level", "special"), ("byte_level", "added"), ("byte_level", "letters")]
KINDS += [("sentencepiece", "special"), ("sentencepiece", "letters")]


def walk(tokenizer: Tokenizer, grammar: Grammar, seed: int, max_tokens: int = 2000) -> str | None:
    """Some answer that the grammar allows; None when it did not end in time."""
    assert checked_sampling_params(max_tokens=1, grammar=grammar).grammar == grammar
    backend = tokenizer.backend
    matcher = compile_grammar(grammar, Vocabulary(backend, frozenset({EOS_ID})))
    chance = random.Random(seed)
    tags = {token_id for tag in TAGS if (token_id := backend.token_to_id(tag)) is not None}
    token_ids: list[int] = []
    while len(token_ids) < max_tokens:
        allowed = [i for i, bias in enumerate(matcher.compute_logit_bias()) if bias]
        assert allowed, backend.decode(token_ids, skip_special_tokens=False)
        if allowed == [EOS_ID] or (EOS_ID in allowed and chance.random() < 0.3):
            return bytes_of(tokenizer, token_ids)
        likely = [i for i in allowed if i in tags or tokenizer.token_bytes(i) in b"<[{"]
        pool = likely if likely and chance.random() < 0.4 else allowed
        token_id = chance.choice([i for i in pool if i != EOS_ID])
        assert matcher.consume_token(token_id)
        token_ids.append(token_id)
    return None


def bytes_of(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    return b"".join(map(tokenizer.token_bytes, token_ids)).decode()


def check_conforms(chunk: Any) -> None:
    for call in chunk.calls:
        arguments = json.loads(call.arguments)
        if call.name == "now":
            assert arguments == {}
        else:
            assert {"unit", "days"} <= arguments.keys() <= {"unit", "days", "is"}
            assert arguments["unit"] in ("°C", "</tool_call>") and len(arguments["days"]) <= 2


@pytest.mark.parametrize("is_single", [True, False])
@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda one: one.name)
@pytest.mark.parametrize(("kind", "tags"), KINDS)
def test_required_calls(kind: str, tags: str, tool_format: ToolFormat, is_single: bool) -> None:
    """An answer that has to call does nothing else, once where calls are not to be parallel."""
    tokenizer = make(kind, tags)
    grammar = ReplyGrammar(tokenizer, tool_format, TOOLS, True, is_single).build()
    counts = set()
    for seed in range(8):
        text = walk(tokenizer, grammar, seed)
        assert text is not None
        reply = Reply(None, tool_format, [tool.name for tool in TOOLS])
        chunk = reply.feed(text) + reply.finish()
        assert not chunk.content and chunk.calls, text
        assert reply.finish_reason("stop") == "tool_calls"
        check_conforms(chunk)
        counts.add(len(chunk.calls))
    assert (counts == {1}) == is_single


@pytest.mark.parametrize("is_reasoning", [True, False])
@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda one: one.name)
@pytest.mark.parametrize("tags", ["special", "letters"])
def test_thoughts_before_required_calls(
    tags: str, tool_format: ToolFormat, is_reasoning: bool
) -> None:
    """A model that thinks may do so before it calls, and closes what the prompt opened."""
    tokenizer = make("byte_level", tags)
    form = ReplyGrammar(tokenizer, tool_format, TOOLS, True, True, None, THINK, is_reasoning)
    grammar = form.build()
    num_ended = num_thoughts = 0
    for seed in range(10):
        text = walk(tokenizer, grammar, seed, 600)
        if text is not None:
            names = [tool.name for tool in TOOLS]
            reply = Reply(THINK, tool_format, names, is_reasoning=is_reasoning)
            chunk = reply.feed(text) + reply.finish()
            assert len(chunk.calls) == 1 and not chunk.content, text
            num_ended += 1
            num_thoughts += bool(chunk.reasoning)
    assert num_ended or tags == "letters"
    assert num_thoughts or tags == "letters"


@pytest.mark.parametrize("is_single", [True, False])
@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda one: one.name)
@pytest.mark.parametrize("tags", ["special", "letters"])
def test_strict_calls(tags: str, tool_format: ToolFormat, is_single: bool) -> None:
    """Text is free to come, and a strict tool's arguments conform when it is called."""
    tokenizer = make("byte_level", tags)
    strict = [Tool("weather", SMALL, is_strict=True), Tool("now", NOW, is_strict=True)]
    grammar = ReplyGrammar(tokenizer, tool_format, strict, False, is_single).build()
    num_calls = num_texts = 0
    for seed in range(30):
        text = walk(tokenizer, grammar, seed, 400)
        if text is not None:
            reply = Reply(None, tool_format, ["weather", "now"])
            chunk = reply.feed(text) + reply.finish()
            check_conforms(chunk)
            assert not is_single or len(chunk.calls) <= 1
            num_calls += len(chunk.calls)
            num_texts += not chunk.calls
    assert num_texts and (num_calls or tags == "letters")


NOW = {"type": "object", "properties": {}, "additionalProperties": False}


def test_what_cant_be_constrained() -> None:
    """Where calls can't be constrained the request is refused, not quietly left unconstrained."""
    tokenizer = make("byte_level", "special")
    with pytest.raises(InvalidRequestError, match="Python"):
        ReplyGrammar(tokenizer, PYTHONIC, TOOLS, True, True).build()
    with pytest.raises(InvalidRequestError, match="type object"):
        ReplyGrammar(tokenizer, HERMES, [Tool("f", {"type": "array"})], True, True).build()
    large = [Tool("f", {"enum": ["x" * 70_000]})]
    with pytest.raises(InvalidRequestError, match="bytes"):
        ReplyGrammar(tokenizer, HERMES, large, True, True).build()


def test_leniency() -> None:
    """What a schema asks for that can't be followed counts only where the tool is strict."""
    tokenizer = make("byte_level", "special")
    odd = {"properties": {"x": {"type": "array", "uniqueItems": True, "maxItems": 1}}}
    lexer = LLTokenizer(tokenizer.backend.to_str(), eos_token=EOS_ID)
    for is_strict in (True, False):
        tools = [Tool("f", odd, is_strict)]
        source = ReplyGrammar(tokenizer, HERMES, tools, True, True).build().source
        error = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(source), lexer)
        assert ("uniqueItems" in error) == is_strict, error


OUTPUTS = [
    (Grammar("json_schema", '{"enum": [17, {"k": 1}]}'), r'17|\{\s*"k"\s*:\s*1\s*\}'),
    (Grammar("choice", '["yes", "<|no|>"]'), r"yes|<\|no\|>"),
    (Grammar("regex", r"[a-c]{2}\d"), "[a-c]{2}[0-9]"),
    (Grammar("lark", "start: X\nX: /x{1,3}/"), "x{1,3}"),
]


@pytest.mark.parametrize("is_reasoning", [True, False])
@pytest.mark.parametrize(("output", "pattern"), OUTPUTS, ids=lambda one: getattr(one, "kind", ""))
@pytest.mark.parametrize("tags", ["special", "added"])
def test_thoughts_before_what_is_wanted(
    tags: str, output: Grammar, pattern: str, is_reasoning: bool
) -> None:
    """A grammar says what comes after the thoughts, which may be left out where none have begun."""
    tokenizer = make("byte_level", tags)
    form = ReplyGrammar(
        tokenizer, None, output=output, reasoning_format=THINK, is_reasoning=is_reasoning
    )
    num_thoughts = 0
    for seed in range(8):
        text = walk(tokenizer, form.build(), seed)
        if text is None:
            continue
        reply = Reply(THINK, is_reasoning=is_reasoning)
        chunk = reply.feed(text) + reply.finish()
        assert re.fullmatch(pattern, chunk.content), text
        num_thoughts += reply.num_reasoning_characters > 0
    assert num_thoughts


@pytest.mark.parametrize(("output", "pattern"), OUTPUTS, ids=lambda one: getattr(one, "kind", ""))
@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda one: one.name)
def test_calls_or_what_is_wanted(tool_format: ToolFormat, output: Grammar, pattern: str) -> None:
    """With tools beside a format there is either a call or what was asked for; no call that is
    required leaves it a choice."""
    tokenizer = make("byte_level", "special")
    form = ReplyGrammar(tokenizer, tool_format, TOOLS, output=output)
    kinds = set()
    for seed in range(16):
        text = walk(tokenizer, form.build(), seed)
        if text is None:
            continue
        reply = Reply(None, tool_format, [tool.name for tool in TOOLS])
        chunk = reply.feed(text) + reply.finish()
        kinds.add(bool(chunk.calls))
        if not chunk.calls:
            assert re.fullmatch(pattern, chunk.content), text
    assert kinds == {True, False}
    required = ReplyGrammar(tokenizer, tool_format, TOOLS, is_required=True, output=output)
    assert required.build() == ReplyGrammar(tokenizer, tool_format, TOOLS, True).build()
