"""Grammars that would take the worker's memory, time or life take another process's."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from chairlift.shared.sampling_params import Grammar
from chairlift.worker.grammar import (
    NUM_THREADS,
    GrammarCompiler,
    GrammarError,
    Vocabulary,
    compile_grammar,
)
from chairlift.worker.grammar_trial import GrammarTrials
from tests.worker.test_grammar import EOS, TOKENIZER

VOCABULARY = Vocabulary(TOKENIZER, EOS)

GOOD = Grammar("regex", "[ab]+")
BAD = Grammar("regex", "(")
LARGE_PRIME = 99_999_989  # as many states


def schema(value: object) -> Grammar:
    return Grammar("json_schema", json.dumps(value, separators=(",", ":")))


@pytest.fixture
def trials() -> Iterator[GrammarTrials]:
    made = GrammarTrials(TOKENIZER, EOS, timeout_s=2.0, max_bytes=64 << 20)
    yield made
    made.close()


def test_verdicts_are_those_of_the_compiler(trials: GrammarTrials) -> None:
    """What is good passes; what is not is told in the same words."""
    trials.check(GOOD)
    for bad in (BAD, Grammar("lark", "start: nosuch"), schema({"type": "nosuch"})):
        with pytest.raises(GrammarError) as here:
            compile_grammar(bad, VOCABULARY)
        with pytest.raises(GrammarError) as there:
            trials.check(bad)
        assert (str(there.value), there.value.code) == (str(here.value), here.value.code)
    trials.check(GOOD)


@pytest.mark.parametrize(
    "bomb",
    [
        schema({"type": "integer", "multipleOf": LARGE_PRIME}),
        Grammar("lark", f'start: %json {{"type": "integer", "multipleOf": {LARGE_PRIME}}}'),
    ],
    ids=["schema", "lark"],
)
def test_what_takes_too_much_is_refused(trials: GrammarTrials, bomb: Grammar) -> None:
    """And the next one is judged by a new process."""
    with pytest.raises(GrammarError, match=r"takes more than .*: simplify it") as refused:
        trials.check(bomb)
    assert refused.value.code == "invalid_grammar"
    trials.check(GOOD)


CHAIN = "start: a0\n" + "\n".join(f'a{i}: a{i + 1} "x"' for i in range(3500)) + '\na3500: "y"'
NESTED = {f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}, "required": ["a"]}
          for i in range(900)}  # fmt: skip


@pytest.mark.parametrize(
    "deep",
    [
        Grammar("lark", CHAIN),
        schema({"$defs": NESTED | {"d900": {"type": "string"}}, "$ref": "#/$defs/d0"}),
    ],
    ids=["lark", "schema"],
)
def test_what_is_nested_too_deeply_is_refused(trials: GrammarTrials, deep: Grammar) -> None:
    """Although it overflows the stack of who compiles it."""
    with pytest.raises(GrammarError, match="nested too deeply to compile: simplify it"):
        trials.check(deep)
    trials.check(GOOD)


def test_what_takes_too_long_is_refused() -> None:
    """With memory enough, time is the limit."""
    trials = GrammarTrials(TOKENIZER, EOS, timeout_s=0.2, max_bytes=8 << 30)
    with pytest.raises(GrammarError, match=r"takes more than 0.2 s to compile"):
        trials.check(schema({"type": "integer", "multipleOf": LARGE_PRIME}))
    trials.close()


def test_a_process_that_was_killed_is_replaced(
    trials: GrammarTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an operator's mistake, or for the machine's memory, between two grammars."""
    made = []
    start = trials._start
    monkeypatch.setattr(trials, "_start", lambda: made.append(start()) or made[-1])
    for _ in range(NUM_THREADS):
        trials.check(GOOD)
    for process in made:
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    for _ in range(3 * NUM_THREADS):
        trials.check(GOOD)
    assert len(made) == 2 * NUM_THREADS


def test_checks_run_side_by_side(trials: GrammarTrials) -> None:
    """As many as there are threads; one more waits for its turn."""
    with ThreadPoolExecutor(2 * NUM_THREADS) as threads:
        checks = [threads.submit(trials.check, GOOD) for _ in range(20)]
    assert all(check.exception() is None for check in checks)


def test_the_process_ends_with_its_parent() -> None:
    """It reads to the end of its pipe, which the parent holds alone."""
    trials = GrammarTrials(TOKENIZER, EOS)
    trials.check(GOOD)
    process = next(one for one in (trials._idle.get() for _ in range(NUM_THREADS)) if one)
    for number in (signal.SIGINT, signal.SIGTERM):  # not with its group
        os.kill(process.pid, number)
    assert process.poll() is None
    assert process.stdin and process.stdout
    process.stdin.close()
    assert process.wait(timeout=10) == 0
    process.stdout.close()


def test_the_compiler_asks_first() -> None:
    """In its thread, and compiles nothing that was refused."""
    asked = []

    def check(grammar: Grammar) -> None:
        asked.append(threading.current_thread())
        raise GrammarError("it would kill us")

    compiler = GrammarCompiler(TOKENIZER, EOS, check=check)
    compilation = compiler.start(GOOD)
    with pytest.raises(GrammarError, match="it would kill us"):
        compilation.future.result(timeout=10)
    with pytest.raises(GrammarError, match="it would kill us"):
        compiler.result(compilation)
    assert asked and asked[0] is not threading.main_thread()
