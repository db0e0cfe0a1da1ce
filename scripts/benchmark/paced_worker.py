"""A worker without a model, run as a program: each running stream gets a token a step, and steps
come at a fixed pace. All but the model is real. A token's text is the number of its step."""

from __future__ import annotations

import json
import secrets
import signal
import sys
import time
from pathlib import Path

import msgspec
import tokenizers
from tokenizers import decoders, models

from chairlift.shared.addresses import Endpoints
from chairlift.shared.logprobs import pack_logprob
from chairlift.shared.messages import Greeting
from chairlift.shared.tokenizer import Tokenizer
from chairlift.worker.admission import Admission, Limits
from chairlift.worker.block_manager import BlockManager
from chairlift.worker.engine import Engine
from chairlift.worker.executor import Choice, Computed, Executor, Flight, Landed
from chairlift.worker.feed import Feed
from chairlift.worker.intake import Intake
from chairlift.worker.loop import Loop
from chairlift.worker.publisher import Publisher
from chairlift.worker.pulse import Wish
from chairlift.worker.scheduler import ContinuousScheduler, Plan
from chairlift.worker.sequence import Sequence
from chairlift.worker.sockets import WorkerSockets
from chairlift.worker.step_times import StepTimes
from chairlift.worker.streams import Streams

from .course import Course

MAX_STEPS = 32_768  # then the numbers begin again
MAX_NUM_SEQS = 1024
NUM_BLOCKS, BLOCK_SIZE = 65_536, 32
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


class PacedExecutor(Executor):
    """A step ends when the pace says so, or at once when it is late."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._due_s = 0.0
        self._num_steps = 0

    def launch(self, plan: Plan, times: StepTimes) -> Flight:
        now = time.perf_counter()
        self._due_s = max(now, self._due_s + self._step_s)
        time.sleep(self._due_s - now)
        token_id = self._num_steps % MAX_STEPS
        self._num_steps += 1
        return Landed(
            [
                Computed((Choice(token_id, _score(entry.sequence, token_id)),))
                for entry in plan.entries
            ]
        )


class MeteredEngine(Engine):
    """Keeps the course of its steps."""

    def __init__(self, scheduler: ContinuousScheduler, step_s: float) -> None:
        super().__init__(scheduler, PacedExecutor(step_s), frozenset())
        self.course = Course()

    def step(self) -> list[Sequence]:
        begin_s = time.thread_time()
        num_steps = self.num_steps
        changed = super().step()
        if self.num_steps > num_steps:
            self.course.engine_s.append(time.thread_time() - begin_s)
            self.course.num_tokens.append(len(changed))
            self.course.made_s.append(time.perf_counter())
        return changed


def _score(sequence: Sequence, token_id: int) -> bytes:
    num_top = sequence.params.num_logprobs
    if num_top < 0:
        return b""
    ids = [(token_id + i) % MAX_STEPS for i in range(num_top)]
    return pack_logprob(-0.7, ids, [-0.7 - i for i in range(num_top)])


class MeteredLoop(Loop):
    """Counts the thread's own time for messages: that of a turn, less the engine's."""

    def __init__(
        self, sockets: WorkerSockets, intake: Intake, engine: MeteredEngine, publisher: Publisher
    ) -> None:
        super().__init__(sockets, intake, engine, publisher, Feed(engine, publisher.epoch, 0.0))
        self._course = engine.course

    def turn(self) -> None:
        begin_s = time.thread_time()
        super().turn()
        course = self._course
        if len(course.messaging_s) < len(course.engine_s):
            spent_s = time.thread_time() - begin_s
            course.messaging_s.append(spent_s - course.engine_s[-1])


def main(address: str, step_ms: str, course_file: str) -> int:
    tokenizer = _tokenizer()
    blocks = BlockManager(NUM_BLOCKS, BLOCK_SIZE)
    scheduler = ContinuousScheduler(
        blocks, max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=2 * MAX_NUM_SEQS
    )
    engine = MeteredEngine(scheduler, float(step_ms) / 1000)
    limits = Limits(MAX_STEPS, MAX_STEPS, max_waiting=MAX_NUM_SEQS)
    publisher = Publisher(_greeting(tokenizer), tokenizer.files)
    admission = Admission(limits, tokenizer.fingerprint)
    intake = Intake(engine, publisher, Streams(0.0), tokenizer, admission)
    loop = MeteredLoop(WorkerSockets(Endpoints.parse(address)), intake, engine, publisher)
    signal.signal(signal.SIGTERM, lambda *_: setattr(engine.pulse, "wish", Wish.STOP))
    loop.run(0.0)
    loop.close()
    Path(course_file).write_bytes(msgspec.json.encode(engine.course))
    return 0


def _tokenizer() -> Tokenizer:
    """Numbers of six characters; any other text is one unknown token."""
    numbers = {f" {number:05}": number for number in range(MAX_STEPS)}
    library = tokenizers.Tokenizer(
        models.BPE(vocab=numbers, merges=[], unk_token=" 00000", fuse_unk=True)
    )
    library.decoder = decoders.Fuse()
    config = json.dumps({"chat_template": TEMPLATE})
    return Tokenizer(library.to_str().encode(), config.encode())


def _greeting(tokenizer: Tokenizer) -> Greeting:
    return Greeting(
        epoch=secrets.randbits(63),
        model="paced",
        created=int(time.time()),
        tokenizer=tokenizer.fingerprint,
        chat_template=tokenizer.template_fingerprint,
        vocab_size=MAX_STEPS,
        max_model_len=MAX_STEPS,
        frame_number=0,
    )


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
