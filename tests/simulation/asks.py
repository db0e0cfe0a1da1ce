"""What is asked of the worker, and what must come of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from msgspec.structs import replace

from chairlift.frontend.request_options import RequestOptions
from chairlift.shared.sampling_params import SamplingParams
from chairlift.worker.sequence import Sequence

from .model import END, Language
from .worker import MAX_MODEL_LEN

MAX_PROMPT_TOKENS, MAX_OUTPUT_TOKENS = 20, 30
HALF_A_CHARACTER = "\ufffd"


@dataclass(frozen=True)
class Answer:
    """All of an undisturbed stream."""

    token_ids: list[int]
    text: str
    reason: str
    stop_reason: str | int | None = None


@dataclass(eq=False)
class Ask:
    """One body under one request id; its context is unlike any other's."""

    prompt: list[int]
    params: SamplingParams
    options: RequestOptions
    answer: Answer
    is_poison: bool = False  # kills the worker whose step it is in
    num_kills: int = 0
    num_lone_hits: int = 0  # how often it was alone in a step when chance killed the worker

    @property
    def request_id(self) -> bytes:
        assert self.options.request_id is not None
        return self.options.request_id


@dataclass
class Asks:
    """Everything that was ever asked."""

    language: Language
    random: random.Random
    may_stop: bool
    may_have_ttl: bool
    by_context: dict[bytes, Ask] = field(default_factory=dict)
    by_id: dict[bytes, list[Ask]] = field(default_factory=dict)

    def new(self, request_id: bytes | None = None, *, is_poison: bool = False) -> Ask:
        draw = self.random
        highest = min(self.language.vocab_size, 91) - 1
        prompt = [draw.randint(1, highest) for _ in range(draw.randint(1, MAX_PROMPT_TOKENS))]
        params = SamplingParams(
            max_tokens=draw.randint(1, MAX_OUTPUT_TOKENS), seed=draw.randrange(100)
        )
        if draw.random() < 0.2:
            numbers = {
                "num_logprobs": draw.choice([-1, 0, 2]),
                "num_prompt_logprobs": draw.choice([-1, 1]),
            }
            params = replace(params, **numbers)
        if self.may_stop:
            params = replace(params, stop=self._stops(prompt, params))
        options = RequestOptions(
            request_id or draw.randbytes(16),
            context=len(self.by_context).to_bytes(4, "big"),
            is_resumable=draw.random() < 0.5,
            ttl_s=draw.uniform(0.05, 3) if self.may_have_ttl and draw.random() < 0.2 else None,
            wants_queue_news=len(self.by_context) % 2 == 0,
        )
        ask = Ask(prompt, params, options, answer_to(self.language, prompt, params), is_poison)
        self.by_context[options.context] = ask
        self.by_id.setdefault(ask.request_id, []).append(ask)
        return ask

    def named(self, request_ids: list[bytes]) -> list[Ask]:
        return [self.by_id[request_id][-1] for request_id in request_ids]

    def _stops(self, prompt: list[int], params: SamplingParams) -> tuple[str, ...]:
        """Some that occur, and one of which only the beginning may."""
        text = answer_to(self.language, prompt, params).text or "a"
        starts = [self.random.randrange(len(text)) for _ in range(self.random.randint(0, 2))]
        stops = [text[start : start + self.random.randint(1, 3)] for start in starts]
        return (*stops, "zzz")


def answer_to(language: Language, prompt: list[int], params: SamplingParams) -> Answer:
    """By the shortest way there is: all tokens from the model, all text at once."""
    sequence = Sequence(b"", prompt, params)
    decode = language.tokenizer.decode
    while True:
        token_id = language.next_of(sequence)
        sequence.append(token_id)
        output = sequence.token_ids[len(prompt) :]
        if token_id == END:
            text = decode(output[:-1])
            return Answer(output, text, "stop")
        is_full = len(output) == params.max_tokens
        if is_full or params.stop:
            text = decode(output)
            stop = _stop_in(text if is_full else text.rstrip(HALF_A_CHARACTER), params.stop)
            if stop is not None:
                return Answer(output, text[: text.find(stop)], "stop", stop)
            if is_full:
                return Answer(output, text, "length")


def _stop_in(text: str, stops: tuple[str, ...]) -> str | None:
    """The one that ends first, the longest of those."""
    found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    return min(found)[2] if found else None


assert MAX_PROMPT_TOKENS + MAX_OUTPUT_TOKENS <= MAX_MODEL_LEN
