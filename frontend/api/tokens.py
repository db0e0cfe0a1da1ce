"""The tokens of an answer as it tells them: ids, texts, log probabilities.

References: `logprobs` at https://platform.openai.com/docs/api-reference/completions and /chat; what
OpenAI doesn't have is spelled as vLLM does.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ...shared.logprobs import TokenLogprob
from ...shared.tokenizer import Tokenizer
from .answer_form import AnswerForm, Json

FLOOR = -9999.0  # for what JSON has no number for

Columns = dict[str, list[Any]]


class Ruler:
    """Where tokens begin in the text that they spell, in order from the first."""

    def __init__(self, form: AnswerForm, tokenizer: Tokenizer) -> None:
        self._skips_special = form.skips_special_tokens
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_characters = 0

    def start(self, token_id: int) -> int:
        """Of the next one, in characters."""
        start = self._num_characters
        spelled = self._tokenizer.token_bytes(token_id)
        is_left_out = self._skips_special and self._tokenizer.is_special(
            name_of(self._tokenizer, token_id)
        )
        if not is_left_out:
            self._num_characters += len(self._decoder.decode(spelled))
        return start

    def begin_after(self, text: str) -> None:
        self._decoder.reset()
        self._num_characters = len(text)


class Teller:
    """One choice's, in order from the first."""

    def __init__(self, form: AnswerForm, tokenizer: Tokenizer, prompt: list[int]) -> None:
        self._form = form
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._ruler = Ruler(form, tokenizer)

    def tell(self, token_ids: list[int], logprobs: list[TokenLogprob], num_known: int = 0) -> Json:
        """Of these tokens, those after the first `num_known`: fields of a choice."""
        told: Json = {}
        if self._form.num_logprobs >= 0:
            columns = self._columns(token_ids, logprobs)
            told["logprobs"] = self._shown({k: v[num_known:] for k, v in columns.items()})
        if self._form.returns_token_ids:
            told["token_ids"] = token_ids[num_known:]
        return told

    def echo(self, logprobs: list[TokenLogprob]) -> tuple[str, Json]:
        """The prompt as the beginning of the answer, if that was asked for: before anything else,
        its text and fields of a choice."""
        if not self._form.echo:
            return "", {}
        is_plain = self._form.skips_special_tokens
        text_of = self._tokenizer.decode if is_plain else self._tokenizer.text_of
        text, told = text_of(self._prompt), {}
        if self._form.num_logprobs >= 0:
            told["logprobs"] = self._shown(self._columns(self._prompt, [None, *logprobs]))
        self._ruler.begin_after(text)
        return text, told

    def prompt_ids(self) -> Json:
        """If they were asked for: fields of a choice, or of an answer."""
        return {"prompt_token_ids": self._prompt} if self._form.returns_token_ids else {}

    def prompt_logprobs(self, logprobs: list[TokenLogprob]) -> Json:
        """If they were asked for: fields of a choice, or of an answer."""
        if self._form.num_prompt_logprobs < 0:
            return {}
        scored = zip(self._prompt[1:], logprobs, strict=True)
        return {"prompt_logprobs": [None, *(self._scores(*one) for one in scored)]}

    def _columns(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None]
    ) -> Columns:
        columns: Columns = {
            name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        for token_id, logprob in zip(token_ids, logprobs, strict=True):
            token = name_of(self._tokenizer, token_id)
            columns["tokens"].append(token)
            columns["token_logprobs"].append(finite(logprob.logprob) if logprob else None)
            columns["top_logprobs"].append(self._top(token, logprob) if logprob else None)
            columns["text_offset"].append(self._ruler.start(token_id))
        return columns

    def _top(self, token: str, logprob: TokenLogprob) -> dict[str, float]:
        """The likeliest, and the token itself whether or not it is one of them."""
        top: dict[str, float] = {}
        for token_id, value in logprob.top[: self._form.num_logprobs]:
            top.setdefault(name_of(self._tokenizer, token_id), finite(value))
        top.setdefault(token, finite(logprob.logprob))
        return top

    def _shown(self, columns: Columns) -> Json:
        return columns

    def _scores(self, token_id: int, logprob: TokenLogprob) -> Json:
        top = logprob.top[: self._form.num_prompt_logprobs]
        scores = {str(token_id): self._score(token_id, logprob.logprob)}
        for rank, (likely_id, value) in enumerate(top, start=1):
            scores[str(likely_id)] = self._score(likely_id, value) | {"rank": rank}
        return scores

    def _score(self, token_id: int, logprob: float) -> Json:
        text = self._tokenizer.token_bytes(token_id).decode(errors="replace")
        return {"logprob": finite(logprob), "decoded_token": text}


class ChatTeller(Teller):
    """As Teller, in the way of chats."""

    def _columns(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None]
    ) -> Columns:
        scored = zip(token_ids, logprobs, strict=True)
        return {"content": [self._entry(i, logprob) for i, logprob in scored if logprob]}

    def _entry(self, token_id: int, logprob: TokenLogprob) -> Json:
        top = logprob.top[: self._form.num_logprobs]
        return self._one(token_id, logprob.logprob) | {"top_logprobs": [self._one(*t) for t in top]}

    def _one(self, token_id: int, logprob: float) -> Json:
        spelled = self._tokenizer.token_bytes(token_id)
        text = spelled.decode(errors="replace")
        return {"token": text, "logprob": finite(logprob), "bytes": list(spelled)}

    def _shown(self, columns: Columns) -> Json:
        return {**columns, "refusal": None}


def finite(logprob: float) -> float:
    """No infinity and no NaN."""
    return logprob if logprob > FLOOR else FLOOR


@lru_cache(1 << 16)
def name_of(tokenizer: Tokenizer, token_id: int) -> str:
    """The token's text; of what is no text alone, its bytes, so that no two are called the same."""
    spelled = tokenizer.token_bytes(token_id)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)
