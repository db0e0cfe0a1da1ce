"""Constrained outputs: they match, are the same alone and in any batch, and disturb nobody."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jsonschema
import pytest
import tokenizers
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from chairlift.shared.errors import InvalidRequestError
from chairlift.shared.messages import Finish
from chairlift.shared.sampling_params import Grammar, SamplingParams, checked
from chairlift.shared.settings import WorkerSettings
from chairlift.shared.tokenizer import Tokenizer
from chairlift.worker import grammar as module
from chairlift.worker.admission import Admission, Limits
from chairlift.worker.block_manager import BlockManager
from chairlift.worker.detokenizer import Detokenizer
from chairlift.worker.engine import Engine
from chairlift.worker.executor import HostExecutor
from chairlift.worker.grammar import (
    Compilation,
    Constraint,
    GrammarCompiler,
    GrammarError,
    Vocabulary,
    compile_grammar,
)
from chairlift.worker.loop import Loop
from chairlift.worker.main import build_engine, eos_token_ids_of
from chairlift.worker.models.loader import load_model
from chairlift.worker.sampler import Sampler
from chairlift.worker.scheduler import ContinuousScheduler
from chairlift.worker.sequence import Sequence
from chairlift.worker.waiting_room import POLL_S, WaitingRoom
from tests.desk import ALICE, Desk
from tests.fake_engine import BLOCK_SIZE, CANCELLED, output_of, runner_of
from tests.fake_model import FakeModelRunner, digest
from tests.tiny_model import make_tiny_model
from tests.tokenizer_files import EOS_ID, TOKENIZERS, byte_level, tokenizer_json

TOKENIZER = byte_level()
VOCAB_SIZE = 448  # of the model: more than the tokenizer has
EOS = frozenset({EOS_ID})
SPACES = tuple(i for i in range(420) if TOKENIZER.decode([i]).strip() == "" and i > EOS_ID)
COMPILER = GrammarCompiler(TOKENIZER, EOS)
PROMPT = TOKENIZER.encode("hello world").ids


def json_schema(schema: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


def regex(source: str) -> Grammar:
    return Grammar("regex", source)


def choice(*texts: str) -> Grammar:
    return Grammar("choice", json.dumps(texts))


def id_of(token: str) -> int:
    token_id = TOKENIZER.token_to_id(token)
    assert token_id is not None
    return int(token_id)


def make_engine(
    compiler: GrammarCompiler | None = COMPILER,
    *,
    eos: frozenset[int] = EOS,
    num_blocks: int = 200,
    next_token: Callable[..., int] = digest,
) -> Engine:
    scheduler = ContinuousScheduler(
        BlockManager(num_blocks, BLOCK_SIZE), max_num_seqs=8, max_num_batched_tokens=40
    )
    runner = FakeModelRunner(num_blocks, BLOCK_SIZE, VOCAB_SIZE, next_token)
    engine = Engine(scheduler, HostExecutor(runner, Sampler(eos)), eos)
    engine.waiting_room = WaitingRoom(compiler)
    return engine


def make_sequence(grammar: Grammar | None, **params: Any) -> Sequence:
    values = {"max_tokens": 250, "temperature": 1.5, "grammar": grammar, **params}
    request_id = abs(hash((grammar, *params.items()))).to_bytes(16, "big")
    return Sequence(
        request_id, PROMPT, SamplingParams(**values), Detokenizer(TOKENIZER, PROMPT, ())
    )


def text_of(sequence: Sequence) -> str:
    return sequence.detokenizer.text


def run(engine: Engine, *sequences: Sequence) -> list[Sequence]:
    """Adds them and runs until all have ended; those that steps named."""
    for sequence in sequences:
        engine.add(sequence)
    named, deadline = [], time.monotonic() + 60
    while engine.has_work or engine.num_compiling:
        assert time.monotonic() < deadline, "it never ends"
        named += engine.step()
        if engine.num_compiling and not engine.has_work:
            time.sleep(0.0005)
    return named


def run_alone(grammar: Grammar | None, **params: Any) -> Sequence:
    sequence = make_sequence(grammar, **params)
    run(make_engine(), sequence)
    return sequence


def constraint_of(grammar: Grammar, eos: frozenset[int] = EOS) -> Constraint:
    vocabulary = Vocabulary(TOKENIZER, eos)
    return Constraint(compile_grammar(grammar, vocabulary), vocabulary)


NAMES = st.sampled_from(["a", "name", "é", 'quo"te', "x y", "items", "日本"])
BOUNDS = st.tuples(st.integers(-1000, 1000), st.integers(0, 300))
LEAVES = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": ["integer", "null"]}]),
    BOUNDS.map(lambda b: {"type": "integer", "minimum": b[0], "maximum": b[0] + b[1]}),
    BOUNDS.map(lambda b: {"type": "number", "minimum": b[0], "exclusiveMaximum": b[0] + b[1] + 1}),
    st.integers(0, 8).map(lambda n: {"type": "string", "maxLength": n}),
    st.sampled_from(["^[a-f]{2,4}$", "^(foo|bar)+x", "[0-9]{3}"]).map(
        lambda p: {"type": "string", "pattern": p, "maxLength": 12}
    ),
    st.sampled_from(["date", "time", "ipv4", "uuid"]).map(
        lambda f: {"type": "string", "format": f}
    ),
    st.lists(NAMES | st.integers(-5, 5) | st.none(), min_size=1, max_size=3).map(
        lambda values: {"enum": values}
    ),
    # Of longer fractions, llguidance's JSON reader gets the last digit wrong.
    (NAMES | st.integers(-80, 80).map(lambda n: n / 8)).map(lambda value: {"const": value}),
)


def objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.dictionaries(NAMES, values, max_size=3), st.booleans(), st.randoms()).map(
        lambda drawn: {
            "type": "object",
            "properties": drawn[0],
            "required": [name for name in drawn[0] if drawn[1] or drawn[2].random() < 0.5],
            "additionalProperties": False,
        }
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        objects(inner),
        st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
            lambda t: {
                "type": "array",
                "items": t[0],
                "minItems": t[1],
                "maxItems": t[1] + t[2],
            }
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda schemas: {"anyOf": schemas}),
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(schemas=st.lists(SCHEMAS, min_size=4, max_size=8), seed=st.integers(0, 2**40))
def test_every_finished_output_validates_alone_and_batched(schemas: list[Any], seed: int) -> None:
    """A random model's answers, with scarce blocks: what ends by itself is an instance of its
    schema, and each answer is the one that its request gets alone."""
    wishes = [
        (json_schema(schema), {"seed": seed + i, "logit_bias": tuple((s, -30.0) for s in SPACES)})
        for i, schema in enumerate(schemas)
    ]
    batched = [make_sequence(grammar, **params) for grammar, params in wishes]
    run(make_engine(num_blocks=90), *batched)
    for (grammar, params), sequence in zip(wishes, batched, strict=True):
        alone = run_alone(grammar, **params)
        assert (output_of(sequence), sequence.finish) == (output_of(alone), alone.finish)
        assert text_of(sequence) == text_of(alone)
        assert sequence.finish is not None
        assert sequence.finish.reason in ("stop", "length")
        if sequence.finish.reason == "stop":
            value = json.loads(text_of(sequence))
            jsonschema.Draft202012Validator(json.loads(grammar.source)).validate(value)


def test_most_of_these_outputs_do_finish() -> None:
    """The property above would say nothing if random models never came to an end."""
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "bc"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
    bias = tuple((s, -30.0) for s in SPACES)
    sequences = [make_sequence(json_schema(schema), seed=i, logit_bias=bias) for i in range(40)]
    run(make_engine(), *sequences)
    reasons = [sequence.finish.reason for sequence in sequences if sequence.finish]
    assert reasons.count("stop") >= 36
    assert len({text_of(sequence) for sequence in sequences}) > 30


def test_model_that_likes_spaces_gets_on_with_it() -> None:
    """Between two tokens of JSON there is a bounded number of spaces, so that none ends in them."""
    space = id_of("Ġ")
    sequence = make_sequence(
        json_schema({"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2}),
        temperature=0.0,
        max_tokens=1000,
    )
    run(make_engine(num_blocks=300, next_token=lambda token_ids: space), sequence)
    assert sequence.finish == Finish("stop")
    assert json.loads(text_of(sequence)) == [1, 1]
    assert text_of(sequence).count(" ") > 100


@settings(max_examples=60, deadline=None)
@given(
    source=st.sampled_from(
        [
            "[a-z]{1,5}",
            "(foo|bar)?x{2,3}",
            r"\d{4}-\d{2}-\d{2}",
            "[^a]{0,4}é?",
            "(?:a|ab)(?:c|bcd)",
            r"[A-F0-9]{2}(?::[A-F0-9]{2}){2}",
            "日本|[^\\d/]{2}/[!-~]",
            "a\nb|\\x41\t",
            "a.c|[.]{3}",
        ]
    ),
    seed=st.integers(0, 2**40),
)
def test_regex_matches_the_whole_output(source: str, seed: int) -> None:
    """What ends by itself is matched from the first character to the last.

    A grammar's digits are ASCII's; ``re`` would count Unicode's too.
    """
    sequence = run_alone(regex(source), seed=seed)
    assert sequence.finish == Finish("stop")
    pattern = source.replace(r"[^\d/]", "[^0-9/]").replace(r"\d", "[0-9]")
    assert re.fullmatch(pattern, text_of(sequence))


@settings(max_examples=80, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=1),
    seed=st.integers(0, 2**40),
)
def test_choice_is_one_of_the_strings(texts: list[str], seed: int) -> None:
    """Whatever characters they have, and where one begins with another."""
    grammar = choice(*texts)
    assume(len(grammar.source) < 1000)
    sequence = run_alone(grammar, seed=seed)
    assert sequence.finish == Finish("stop")
    assert text_of(sequence) in texts


def test_every_choice_comes() -> None:
    """With seeds enough."""
    texts = ["yes", "no", "no way", "^$", "a|b", "[x]", "\\d", "-/-"]
    sequences = [make_sequence(choice(*texts), seed=seed) for seed in range(150)]
    run(make_engine(), *sequences)
    assert {text_of(sequence) for sequence in sequences} == set(texts)


def test_lark_grammar_may_be_recursive() -> None:
    """Sums in balanced parentheses, which no regular expression knows."""
    grammar = Grammar(
        "lark",
        'start: sum\nsum: term ("+" term)?\nterm: /[0-9]/ | "(" sum ")"\n',
    )
    texts = []
    for seed in range(20):
        sequence = run_alone(grammar, seed=seed)
        if sequence.finish == Finish("stop"):
            texts.append(text_of(sequence))
            reduced = re.sub(r"\d", "n", texts[-1])
            for _ in range(len(reduced)):
                reduced = reduced.replace("n+n", "n").replace("(n)", "n")
            assert reduced == "n", texts[-1]
    assert len(texts) > 10
    assert any("(" in text for text in texts)


@settings(max_examples=40, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 2**40), cut=st.floats(0, 1))
def test_resumed_request_goes_on_where_it_was(schema: Any, seed: int, cut: float) -> None:
    """With any first tokens given: the same tokens, text and end as without the interruption."""
    grammar = json_schema(schema)
    whole = run_alone(grammar, seed=seed, max_tokens=60)
    output = output_of(whole)
    resumed = make_sequence(grammar, seed=seed, max_tokens=60)
    engine = make_engine()
    engine.add(resumed, output[: round(cut * len(output))])
    run(engine)
    assert (output_of(resumed), resumed.finish) == (output, whole.finish)
    assert text_of(resumed) == text_of(whole)
    assert resumed.detokenizer.released_ends == whole.detokenizer.released_ends


def test_tokens_that_do_not_follow_the_grammar_are_not_gone_on_with() -> None:
    """A request that comes with an output which its grammar would not have let be."""
    for output in ([id_of("b")], [EOS_ID]):
        sequence = make_sequence(regex("a{3}"))
        engine = make_engine()
        engine.add(sequence, output)
        assert sequence in run(engine)
        assert sequence.finish is not None
        assert (sequence.finish.reason, sequence.finish.code) == ("error", "grammar_failed")


def test_complete_output_stops_though_the_model_goes_on() -> None:
    """No EOS is waited for where nothing else may come, not even at the very last token."""
    for max_tokens in (3, 250):
        sequence = run_alone(regex("a{3}"), max_tokens=max_tokens)
        assert sequence.finish == Finish("stop")
        assert text_of(sequence) == "aaa"
        assert EOS_ID not in output_of(sequence)


def test_eos_comes_only_where_the_grammar_accepts() -> None:
    """A model that wants nothing but to end has to say first what the grammar wants."""
    sequence = make_sequence(regex("abc?"), temperature=0.0)
    run(make_engine(next_token=lambda token_ids: EOS_ID), sequence)
    assert sequence.finish == Finish("stop")
    assert text_of(sequence) == "ab"
    assert output_of(sequence)[-1] == EOS_ID


def test_model_without_eos_ends_where_nothing_may_follow() -> None:
    """It never ends in between: there max_tokens is the only end."""
    compiler = GrammarCompiler(TOKENIZER, frozenset())
    for source, reason, text in [
        ("ab", "stop", "ab"),
        ("a|ab", "stop", "ab"),
        ("a{0,3}", "stop", "aaa"),
        ("a*", "length", "a" * 20),
    ]:
        sequence = make_sequence(regex(source), max_tokens=20, logit_bias=((id_of("a"), 50.0),))
        run(make_engine(compiler, eos=frozenset()), sequence)
        assert sequence.finish is not None
        assert (sequence.finish.reason, text_of(sequence)) == (reason, text)


def test_tokenizer_without_special_tokens_can_be_constrained() -> None:
    """None of its tokens is taken for the end that llguidance wants it to have."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    plain = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = tokenizers.decoders.ByteLevel()
    vocabulary = Vocabulary(plain, frozenset())
    first = alphabet[0]
    constraint = Constraint(compile_grammar(choice(first + "a", "b"), vocabulary), vocabulary)
    allowed = (~constraint.forbidden()).nonzero()[0].tolist()
    assert sorted(alphabet[i] for i in allowed) == sorted([first, "b"])
    for token_id in (0, alphabet.index("a")):
        constraint.take(token_id)
    assert constraint.is_complete


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_tokenizer_whose_tokens_cannot_be_read_is_said_so(kind: str) -> None:
    """Rather than an output that looks constrained and is not; the engine serves others."""
    engine = make_engine(GrammarCompiler(TOKENIZERS[kind](), EOS))
    constrained, other = make_sequence(regex("a")), make_sequence(None, max_tokens=3)
    run(engine, constrained, other)
    assert constrained.finish is not None
    assert constrained.finish.code == "grammar_not_supported"
    assert other.finish is not None
    assert other.finish.code == ""


