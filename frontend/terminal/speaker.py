"""The worker's model, as someone to talk with."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from ...shared.errors import ContextLengthError
from ...shared.messages import FinishReason
from ...shared.sampling_params import MAX_SEED
from ..prompt import ChatMessage
from ..replies.chunk import Chunk
from ..replies.reasoning_format import detect_reasoning
from ..replies.reply import PlainReply, Reply
from ..sync_client import Client
from .chat_settings import ChatSettings

PROMPT_END = 8  # tokens, in which thoughts may be opened


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more of an answer; the last one says how it ended."""

    chunk: Chunk
    finish_reason: FinishReason | None


class Speaker:
    """Answers one conversation after the other; no two answers have the same seed."""

    def __init__(self, client: Client, settings: ChatSettings) -> None:
        self._client = client
        self._settings = settings
        self._num_answers = 0

    @property
    def name(self) -> str:
        return self._client.worker.model if self._client.worker else ""

    def answer(self, messages: Sequence[ChatMessage]) -> Generator[Piece, None, None]:
        """Piece by piece, thoughts apart; closing it cancels. Raises as `Client.stream`."""
        tokenizer = self._client.tokenizer
        prompt = tokenizer.encode_chat(messages)
        params = self._params(len(prompt))
        reply: Reply | PlainReply = PlainReply()
        if thoughts := detect_reasoning(tokenizer.chat_template.source):
            is_open = thoughts.is_opened_by(tokenizer.text_of(prompt[-PROMPT_END:]))
            reply = Reply(thoughts, is_reasoning=is_open)
            params["skip_special_tokens"] = not any(map(tokenizer.is_special, thoughts.tags))
        with closing(self._client.stream(prompt, **params)) as deltas:
            for delta in deltas:
                chunk = reply.feed(delta.text)
                if delta.finish:
                    chunk += reply.finish()
                yield Piece(chunk, delta.finish.reason if delta.finish else None)

    def _params(self, num_prompt_tokens: int) -> dict[str, Any]:
        """Raises ContextLengthError when there is no room for an answer."""
        settings = self._settings
        params: dict[str, Any] = {
            "max_tokens": self._max_tokens(num_prompt_tokens),
            "temperature": settings.temperature,
            "top_p": settings.top_p,
        }
        if settings.seed is not None:
            params["seed"] = (settings.seed + self._num_answers) % (MAX_SEED + 1)
        self._num_answers += 1
        return params

    def _max_tokens(self, num_prompt_tokens: int) -> int:
        worker = self._client.worker
        assert worker is not None, "its tokenizer has come"
        room = worker.max_model_len - num_prompt_tokens
        if room < 1:
            raise ContextLengthError(
                f"the conversation has {num_prompt_tokens} tokens, and {worker.model} takes "
                f"{worker.max_model_len} with its answer: begin another one, or ask for less"
            )
        return min(self._settings.max_tokens or room, room)
