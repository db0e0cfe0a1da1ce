"""The real protocol cores of a worker and its frontends in one process, on a simulated network.

Everything random comes from one seed. The fake model's next token is a function of the prompt and
the position, so a lost, doubled or reordered token shows at once.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import tokenizers
import torch
from tokenizers import decoders, models

from chairlift.frontend.protocol import FrontendProtocol, Output
from chairlift.frontend.request_options import RequestOptions
from chairlift.shared.messages import Greeting, WorkerStats
from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.tokenizer import Tokenizer
from chairlift.worker.admission import Admission, Limits
from chairlift.worker.block_manager import BlockManager
from chairlift.worker.engine import Engine
from chairlift.worker.intake import Intake
from chairlift.worker.publisher import Publisher
from chairlift.worker.sampler import Sampler
from chairlift.worker.scheduler import ContinuousScheduler, Plan
from chairlift.worker.streams import Streams

VOCAB_SIZE = 90
STEP_S = 0.01
NUM_BLOCKS, BLOCK_SIZE = 24, 4
GRACE_S = 30.0


def next_token(prompt_seed: int, position: int) -> int:
    """Of the fake model: never 0, which ends a text."""
    return 1 + (prompt_seed * 31 + position * 17 + position * position) % (VOCAB_SIZE - 1)


def letters() -> Tokenizer:
    """Single letters, so that a wrong text points at a token."""
    vocabulary = {chr(33 + i): i for i in range(VOCAB_SIZE)}
    library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    library.decoder = decoders.Fuse()
    return Tokenizer(library.to_str().encode())


class FakeRunner:
    """Stands in for the ModelRunner; a sequence's first token is its seed."""

    def prepare(self, plan: Plan) -> Plan:
        return plan

    def run(self, plan: Plan) -> torch.Tensor:
        sampled = plan.sampled
        logits = torch.zeros(len(sampled), VOCAB_SIZE)
        for row, sequence in enumerate(sampled):
            logits[row, next_token(sequence.token_ids[0], sequence.num_tokens)] = 9.0
        return logits


class SimulatedWorker:
    """The worker's cores without its sockets."""

    def __init__(self, tokenizer: Tokenizer, epoch: int, now: float) -> None:
        self.blocks = BlockManager(NUM_BLOCKS, BLOCK_SIZE)
        scheduler = ContinuousScheduler(self.blocks, max_num_seqs=4, max_num_batched_tokens=12)
        eos = frozenset({0})
        self.engine = Engine(scheduler, FakeRunner(), Sampler(eos), eos)  # type: ignore[arg-type]
        greeting = Greeting(
            epoch=epoch,
            min_version=1,
            max_version=1,
            model="fake",
            created=0,
            tokenizer=tokenizer.fingerprint,
            chat_template=tokenizer.template_fingerprint,
            vocab_size=VOCAB_SIZE,
            max_model_len=64,
            frame_number=0,
        )
        self.publisher = Publisher(greeting, tokenizer.files)
        self.streams = Streams(grace_s=GRACE_S)
        limits = Limits(VOCAB_SIZE, 64, max_waiting=1000)
        admission = Admission(limits, tokenizer.fingerprint)
        self.intake = Intake(self.engine, self.publisher, self.streams, tokenizer, admission)
        self.now = now

    def turn(self, arrivals: list[bytes], send: object, now: float) -> None:
        self.intake.receive(arrivals, now)
        self.intake.notify(self.engine.step())
        self.publisher.publish(send, WorkerStats(), now)  # type: ignore[arg-type]


@dataclass
class Expected:
    """What one request must yield and what it has yielded."""

    prompt: list[int]
    params: SamplingParams
    received: list[int] = field(default_factory=list)
    text: str = ""
    num_ends: int = 0

    def correct_tokens(self) -> list[int]:
        start = len(self.prompt)
        return [next_token(self.prompt[0], start + i) for i in range(self.params.max_tokens)]