def test_engine_without_a_compiler_refuses_grammars() -> None:
    """At once, and in a sentence."""
    engine = make_engine(None)
    sequence = make_sequence(regex("a"))
    engine.add(sequence)
    assert sequence.finish is not None
    assert sequence.finish.code == "grammar_not_supported"
    assert not engine.has_work


INVALID = [
    (regex("("), "unclosed group"),
    (regex("(?=a)"), "look-around"),
    (regex("[a&&b]"), "no output"),
    (regex("(" * 20_000), "regular expression"),
    (Grammar("json_schema", "nope"), "Expecting value"),
    (Grammar("json_schema", '{"a":' * 5000 + "1" + "}" * 5000), "recursion"),
    (Grammar("json_schema", '{}},{"regex":"a"'), "Extra data"),
    (json_schema([1]), "has to be an object"),
    (json_schema({"type": "objekt"}), "objekt"),
    (json_schema(False), "has to be an object"),
    (json_schema({"not": {}}), "not"),
    (json_schema({"allOf": [{"type": "string"}, {"type": "null"}]}), "Unsatisfiable"),
    (json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
    (json_schema({"$ref": "http://example.com/schema"}), "http://example.com/schema"),
    (Grammar("lark", 'start: "a" nope'), "nope"),
    (Grammar("lark", "nonsense"), "Lark"),
    (Grammar("lark", ' {"grammars": [{"lark_grammar": "start: /a/"}]}'), "begins with a brace"),
    (Grammar("lark", '{"x": 1}', "start: @output"), "begins with a brace"),
    (json_schema({"x-guidance": {"lenient": True}, "not": {}}), "x-guidance"),
    (Grammar("choice", "3"), "list of strings"),
    (Grammar("choice", "[]"), "list of strings"),
    (choice("a", ""), "none of them empty"),
]


@pytest.mark.parametrize(("grammar", "why"), INVALID, ids=range(len(INVALID)))
def test_invalid_grammar_is_refused_with_the_reason(grammar: Grammar, why: str) -> None:
    """In a few words of the grammar's own language; requests beside it are not touched."""
    engine = make_engine()
    invalid, other = make_sequence(grammar), make_sequence(None, max_tokens=3, ignore_eos=True)
    named = run(engine, invalid, other)
    assert invalid in named
    assert invalid.finish is not None
    assert (invalid.finish.reason, invalid.finish.code) == ("error", "invalid_grammar")
    assert why in invalid.finish.message
    assert len(invalid.finish.message) < 600
    assert "\n" not in invalid.finish.message
    assert other.finish == Finish("length")


@dataclass
class SlowCompiler:
    """Compiles what it is told to hold back only when it is let go."""

    monkeypatch: pytest.MonkeyPatch
    clock: float = 0.0

    def __post_init__(self) -> None:
        self.gate = threading.Event()
        self.started: list[str] = []
        self.monkeypatch.setattr(module, "compile_grammar", self._compile)
        self.compiler = GrammarCompiler(TOKENIZER, EOS, timeout_s=5.0, clock=lambda: self.clock)

    def _compile(self, grammar: Grammar, vocabulary: Vocabulary) -> Any:
        self.started.append(grammar.source)
        if grammar.source.startswith("slow"):
            assert self.gate.wait(30)
        return compile_grammar(grammar, vocabulary)

    def until_started(self, *sources: str) -> None:
        deadline = time.monotonic() + 30
        while not set(sources) <= set(self.started):
            assert time.monotonic() < deadline
            time.sleep(0.001)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch):
    slow = SlowCompiler(monkeypatch)
    yield slow
    slow.gate.set()
    slow.compiler._threads.shutdown()


