"""What chat models of the families say: their templates, tags, and a call as each writes it."""

from __future__ import annotations

from dataclasses import dataclass

from chairlift.frontend.results import Delta
from chairlift.shared.messages import Finish, FinishReason
from tests.chat_templates import LLAMA, MISTRAL, QWEN3, QWEN25
from tests.frontend.fake_client import FakeClient

MAX_MODEL_LEN = 30_000
ARGUMENTS = '{"city": "Zürich", "days": 2}'


@dataclass(frozen=True)
class Family:
    """Its call of `weather` with the arguments above, and the tags that are special tokens."""

    template: str
    call: str
    tags: tuple[str, ...] = ()

    def client(self) -> FakeClient:
        return FakeClient(self.template, self.tags, MAX_MODEL_LEN)


HERMES_CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
FAMILIES = {
    "hermes": Family(QWEN25, HERMES_CALL),
    "hermes thinking": Family(QWEN3, f"<think>\nhm\n</think>\n\n{HERMES_CALL}"),
    "llama_json": Family(
        LLAMA, f'{{"name": "weather", "parameters": {ARGUMENTS}}}', ("<|python_tag|>",)
    ),
    "pythonic": Family(
        LLAMA + "{# [func_name1(params_name1=params_value1)] #}",
        '[weather(city="Zürich", days=2)]',
    ),
    "mistral": Family(
        MISTRAL,
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {ARGUMENTS}}}]',
        ("[TOOL_CALLS]",),
    ),
    "mistral_args": Family(
        MISTRAL + "{# [ARGS] #}",
        f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}",
        ("[TOOL_CALLS]", "[ARGS]"),
    ),
}


def say(fake: FakeClient, *texts: str, reason: FinishReason = "stop", size: int = 5) -> None:
    """To the next requests in turn and round again, a few characters at a time, of which each has
    its tokens."""
    said = [0]

    def script(*_: object) -> list[Delta]:
        text = texts[said[0] % len(texts)]
        said[0] += 1
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        deltas = [Delta(fake.tokenizer.encode(piece), piece) for piece in pieces]
        return [*deltas, Delta([], "", Finish(reason))]

    fake.script = script
