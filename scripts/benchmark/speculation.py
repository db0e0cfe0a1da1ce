"""What verified guesses save one stream of the demo model, and cost it where nothing repeats."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.settings import DEMO_MODEL_FOLDER, WorkerSettings
from chairlift.shared.tokenizer import Tokenizer
from chairlift.worker.sequence import Sequence as EngineSequence

from . import options as shared
from .errors import BenchmarkError
from .machine import LoadMeter
from .options import Modes
from .scenarios import Rows, Scenario

ROUNDS, QUICK_ROUNDS = 5, 1  # of which the medians are told
MAX_TOKENS = 200
WORDS = "apple table window river mountain cloud chair lift green fox drum blue house water tree"
SENTENCE = (
    "Continuous batching means that new requests join the running batch between two steps and "
    "finished ones leave at once, so nobody waits."
)


@dataclass(frozen=True, slots=True)
class Text:
    """What the model is given; whether it says that again, and goes on after the end."""

    title: str
    prompt: list[int]
    is_repeated: bool = True
    ignore_eos: bool = False


def texts(tokenizer: Tokenizer) -> list[Text]:
    def chat(question: str) -> list[int]:
        return tokenizer.encode_chat([{"role": "user", "content": question}])

    return [
        Text("words said again", chat(f"Repeat after me: {WORDS}")),
        Text("a sentence said again", chat(f"Say: {SENTENCE}")),
        Text("a refrain gone on with", tokenizer.encode(f"{WORDS}. " * 3), ignore_eos=True),
        Text("a story", chat("Tell me a long story about a fox."), is_repeated=False),
    ]


class Stream:
    """One request after the other, with or without guesses."""

    def __init__(self, speculation: str, num_threads: int | None) -> None:
        # With torch, which takes seconds, and no other mode needs it in this process.
        from chairlift.worker.main import build_engine, prepare_process
        from chairlift.worker.models.loader import load_model

        prepare_process(num_threads)
        settings = WorkerSettings(**{"speculation": speculation})  # type: ignore[arg-type]
        self._engine = build_engine(load_model(DEMO_MODEL_FOLDER, "auto"), settings)
        self._engine.warm_up()

    def run(self, text: Text, temperature: float) -> Answer:
        params = SamplingParams(
            max_tokens=MAX_TOKENS, temperature=temperature, seed=5, ignore_eos=text.ignore_eos
        )
        engine, sequence = self._engine, EngineSequence(os.urandom(16), text.prompt, params)
        num_drafts, num_accepted = engine.num_draft_tokens, engine.num_accepted_tokens
        engine.add(sequence)
        engine.step()
        started_s = time.perf_counter()
        while engine.scheduler.has_work:
            engine.step()
        return Answer(
            sequence.token_ids[sequence.num_prompt_tokens :],
            time.perf_counter() - started_s,
            engine.num_draft_tokens - num_drafts,
            engine.num_accepted_tokens - num_accepted,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """The output, and what it took from its first token on."""

    token_ids: list[int]
    seconds: float
    num_drafts: int
    num_accepted: int

    @property
    def tokens_per_s(self) -> float:
        return (len(self.token_ids) - 1) / self.seconds


def add_parser(modes: Modes) -> None:
    text = "one stream of the demo model, with and without guesses at its next tokens"
    one = modes.add_parser("speculation", help=text)
    shared.add_output(one)
    one.add_argument("--num-threads", type=shared.positive, help="(default: torch's own choice)")
    one.add_argument("--quick", action="store_true", help="one round, to see that it runs")
    one.set_defaults(measure=measure)


def measure(options: argparse.Namespace) -> Iterator[Scenario]:
    """In this process. Raises BenchmarkError where guesses change an answer."""
    off, auto = (Stream(name, options.num_threads) for name in ("off", "auto"))
    num_rounds = QUICK_ROUNDS if options.quick else ROUNDS
    meter = LoadMeter([os.getpid()])
    rows: Rows = []
    for text in texts(Tokenizer.from_folder(DEMO_MODEL_FOLDER)):
        for temperature in (0.0, 1.0):
            answers = [
                (off.run(text, temperature), auto.run(text, temperature)) for _ in range(num_rounds)
            ]
            title = f"{text.title}, temperature {temperature:g}"
            must = ">= 1.3" if text.is_repeated and not temperature else ""
            rows += _rows(title, answers, must)
    foreign = meter.read().foreign_cpu_percent
    about = f"The demo model, one stream; other programs used {foreign:.1f} % of the CPU."
    yield Scenario("speculation", about, rows)


def _rows(title: str, answers: Sequence[tuple[Answer, Answer]], must: str) -> Rows:
    if any(auto.token_ids != off.token_ids for off, auto in answers):
        raise BenchmarkError(f"{title}: guesses have changed the answer")
    off = statistics.median(answer.tokens_per_s for answer, _ in answers)
    auto = statistics.median(answer.tokens_per_s for _, answer in answers)
    last = answers[-1][1]
    return [
        (f"{title}: tokens/s without guesses", off, ""),
        ("tokens/s with them", auto, ""),
        ("ratio", auto / off, must),
        (f"right of {last.num_drafts} guesses in the last run", last.num_accepted, ""),
    ]