def test_slow_grammar_delays_its_own_request_alone(slow: SlowCompiler) -> None:
    """Plain requests and other grammars are served while it is compiled; then its turn comes."""
    engine = make_engine(slow.compiler)
    held = make_sequence(regex("slow"))
    engine.add(held)
    slow.until_started("slow")
    others = [make_sequence(None, max_tokens=5, ignore_eos=True), make_sequence(regex("a{4}"))]
    for other in others:
        engine.add(other)
    deadline = time.monotonic() + 30
    while any(other.finish is None for other in others):
        assert time.monotonic() < deadline
        engine.step()
    assert held.finish is None
    assert not engine.has_work
    assert engine.num_compiling == 1
    slow.gate.set()
    assert held in run(engine)
    assert text_of(held) == "slow"


def test_request_that_ends_while_its_grammar_compiles_is_dropped(slow: SlowCompiler) -> None:
    """It never reaches the scheduler; a grammar that has not begun is not compiled for nobody."""
    engine = make_engine(slow.compiler)
    busy = [make_sequence(regex(f"slow{i}")) for i in range(module.NUM_THREADS)]
    queued = make_sequence(regex("late"))
    for sequence in [*busy, queued]:
        engine.add(sequence)
    slow.until_started("slow0", "slow1")
    for sequence in [*busy, queued]:
        engine.end(sequence, CANCELLED)
        assert sequence.finish == CANCELLED
    assert engine.num_compiling == 0
    slow.gate.set()
    assert run(engine) == []
    slow.compiler._threads.shutdown()
    assert "late" not in slow.started
    assert runner_of(engine).num_steps == 0


