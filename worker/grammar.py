"""What a request's grammar allows next, by llguidance. Knows no logits and no engine.

A grammar is compiled in a thread, once for all who ask for it at the same time or soon after; tried
out before, since a thread can't be stopped.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import llguidance
import numpy as np
import tokenizers
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from ..shared.errors import ChairliftError
from ..shared.messages import Finish
from ..shared.sampling_params import Grammar

NUM_THREADS = 2
TIMEOUT_S = 5.0  # 64 KiB of JSON schema take 0.1 s
MAX_KEPT = 32  # compilations that have ended, for those who ask again
MAX_MESSAGE_CHARACTERS = 500
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"  # in JSON: a model that likes spaces must get on some time
PROBE = "a b 1"  # says whether llguidance reads a tokenizer's tokens as the tokenizer does
SYNTAX_CHARACTERS = frozenset("\\^$.|?*+()[]{}-/&~#")
END = "<|chairlift: end of the output|>"
NAMES = {
    "json_schema": "the JSON schema",
    "regex": "the regular expression",
    "lark": "the Lark grammar",
    "choice": "the choice",
}
LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,  # 20 ms
    step_lexer_fuel=50_000,  # bounds what one mask costs everybody in the step
    step_max_items=1_000,  # 200 optional properties; an ambiguous grammar takes 12 ms for a mask
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)


class GrammarError(ChairliftError):
    """A grammar that can't be compiled (`invalid_grammar`) or can't be followed any further."""

    def __init__(self, message: str, *, code: str = "invalid_grammar") -> None:
        super().__init__(message)
        self.code = code

    @property
    def finish(self) -> Finish:
        return Finish("error", code=self.code, message=str(self))


class Constraint:
    """Where one sequence is in its grammar: a pure function of the output tokens taken.

    An EOS is allowed where the output may end, and is not taken. Where nothing else may come, the
    constraint `is_complete`, and no EOS is needed.
    """

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._forbidden: NDArray[np.bool_] | None = None  # until the next token is taken

    def forbidden(self) -> NDArray[np.bool_]:
        """Which tokens must not come next [num_tokens of the tokenizer]; nor may any other.

        Raises GrammarError when none may.
        """
        if self._forbidden is None:
            self._forbidden = self._vocabulary.forbidden(self._matcher)
        if self._forbidden.all():
            raise self._error("no token of this model continues it")
        return self._forbidden

    def take(self, token_id: int) -> None:
        """The next token of the output. Raises GrammarError when the grammar does not allow it."""
        self._forbidden = None
        if not self._matcher.consume_token(token_id):
            raise self._error("a token is not allowed")

    def end(self) -> None:
        """An EOS has come. Raises GrammarError when the output may not end here."""
        if not self._matcher.is_accepting():
            raise self._error("it ends too early")

    @property
    def is_complete(self) -> bool:
        if self._matcher.is_stopped() or self._vocabulary.has_eos:
            return bool(self._matcher.is_stopped())
        return self._matcher.is_accepting() and bool(
            self._vocabulary.forbidden(self._matcher).all()
        )

    def _error(self, why: str) -> GrammarError:
        """Where llguidance reached its limits, it knows more."""
        why = _short(self._matcher.get_error()) or why
        message = f"the output can't go on as the grammar wants it: {why}"
        return GrammarError(message, code="grammar_failed")


class Vocabulary:
    """The tokens as llguidance knows them. Made once; with 150,000 tokens in half a second, which
    no other thread can use."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, eos_token_ids: frozenset[int]) -> None:
        """Raises GrammarError for a tokenizer whose tokens llguidance can't read."""
        eos = sorted(i for i in eos_token_ids if tokenizer.id_to_token(i) is not None)
        self.has_eos = bool(eos)
        if not eos:  # llguidance needs one
            tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
            tokenizer.add_special_tokens([tokenizers.AddedToken(END, special=True)])
            eos = [tokenizer.token_to_id(END) or 0]  # it is there: it was just added
        try:
            self.tokens = llguidance.LLTokenizer(tokenizer.to_str(), eos_token=eos)
            probe = tokenizer.encode(PROBE, add_special_tokens=False).ids
            is_read = self.tokens.decode_bytes(probe).strip() == PROBE.encode()
        except ValueError as error:
            raise _unsupported(str(error)) from None
        if not is_read:
            raise _unsupported("its tokens are not those of a byte-level or SentencePiece model")
        self._unreal = [] if self.has_eos else eos

    def forbidden(self, matcher: llguidance.LLMatcher) -> NDArray[np.bool_]:
        """Which tokens the matcher does not allow next [num_tokens]."""
        bits = allocate_token_bitmask(1, self.tokens.vocab_size)
        try:
            fill_next_token_bitmask(matcher, bits)
        except ValueError:  # it is in the error state
            return np.ones(self.tokens.vocab_size, dtype=np.bool_)
        np.invert(bits, out=bits)
        forbidden = np.unpackbits(
            bits.view(np.uint8)[0], count=self.tokens.vocab_size, bitorder="little"
        ).view(np.bool_)
        forbidden[self._unreal] = True
        return forbidden


@dataclass(slots=True, eq=False)
class Compilation:
    """One grammar on its way, for all sequences that wait for it."""

    grammar: Grammar
    future: Future[llguidance.LLMatcher] = field(init=False)  # a matcher that nobody advances
    started_at: float | None = None
    num_waiting: int = 0

    @property
    def has_failed(self) -> bool:
        return self.future.done() and self.future.exception() is not None