class SimulatedFrontend:
    """A real frontend core, with its two directions of the network as queues."""

    def __init__(self, frontend_id: bytes, now: float) -> None:
        self.protocol = FrontendProtocol(frontend_id, now)
        self.to_worker: deque[bytes] = deque()
        self.to_frontend: deque[bytes] = deque()
        self.is_stalled = False
        self.requests: dict[bytes, Expected] = {}

    def receive(self, now: float) -> None:
        while self.to_frontend:
            for event in self.protocol.receive(self.to_frontend.popleft(), now):
                if isinstance(event, Output) and event.request_id in self.requests:
                    expected = self.requests[event.request_id]
                    expected.received += event.token_ids
                    expected.text += event.text
                    expected.num_ends += event.finish is not None
        self.protocol.tick(now)
        self.to_worker.extend(self.protocol.outgoing)
        self.protocol.outgoing.clear()


class Simulation:
    """Runs frontends against a worker while the network and the processes misbehave."""

    def __init__(self, seed: int, tokenizer: Tokenizer, *, num_frontends: int = 3) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.tokenizer = tokenizer
        self.worker = SimulatedWorker(tokenizer, self.random.getrandbits(60), self.now)
        ids = [self.random.randbytes(8) for _ in range(num_frontends)]
        self.frontends = [SimulatedFrontend(frontend_id, self.now) for frontend_id in ids]
        for frontend in self.frontends:
            self.worker.publisher.subscribed(frontend.protocol.frontend_id, self.now)
        self.loss = 0.0
        self.request_ids: list[bytes] = []

    def crash_worker(self) -> None:
        """A new process with a new epoch; what was on its way is gone."""
        self.worker = SimulatedWorker(self.tokenizer, self.random.getrandbits(60), self.now)
        for frontend in self.frontends:
            frontend.to_worker.clear()
            frontend.to_frontend.clear()
            self.worker.publisher.subscribed(frontend.protocol.frontend_id, self.now)

    def reset_connection(self, frontend: SimulatedFrontend) -> None:
        """Both directions lose what is in flight, and the subscription is made anew."""
        frontend.to_worker.clear()
        frontend.to_frontend.clear()
        self.worker.publisher.unsubscribed(frontend.protocol.frontend_id, self.now)
        self.worker.publisher.subscribed(frontend.protocol.frontend_id, self.now)

    def submit(self, frontend: SimulatedFrontend) -> None:
        prompt = [self.random.randrange(1, VOCAB_SIZE) for _ in range(self.random.randint(1, 20))]
        params = SamplingParams(max_tokens=self.random.randint(1, 30), temperature=0.0)
        request_id = self.random.randbytes(16)
        frontend.requests[request_id] = Expected(prompt, params)
        self.request_ids.append(request_id)
        options = RequestOptions(request_id)
        frontend.protocol.submit(prompt, params, options, self.now)

    def cancel(self, frontend: SimulatedFrontend) -> None:
        live = [rid for rid, expected in frontend.requests.items() if not expected.num_ends]
        if live:
            request_id = self.random.choice(live)
            frontend.protocol.cancel(request_id)
            del frontend.requests[request_id]

    def turn(self) -> None:
        """Each frontend's messages out, one worker step, frames back."""
        self.now += STEP_S
        arrivals = [m for f in self.frontends for m in self._delivered(f.to_worker)]
        self.worker.turn(arrivals, self._send, self.now)
        for frontend in self.frontends:
            if not frontend.is_stalled:
                frontend.receive(self.now)

    def settle(self, max_turns: int) -> None:
        """No more faults: everything must come to its end within so many turns."""
        self.loss = 0.0
        for frontend in self.frontends:
            frontend.is_stalled = False
        for _ in range(max_turns):
            self.turn()
            if all(e.num_ends for f in self.frontends for e in f.requests.values()):
                return
        raise AssertionError("a request is stuck")

    def _delivered(self, queue: deque[bytes]) -> list[bytes]:
        messages = [m for m in queue if self.random.random() >= self.loss]
        queue.clear()
        return messages

    def _send(self, topic: bytes, body: bytes) -> bool:
        frontend = next(f for f in self.frontends if f.protocol.frontend_id == topic)
        if len(frontend.to_frontend) >= 5:
            return False
        if self.random.random() >= self.loss:
            frontend.to_frontend.append(body)
        return True
