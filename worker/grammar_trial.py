"""Grammars are compiled in another process first, which may die of one in the worker's stead.

llguidance bounds most of what a grammar costs, but not all: a `multipleOf` that is a large prime
takes a state for each remainder, minutes and gigabytes. No thread can be stopped, and no exception
comes of memory that ran out in Rust; a process has limits that hold.

Run as a program it is that process.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

import msgspec
import tokenizers
from msgspec import Struct

from ..shared.sampling_params import Grammar
from .grammar import NAMES, NUM_THREADS, TIMEOUT_S, GrammarError, Vocabulary, compile_grammar

MAX_BYTES = 256 << 20  # 64 KiB of JSON schema take a tenth
START_TIMEOUT_S = 60.0  # for reading the vocabulary
NICENESS = 10
STACK_BYTES = 4 << 20  # of a worker's thread it is twice that: what recurses too deep dies here
PACKAGE_ROOT = Path(__file__).absolute().parents[2]


class Terms(Struct, frozen=True):
    """What the process is told first."""

    tokenizer: str  # its JSON
    eos_token_ids: list[int]
    timeout_s: float
    max_bytes: int


class Verdict(Struct, frozen=True):
    """What it says of a grammar."""

    code: str = ""  # of the error, if there is one
    message: str = ""


class GrammarTrials:
    """Owns the processes: one for each thread of the compiler, made when it is needed."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        eos_token_ids: frozenset[int],
        *,
        timeout_s: float = TIMEOUT_S,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._terms = Terms(tokenizer.to_str(), sorted(eos_token_ids), timeout_s, max_bytes)
        self._idle: SimpleQueue[subprocess.Popen[bytes] | None] = SimpleQueue()
        for _ in range(NUM_THREADS):
            self._idle.put(None)

    def check(self, grammar: Grammar) -> None:
        """Waits for the verdict. Raises GrammarError when the grammar can't be compiled, or not
        within the limits."""
        process = self._idle.get()
        try:
            if process and process.poll() is not None:  # killed, for no grammar's fault
                _buried(process)
                process = None
            process = process or self._start()
            verdict = _asked(process, grammar)
            if verdict is None:
                dead, process = process, None
                raise self._death(grammar, _buried(dead))
        finally:
            self._idle.put(process)
        if verdict.code:
            raise GrammarError(verdict.message, code=verdict.code)

    def close(self) -> None:
        """For when no thread checks any more. (A process also ends with its parent.)"""
        while not self._idle.empty():
            if process := self._idle.get():
                _buried(process)

    def _start(self) -> subprocess.Popen[bytes]:
        paths = [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"chairlift.worker.{Path(__file__).stem}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Rust's last words
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        _write(process, self._terms)
        return process

    def _death(self, grammar: Grammar, status: int) -> GrammarError:
        name = NAMES[grammar.kind]
        if status == -signal.SIGALRM:
            why = f"takes more than {self._terms.timeout_s:g} s to compile"
        elif status == -signal.SIGSEGV:
            why = "is nested too deeply to compile"
        else:
            why = f"takes more than {self._terms.max_bytes >> 20} MiB to compile"
        return GrammarError(f"{name} {why}: simplify it")


def _asked(process: subprocess.Popen[bytes], grammar: Grammar) -> Verdict | None:
    """None when the process has died of it."""
    assert process.stdout, "it was made with a pipe"
    try:
        _write(process, grammar)
    except BrokenPipeError:
        return None
    line = process.stdout.readline()
    return msgspec.json.decode(line, type=Verdict) if line else None


def _buried(process: subprocess.Popen[bytes]) -> int:
    """Its status, once nothing is left of it."""
    process.kill()
    with suppress(BrokenPipeError), process:
        pass
    return process.returncode


def _write(process: subprocess.Popen[bytes], message: Struct) -> None:
    assert process.stdin, "it was made with a pipe"
    process.stdin.write(msgspec.json.encode(message) + b"\n")
    process.stdin.flush()


def main() -> None:
    """The process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the worker's to hear
        signal.signal(number, signal.SIG_IGN)
    threading.stack_size(STACK_BYTES)
    judge = threading.Thread(target=_judge)
    judge.start()
    judge.join()


def _judge() -> None:
    """Terms in, then grammars, each answered by a verdict; until there are no more."""
    os.nice(NICENESS)
    terms = msgspec.json.decode(sys.stdin.buffer.readline(), type=Terms)
    signal.setitimer(signal.ITIMER_REAL, START_TIMEOUT_S)  # nobody catches the alarm: it kills
    tokenizer = tokenizers.Tokenizer.from_str(terms.tokenizer)
    vocabulary = Vocabulary(tokenizer, frozenset(terms.eos_token_ids))
    max_bytes = _address_space() + terms.max_bytes
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    signal.setitimer(signal.ITIMER_REAL, 0)
    for line in sys.stdin.buffer:
        grammar = msgspec.json.decode(line, type=Grammar)
        signal.setitimer(signal.ITIMER_REAL, terms.timeout_s)
        verdict = _verdict(grammar, vocabulary)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.buffer.write(msgspec.json.encode(verdict) + b"\n")
        sys.stdout.buffer.flush()


def _verdict(grammar: Grammar, vocabulary: Vocabulary) -> Verdict:
    try:
        compile_grammar(grammar, vocabulary)
    except GrammarError as error:
        return Verdict(error.code, str(error))
    return Verdict()


def _address_space() -> int:
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    return num_pages * resource.getpagesize()


if __name__ == "__main__":
    main()