def test_grammar_that_takes_too_long_is_given_up(slow: SlowCompiler) -> None:
    """The request hears of it when the time is over, though the thread goes on. Time in the queue
    does not count."""
    engine = make_engine(slow.compiler)
    sequences = [make_sequence(regex(f"slow{i}")) for i in range(module.NUM_THREADS + 1)]
    for sequence in sequences:
        engine.add(sequence)
    slow.until_started("slow0", "slow1")
    slow.clock = 4.9
    assert engine.step() == []
    slow.clock = 5.1
    assert engine.step() == sequences[: module.NUM_THREADS]
    for sequence in sequences[: module.NUM_THREADS]:
        assert sequence.finish is not None
        assert sequence.finish.code == "invalid_grammar"
        assert "simplify" in sequence.finish.message
    assert engine.num_compiling == 1
    slow.gate.set()
    run(engine)
    assert text_of(sequences[-1]) == f"slow{module.NUM_THREADS}"


def test_equal_grammars_are_compiled_once(slow: SlowCompiler) -> None:
    """At the same time or one after the other, each with a place of its own; one may leave."""
    engine = make_engine(slow.compiler)
    sequences = [make_sequence(regex("slow[a-z]{5}"), seed=i) for i in range(3)]
    for sequence in sequences:
        engine.add(sequence)
    slow.until_started("slow[a-z]{5}")
    engine.end(sequences[0], CANCELLED)
    slow.gate.set()
    run(engine)
    late = make_sequence(regex("slow[a-z]{5}"), seed=2)
    run(engine, late)
    assert slow.started == ["slow[a-z]{5}"]
    assert text_of(sequences[1]) != text_of(sequences[2]) == text_of(late)


