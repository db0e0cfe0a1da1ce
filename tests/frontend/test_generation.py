"""News on its way through a Generation: past its task while the passage is free, else to it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from chairlift.frontend.api.answer_form import AnswerForm
from chairlift.frontend.api.app import context_of
from chairlift.frontend.api.generation import Generation, Pause, Progress
from chairlift.frontend.api.opening import OpenedAnswer
from chairlift.frontend.client import AsyncClient
from chairlift.frontend.response_id import ResponseId
from chairlift.frontend.results import Delta
from chairlift.frontend.token_stream import TokenStream
from chairlift.shared.messages import Finish
from chairlift.shared.settings import ServeSettings

NUM_CHOICES = 3
FORM = AnswerForm(
    endpoint="chat",
    created=1,
    model="demo",
    system_fingerprint="fp",
    num_choices=NUM_CHOICES,
    n=NUM_CHOICES,
    num_prompt_tokens=1,
)


class FakePassage:
    """Takes tokens while it is open, until one breaks it."""

    def __init__(self, taken: dict[int, list[int]]) -> None:
        self.is_open = False
        self.num_passed = 0
        self.failure: Exception | None = None
        self._taken = taken

    def is_free(self) -> bool:
        return self.is_open

    def pass_on(self, index: int, delta: Delta) -> None:
        if self.failure:
            raise self.failure
        self.num_passed += 1
        self._taken[index] += delta.token_ids


def _generation(streams: dict[int, TokenStream], keep_alive_s: float = 10.0) -> Generation:
    response_id = ResponseId.draw("chat")
    opened = OpenedAnswer(response_id, FORM, streams, is_resumable=False, prompts={}, repeated={})
    settings = ServeSettings(keep_alive_s=keep_alive_s)
    context = context_of(AsyncClient(), settings, None, has_tenants=False)
    return Generation(opened, context)


def _streams() -> dict[int, TokenStream]:
    def leave(stream: TokenStream, may_go_on: bool) -> None:
        pass

    return {
        index: TokenStream(bytes(16), leave, FORM.encode(), may_own=True)
        for index in range(NUM_CHOICES)
    }


def _take(events: list[Any], taken: dict[int, list[int]], ended: set[int]) -> None:
    for event in events:
        assert isinstance(event, Progress)
        taken[event.index] += event.delta.token_ids
        if event.delta.finish:
            ended.add(event.index)


@given(
    st.lists(
        st.sampled_from(["open", "close", "turn", *range(NUM_CHOICES)]), min_size=5, max_size=60
    )
)
def test_each_token_comes_once_and_in_order(script: list[Any]) -> None:
    """Whichever way each takes, however the passage opens and closes, and whoever is slow."""

    async def run() -> None:
        streams = _streams()
        taken: dict[int, list[int]] = {index: [] for index in streams}
        sent: dict[int, list[int]] = {index: [] for index in streams}
        ended: set[int] = set()
        passage = FakePassage(taken)

        async def read(generation: Generation) -> None:
            while len(ended) < NUM_CHOICES:
                _take(await generation.next_events(passage), taken, ended)

        async with _generation(streams) as generation:
            reading = asyncio.create_task(read(generation))
            for number, action in enumerate(script):
                match action:
                    case "open" | "close":
                        passage.is_open = action == "open"
                    case "turn":
                        await asyncio.sleep(0)
                    case index:
                        streams[index].put(Delta([number], "x"))
                        sent[index].append(number)
            for stream in streams.values():
                stream.put(Delta([], "", Finish("stop")))
            async with asyncio.timeout(10):
                await reading
        assert taken == sent

    asyncio.run(run())


def test_tokens_pass_without_waking_the_reader() -> None:
    """While the passage is free; the end wakes it."""

    async def run() -> None:
        streams = _streams()
        taken: dict[int, list[int]] = {index: [] for index in streams}
        passage = FakePassage(taken)
        passage.is_open = True
        async with _generation(streams) as generation:
            reading = asyncio.create_task(generation.next_events(passage))
            await asyncio.sleep(0)
            for number in range(5):
                streams[number % NUM_CHOICES].put(Delta([number], "x"))
                await asyncio.sleep(0.001)
            assert passage.num_passed == 5 and not reading.done()
            streams[1].put(Delta([9], "", Finish("stop")))
            (event,) = await reading
            assert isinstance(event, Progress) and event.delta.token_ids == [9]

    asyncio.run(run())


def test_a_joined_answer_is_written_in_its_own_form() -> None:
    """Also when nothing of it has come for so long that its reader is sent a sign of life."""

    async def run() -> None:
        streams = _streams()
        async with _generation(streams, keep_alive_s=0.01) as generation:
            for stream in streams.values():
                stream.open(structs.replace(FORM, created=2).encode(), [])
            (event,) = await generation.first_events()
            assert isinstance(event, Pause)
            assert generation.form.created == 2

    asyncio.run(run())


def test_what_breaks_in_the_passage_is_the_readers() -> None:
    """Nobody else's news is held up by it."""

    async def run() -> None:
        streams = _streams()
        passage = FakePassage({index: [] for index in streams})
        passage.is_open, passage.failure = True, RuntimeError("broken")
        async with _generation(streams) as generation:
            reading = asyncio.create_task(generation.next_events(passage))
            await asyncio.sleep(0)
            streams[0].put(Delta([1], "x"))
            with pytest.raises(RuntimeError, match="broken"):
                await reading

    asyncio.run(run())