class GrammarCompiler:
    """Owns the vocabulary, the threads, and what was compiled lately.

    All methods belong to one thread, the engine's, and none of them waits.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        eos_token_ids: frozenset[int],
        *,
        check: Callable[[Grammar], None] = lambda _: None,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`check` is what a thread does first: see GrammarTrials."""
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._check = check
        self._timeout_s = timeout_s
        self._clock = clock
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="grammar")
        self._vocabulary: Future[Vocabulary] | None = None
        self._compilations: OrderedDict[Grammar, Compilation] = OrderedDict()  # oldest use first

    def prepare(self) -> None:
        """Makes the vocabulary, which the first grammar would have to wait for."""
        if self._vocabulary is None:
            self._vocabulary = self._threads.submit(
                Vocabulary, self._tokenizer, self._eos_token_ids
            )

    def start(self, grammar: Grammar) -> Compilation:
        """The compilation that will say what the grammar allows; one for equal grammars."""
        self.prepare()
        compilation = self._compilations.get(grammar)
        if compilation is None or compilation.has_failed:
            compilation = self._compilations[grammar] = Compilation(grammar)
            compilation.future = self._threads.submit(self._compile, compilation)
            self._forget_oldest()
        self._compilations.move_to_end(grammar)
        compilation.num_waiting += 1
        return compilation

    def result(self, compilation: Compilation) -> Constraint | None:
        """A new constraint; None while it is being compiled. Raises GrammarError when it can't be,
        or takes too long."""
        if compilation.future.done():
            assert self._vocabulary is not None
            return Constraint(compilation.future.result().deep_copy(), self._vocabulary.result())
        started_at = compilation.started_at
        if started_at is None or self._clock() - started_at < self._timeout_s:
            return None
        raise GrammarError(
            f"{NAMES[compilation.grammar.kind]} takes more than {self._timeout_s:g} s to compile: "
            "simplify it"
        )

    def leave(self, compilation: Compilation) -> None:
        """Somebody no longer waits; with the last one it is dropped, unless it has begun."""
        compilation.num_waiting -= 1
        if compilation.num_waiting == 0 and compilation.future.cancel():
            del self._compilations[compilation.grammar]

    def _compile(self, compilation: Compilation) -> llguidance.LLMatcher:
        assert self._vocabulary is not None
        vocabulary = self._vocabulary.result()
        self._check(compilation.grammar)
        compilation.started_at = self._clock()
        return compile_grammar(compilation.grammar, vocabulary)

    def _forget_oldest(self) -> None:
        ended = [c.grammar for c in self._compilations.values() if c.future.done()]
        for grammar in ended[: max(0, len(ended) - MAX_KEPT)]:
            del self._compilations[grammar]


def compile_grammar(grammar: Grammar, vocabulary: Vocabulary) -> llguidance.LLMatcher:
    """A matcher at the grammar's beginning. Raises GrammarError, in its author's terms."""
    name = NAMES[grammar.kind]
    try:
        notation = NOTATIONS[grammar.kind](grammar.source)
        if grammar.frame:
            notation = _framed(grammar.frame, notation)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"{name} can't be read: {_short(str(error))}") from None
    matcher = llguidance.LLMatcher(vocabulary.tokens, notation, log_level=0, limits=LIMITS)
    is_stuck = bool(vocabulary.forbidden(matcher).all())  # the first mask is the slowest by far
    problem = matcher.get_error()
    if "NoExtensionBias" in problem or (is_stuck and not problem):
        raise GrammarError(f"{name} can't be used: no output of this model's tokens matches it")
    if problem:
        raise GrammarError(f"{name} can't be used: {_short(problem)}")
    return matcher


def _framed(frame: str, notation: str) -> str:
    """Both in one, as llguidance composes grammars."""
    grammar = {"lark_grammar": notation}
    if notation.startswith("{"):  # what llguidance made of a schema
        (grammar,) = json.loads(notation)["grammars"]
    return json.dumps({"grammars": [{"lark_grammar": frame}, {**grammar, "name": "output"}]})


def _json_schema(source: str) -> str:
    schema = json.loads(source)
    if schema is True:
        source = "{}"
    elif not isinstance(schema, dict):
        raise ValueError("it has to be an object, or true")
    elif "x-guidance" in schema:  # would set aside what we promise of white space and keywords
        raise ValueError("x-guidance is not supported: leave it out")
    return llguidance.LLMatcher.grammar_from_json_schema(
        source, defaults={"whitespace_pattern": WHITESPACE}
    )


def _regex(source: str) -> str:
    """Digits are those of ASCII; letters and spaces are Unicode's."""
    return "start: /" + llguidance.regex_to_lark(source, use_ascii="d") + "/"


def _lark(source: str) -> str:
    if source.lstrip().startswith("{"):  # llguidance would take it for a notation of its own
        raise ValueError("it begins with a brace, as no grammar in Lark's notation does")
    return llguidance.LLMatcher.grammar_from_lark(source)


def _choice(source: str) -> str:
    choices = json.loads(source)
    is_list = isinstance(choices, list) and choices
    if not is_list or not all(isinstance(text, str) and text for text in choices):
        raise ValueError("it has to be a list of strings, none of them empty")
    return llguidance.LLMatcher.grammar_from_regex("|".join(map(_escaped, choices)))


def _escaped(text: str) -> str:
    """A regular expression for the text itself. (re.escape knows another syntax.)"""
    return "".join("\\" + c if c in SYNTAX_CHARACTERS else c for c in text)


def _short(message: str) -> str:
    """On one line, and not all of it."""
    return " ".join(message.replace("<non-verbose/>", "").split())[:MAX_MESSAGE_CHARACTERS]


def _unsupported(why: str) -> GrammarError:
    message = f"this model's output can't be constrained: {_short(why)}"
    return GrammarError(message, code="grammar_not_supported")


NOTATIONS: dict[str, Callable[[str], str]] = {
    "json_schema": _json_schema,
    "regex": _regex,
    "lark": _lark,
    "choice": _choice,
}