def test_no_more_is_kept_than_is_allowed(
    slow: SlowCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grammars asked for least recently are forgotten, and compiled again when they return."""
    monkeypatch.setattr(module, "MAX_KEPT", 2)
    engine = make_engine(slow.compiler)
    for source in ["a", "b", "a", "c", "a", "d", "a", "e", "b"]:
        run(engine, make_sequence(regex(source)))
    assert slow.started == ["a", "b", "c", "d", "e", "b"]
    assert len(slow.compiler._compilations) <= 3  # one was on its way, perhaps, at the last look


def test_what_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is not remembered: it may have been the machine's."""
    compiler = GrammarCompiler(TOKENIZER, EOS)

    def fail(grammar: Grammar, vocabulary: Vocabulary) -> None:
        raise MemoryError("not enough memory")

    monkeypatch.setattr(module, "compile_grammar", fail)
    failed = make_sequence(regex("ab"))
    run(make_engine(compiler), failed)
    assert failed.finish is not None
    assert failed.finish.code == "out_of_memory"
    monkeypatch.undo()
    again = make_sequence(regex("ab"))
    run(make_engine(compiler), again)
    assert text_of(again) == "ab"


class Panic(BaseException):
    """As pyo3 raises them: no Exception."""


class Broken:
    """A constraint whose library fails after some tokens."""

    is_complete = False

    def __init__(self, num_tokens: int, where: str) -> None:
        self._num_left = num_tokens
        self._where = where

    def forbidden(self) -> Any:
        if not self._num_left and self._where == "forbidden":
            raise Panic("the mask")
        return (torch.arange(420) < 3).numpy()

    def take(self, token_id: int) -> None:
        if not self._num_left and self._where == "take":
            raise Panic("the token")
        self._num_left -= 1


@pytest.mark.parametrize("where", ["forbidden", "take"])
def test_constraint_that_panics_ends_its_request_alone(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is not run again for it, and the others have the tokens that they have without."""
    monkeypatch.setattr(
        GrammarCompiler, "result", lambda self, compilation: Broken(2, where), raising=True
    )
    engine = make_engine()
    broken = make_sequence(regex("broken"))
    params = {"max_tokens": 6, "ignore_eos": True}
    others = [make_sequence(None, seed=seed, **params) for seed in range(3)]
    run(engine, broken, *others)
    assert broken.finish is not None
    assert (broken.finish.reason, broken.finish.code) == ("error", "internal_error")
    assert broken.num_output_tokens == 2
    assert runner_of(engine).step_sizes == [4, 4, 4, 3, 3, 3]
    for seed, other in enumerate(others):
        assert output_of(other) == output_of(run_alone(None, seed=seed, **params))


def test_grammar_too_complex_to_go_on_with_ends_its_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a mask may cost the step is bounded; the request hears why it ended."""
    monkeypatch.setattr(
        module, "LIMITS", module.llguidance.LLParserLimits(max_items_in_row=3, verbose_errors=False)
    )
    grammar = Grammar(
        "lark",
        "start: a a a\na: b | c | d\nb: /x/ a | /x/\nc: /x/ b | /xy/\nd: /x/ a c | /xz/\n",
    )
    sequence = make_sequence(grammar, temperature=0.0, logit_bias=((id_of("x"), 100.0),))
    run(make_engine(GrammarCompiler(TOKENIZER, EOS)), sequence)
    assert sequence.finish is not None
    assert sequence.finish.code in ("grammar_failed", "invalid_grammar")
    assert "max is 3" in sequence.finish.message


def test_nan_of_a_constrained_row_is_told_as_such() -> None:
    """The mask does not hide that the model's numbers are no numbers."""
    engine = make_engine()
    runner_of(engine).poisoned_token_ids = {id_of("%")}
    sequence = make_sequence(regex("#%~"))
    run(engine, sequence)
    assert sequence.finish is not None
    assert sequence.finish.code == "model_output_not_finite"


def test_mask_is_repeatable() -> None:
    """Asking what is allowed moves nothing, so that a step can be run again in halves."""
    constraint = constraint_of(regex("ab"))
    first = constraint.forbidden().copy()
    assert (constraint.forbidden() == first).all()
    constraint.take(id_of("a"))
    with pytest.raises(GrammarError):
        constraint.end()
    constraint.take(id_of("b"))
    constraint.end()
    assert constraint.is_complete


@pytest.mark.parametrize(
    "params", [{"min_tokens": 1}, {"ignore_eos": True}, {"bad_words": ((5,),)}]
)
def test_contradictions_are_refused(params: dict[str, Any]) -> None:
    """Both sides' checks name the parameter that contradicts the grammar."""
    wish = SamplingParams(max_tokens=5, grammar=regex("a"), **params)
    with pytest.raises(InvalidRequestError, match=next(iter(params))) as error:
        checked(wish)
    assert error.value.param == "grammar"
    without = SamplingParams(max_tokens=5, **params)
    assert checked(without) == without


def test_those_that_compile_count_as_waiting(slow: SlowCompiler) -> None:
    """A worker takes on no more of them than of others."""
    engine = make_engine(slow.compiler)
    for i in range(3):
        engine.add(make_sequence(regex(f"slow{i}")))
    submit: Any = type("S", (), {"prompt_token_ids": bytes(8), "output_token_ids": b""})
    limits = Limits(VOCAB_SIZE, 100, max_waiting=3)
    finish = Admission(limits, b"").overload(submit, engine)
    assert finish is not None
    assert finish.code == "overloaded"


def test_compilation_is_a_value_nobody_advances() -> None:
    """Two constraints of one compilation go their own ways."""
    compiler = GrammarCompiler(TOKENIZER, EOS)
    compilation = compiler.start(regex("a|b"))
    assert isinstance(compilation, Compilation)
    compilation.future.result(30)
    one, other = compiler.result(compilation), compiler.result(compilation)
    assert one is not None and other is not None
    one.take(id_of("a"))
    assert one.is_complete
    assert not other.is_complete
    other.take(id_of("b"))


class FakeSockets:
    """Nothing ever comes; notes how long the loop would have slept."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def wait(self, timeout_s: float) -> None:
        self.waits.append(timeout_s)

    def subscriptions(self) -> list[Any]:
        return []

    def arrivals(self) -> list[bytes]:
        return []

    def send(self, topic: bytes, body: bytes) -> bool:
        return True


def test_idle_loop_sleeps_short_while_a_grammar_compiles(slow: SlowCompiler) -> None:
    """It neither spins nor oversleeps; with nothing to compile it sleeps until it is called."""
    engine, sockets, patience_s = make_engine(slow.compiler), FakeSockets(), 0.5
    publisher = Mock(patience_s=patience_s)
    feed = Mock(patience_s=math.inf)
    loop = Loop(sockets, Mock(), engine, publisher, feed)  # type: ignore[arg-type]
    loop._stats = Mock()  # type: ignore[method-assign]
    loop.turn()
    sequence = make_sequence(regex("slow"))
    engine.add(sequence)
    loop.turn()
    assert sockets.waits == [patience_s, POLL_S]
    slow.gate.set()
    deadline = time.monotonic() + 30
    while sequence.finish is None:
        assert time.monotonic() < deadline
        loop.turn()
    assert text_of(sequence) == "slow"
    num_waits = len(sockets.waits)
    loop.turn()
    assert sockets.waits[num_waits:] == [patience_s]


@pytest.mark.parametrize(
    ("params", "code"),
    [
        (SamplingParams(max_tokens=5, grammar=regex("(")), "invalid_grammar"),
        (SamplingParams(max_tokens=5, grammar=regex("a"), ignore_eos=True), "invalid_request"),
    ],
)
def test_frontend_hears_what_is_wrong_with_a_grammar(params: SamplingParams, code: str) -> None:
    """In one final row or verdict, whatever the client's library has let through."""
    desk = Desk(Tokenizer(tokenizer_json(TOKENIZER)))
    desk.worker.engine.waiting_room = WaitingRoom(COMPILER)
    desk.turn(desk.submit(ALICE, 5, params=params))
    deadline = time.monotonic() + 30
    while desk.worker.engine.num_compiling:
        assert time.monotonic() < deadline
        desk.turn(seconds=0.0)
        time.sleep(0.001)
    desk.turn()
    assert desk.end().code == code


def test_random_weights_make_valid_json_alone_and_batched(tmp_path: Path) -> None:
    """The same with a real forward pass: weights that know nothing still answer in the schema."""
    folder = make_tiny_model(tmp_path)
    tokenizer = Tokenizer.from_folder(folder)
    model = load_model(folder, "float32")
    compiler = GrammarCompiler(tokenizer.backend, eos_token_ids_of(model))
    values = {"type": "array", "items": {"type": "integer"}, "maxItems": 2}
    schema = {
        "type": "object",
        "properties": {"text": {"type": "string", "maxLength": 6}, "values": values},
        "required": ["text", "values"],
        "additionalProperties": False,
    }

    def outputs(batches: list[list[int]]) -> list[list[int]]:
        engine = build_engine(model, WorkerSettings(), compiler=compiler)
        found = []
        for seeds in batches:
            sequences = []
            for seed in seeds:
                params = SamplingParams(
                    max_tokens=150, temperature=2.0, seed=seed, grammar=json_schema(schema)
                )
                prompt = tokenizer.encode(f"ab {seed}")
                detokenizer = Detokenizer(tokenizer.backend, prompt)
                sequences.append(Sequence(bytes([seed]) * 16, prompt, params, detokenizer))
            run(engine, *sequences)
            found += [output_of(sequence) for sequence in sequences]
            for sequence in sequences:
                if sequence.finish == Finish("stop"):
                    jsonschema.validate(json.loads(text_of(sequence)), schema)
                    finished.append(sequence)
        return found

    finished: list[Sequence] = []
    assert outputs([[seed] for seed in range(8)]) == outputs([[*range(8)]])
    assert len(finished) > 4
