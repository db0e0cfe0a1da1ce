"""A worker without sockets, a clock that tests turn, and what each frontend has received."""

from __future__ import annotations

from collections.abc import Iterator

from chairlift.shared.codec import decode_reply, encode
from chairlift.shared.messages import Finish, Frame, Joined, Message, Row, Submit, pack_token_ids
from chairlift.shared.sampling_params import SamplingParams
from chairlift.shared.tokenizer import Tokenizer
from tests.simulation import SimulatedWorker, next_token

ALICE, BOB = b"alice-01", b"bob-0001"
PARAMS = SamplingParams(max_tokens=6, temperature=0.0)


class Desk:
    """What a test says to the worker, and what it hears."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.now = 100.0
        self.tokenizer = tokenizer
        self.worker = SimulatedWorker(tokenizer, 77, self.now)
        self.received: dict[bytes, list[object]] = {ALICE: [], BOB: []}
        self.is_blocked = False
        for frontend in self.received:
            self.worker.publisher.subscribed(frontend, self.now)

    def send(self, topic: bytes, body: bytes) -> bool:
        if self.is_blocked:
            return False
        self.received[topic].append(decode_reply(body))
        return True

    def turn(self, *messages: Message | bytes, seconds: float = 0.01) -> None:
        self.now += seconds
        arrivals = [m if isinstance(m, bytes) else encode(m) for m in messages]
        self.worker.turn(arrivals, self.send, self.now)

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.turn()

    def submit(self, frontend: bytes, number: int, **changes: object) -> Submit:
        fields: dict[str, object] = {
            "frontend_id": frontend,
            "request_id": bytes([number]) * 16,
            "tokenizer": self.tokenizer.fingerprint,
            "prompt_token_ids": pack_token_ids([number, 2, 3]),
            "output_token_ids": b"",
            "params": PARAMS,
        }
        return Submit(**{**fields, **changes})  # type: ignore[arg-type]

    def frames(self, frontend: bytes = ALICE) -> list[Frame]:
        return [m for m in self.received[frontend] if isinstance(m, Frame) and not m.is_heartbeat]

    def rows(self, frontend: bytes = ALICE) -> Iterator[Row]:
        for frame in self.frames(frontend):
            yield from frame.rows()

    def joined(self, frontend: bytes = ALICE) -> list[Joined]:
        return [joined for frame in self.frames(frontend) for joined in frame.joined]

    def text(self, frontend: bytes = ALICE) -> str:
        return "".join(row.text for row in self.rows(frontend))

    def tokens(self, frontend: bytes = ALICE) -> list[int]:
        return [token for row in self.rows(frontend) for token in row.token_ids]

    def end(self, frontend: bytes = ALICE) -> Finish:
        (finish,) = [row.finish for row in self.rows(frontend) if row.finish is not None]
        return finish


def expected_tokens(number: int, count: int = 6) -> list[int]:
    return [next_token(number, 3 + i) for i in range(count)]
