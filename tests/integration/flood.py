"""A frontend that asks for more than anybody could read."""

from __future__ import annotations

import itertools
from types import TracebackType
from typing import Self

from chairlift.shared.codec import encode
from chairlift.shared.messages import Submit, pack_token_ids
from chairlift.shared.sampling_params import SamplingParams
from tests.integration.fleet import Fleet
from tests.integration.hostility import Stranger


class Flood:
    """Valid requests of one frontend that nobody hears."""

    def __init__(self, flooded: Fleet) -> None:
        greeting = flooded.watcher.worker
        assert greeting is not None
        self._tokenizer = greeting.tokenizer
        self._numbers = itertools.count()
        self._stranger = Stranger(flooded.address)

    def send(self, count: int) -> None:
        for number in itertools.islice(self._numbers, count):
            self._stranger.send(self._submit(number))

    def _submit(self, number: int) -> bytes:
        submit = Submit(
            frontend_id=b"flooding",
            request_id=number.to_bytes(16, "big"),
            tokenizer=self._tokenizer,
            prompt_token_ids=pack_token_ids([40, 41]),
            output_token_ids=b"",
            params=SamplingParams(max_tokens=100, ignore_eos=True),
        )
        return encode(submit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stranger.close()
