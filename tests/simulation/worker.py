"""The worker's real cores with a fake model, without sockets and processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from chairlift.shared.messages import Greeting, WorkerStats
from chairlift.shared.tokenizer import Tokenizer
from chairlift.worker.admission import Admission, Limits
from chairlift.worker.block_manager import BlockManager
from chairlift.worker.engine import Engine
from chairlift.worker.executor import HostExecutor
from chairlift.worker.intake import Intake
from chairlift.worker.model_runner import StepOutput
from chairlift.worker.publisher import Publisher, Send
from chairlift.worker.pulse import Pulse
from chairlift.worker.quarantine import Quarantine
from chairlift.worker.sampler import LogitRow
from chairlift.worker.scheduler import ContinuousScheduler, Plan
from chairlift.worker.scoring import score
from chairlift.worker.sequence import Sequence
from chairlift.worker.streams import Streams

from .model import END, VOCAB_SIZE, Language, plain_next

NUM_BLOCKS, BLOCK_SIZE = 24, 4
MAX_MODEL_LEN = 64
MAX_NUM_SEQS = 4
GRACE_S = 30.0
STATS = WorkerStats()

OnStep = Callable[[Plan], None]


class FakeRunner:
    """Stands in for the ModelRunner; what would be logits are tokens already."""

    def __init__(self, next_of: Callable[[Sequence], int], on_step: OnStep | None) -> None:
        self._next_of = next_of
        self._on_step = on_step

    def prepare(self, plan: Plan) -> Plan:
        return plan

    def run(self, plan: Plan) -> StepOutput:
        if self._on_step is not None:
            self._on_step(plan)
        tokens = [self._next_of(sequence) for sequence in plan.sampled]
        output = StepOutput(tokens)  # type: ignore[arg-type]  # for the FakeSampler
        if any(sequence.wants_score for sequence in plan.sampled):
            ends = [s.num_tokens for s in plan.sampled]
            output = StepOutput(torch.stack([*map(logits_of, tokens, ends)]))
        for number, entry in enumerate(plan.entries):
            if entry.to_score:
                output.scores[number] = [_score(entry.sequence, index) for index in entry.to_score]
        return output


def logits_of(token_id: int, index: int) -> torch.Tensor:
    """Of token `index`, if it is this one: more or less likely."""
    logits = torch.zeros(257)
    logits[token_id] = 1 + index % 5
    return logits


def _score(sequence: Sequence, index: int) -> bytes:
    token_id = sequence.token_ids[index]
    return score(logits_of(token_id, index), token_id, sequence.scores.num_top(index))


class FakeSampler:
    """Stands in for the Sampler."""

    def sample(self, tokens: list[int] | torch.Tensor, rows: list[LogitRow]) -> list[int]:
        return tokens if isinstance(tokens, list) else tokens.argmax(dim=-1).tolist()


@dataclass(frozen=True)
class Keeper:
    """What a worker has from its parent; `on_step` sees every step before it runs."""

    grace_s: float = GRACE_S
    quarantine: Quarantine | None = None
    pulse: Pulse | None = None
    on_step: OnStep | None = None


class SimulatedWorker:
    """A worker from its epoch's start to its end."""

    def __init__(
        self,
        tokenizer: Tokenizer | Language,
        epoch: int,
        now: float,
        keeper: Keeper | None = None,
    ) -> None:
        keeper = keeper or Keeper()
        language = tokenizer
        if isinstance(language, Tokenizer):
            language = Language(language, VOCAB_SIZE, plain_next)
        tokenizer = language.tokenizer
        self.epoch = epoch
        self.started_at = now
        self.blocks = BlockManager(NUM_BLOCKS, BLOCK_SIZE)
        self.scheduler = ContinuousScheduler(
            self.blocks, max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=12
        )
        self.engine = Engine(
            self.scheduler,
            HostExecutor(
                FakeRunner(language.next_of, keeper.on_step),  # type: ignore[arg-type]  # has what it calls
                FakeSampler(),  # type: ignore[arg-type]  # likewise
            ),
            frozenset({END}),
            keeper.pulse,
        )
        greeting = _greeting(language, epoch)
        self.publisher = Publisher(greeting, tokenizer.files)
        self.streams = Streams(keeper.grace_s)
        limits = Limits(language.vocab_size, MAX_MODEL_LEN, max_waiting=1000)
        admission = Admission(limits, greeting.tokenizer, keeper.quarantine)
        self.intake = Intake(self.engine, self.publisher, self.streams, tokenizer, admission)

    def turn(self, arrivals: list[bytes], send: Send, now: float) -> None:
        """What `worker.loop` does."""
        self.intake.receive(arrivals, now)
        self.intake.notify(self.engine.step())
        self.publisher.publish(send, STATS, now)


def _greeting(language: Language, epoch: int) -> Greeting:
    return Greeting(
        epoch=epoch,
        model="fake",
        created=0,
        tokenizer=language.tokenizer.fingerprint,
        chat_template=language.tokenizer.template_fingerprint,
        vocab_size=language.vocab_size,
        max_model_len=MAX_MODEL_LEN,
        frame_number=0,
    )
