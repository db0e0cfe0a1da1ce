"""The step feed and receipts of a real worker, to clients and over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

import chairlift as package
from chairlift.frontend.api.watch import MAX_OF_A_TENANT
from chairlift.shared.logs import short_hash
from chairlift.shared.messages import Steps
from chairlift.shared.steps import split_hashes
from tests.integration.conftest import short_address
from tests.integration.processes import chairlift, serving, worker_child

pytestmark = pytest.mark.slow

GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
WITH_RECEIPT = {"X-Chairlift-Receipt": "1"}
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def url(worker: subprocess.Popen[bytes], worker_address: str) -> Iterator[str]:
    with serving(worker_address) as served:
        yield served


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[package.AsyncClient]:
    async with package.AsyncClient(address, connect_timeout_s=60) as client:
        await client.connect()
        yield client


async def until_ended(feed: package.StepFeed, count: int) -> list[Steps]:
    """What comes until so many requests have ended."""
    received: list[Steps] = []
    async with asyncio.timeout(TIMEOUT_S):
        async for steps in feed:
            received.append(steps)
            if sum(len(one.ended) for one in received) >= count:
                return received
    raise AssertionError("the feed ended")


async def wait_until_watched(client: package.AsyncClient, feed: package.StepFeed) -> None:
    """Steps come from now on."""
    async with asyncio.timeout(TIMEOUT_S):
        first = asyncio.ensure_future(anext(feed))
        while not first.done():
            await client.complete("a", max_tokens=2, **GREEDY)


@pytest.mark.usefixtures("worker")
def test_a_client_sees_its_requests_in_the_batch(worker_address: str) -> None:
    """Rows, tokens and ends are those of the requests that ran; the answer has the same receipt."""

    async def run() -> None:
        async with connected(worker_address) as client, client.watch() as feed:
            await wait_until_watched(client, feed)
            calls = [client.complete(f"abc {i}", max_tokens=20, **GREEDY) for i in range(6)]
            answers = await asyncio.gather(*calls)
            receipts = [answer.receipt for answer in answers]
            received: list[Steps] = []
            told = set()
            async with asyncio.timeout(TIMEOUT_S):
                while not told.issuperset(receipts):
                    received.append(await anext(feed))
                    told |= {ended.receipt for ended in received[-1].ended}
            records = [record for steps in received for record in steps.records]
            numbers = [record.number for record in records]
            assert numbers == [*range(numbers[0], numbers[0] + len(numbers))]
            assert max(len(split_hashes(record.requests)) for record in records) == 4
            assert any(record.num_waiting for record in records)
            rows = [row for record in records for row in record.rows()]
            for ended in (e for steps in received for e in steps.ended):
                own = [row for row in rows if row.request == ended.request.hex()]
                if ended.receipt in receipts:
                    assert ended.receipt.num_steps == len(own)
                    assert sum(row.num_new_tokens for row in own) == 20

    asyncio.run(run())


@pytest.mark.usefixtures("worker")
def test_watchers_come_and_go(worker_address: str) -> None:
    """Each reader of one client gets every step while it watches, and none costs another any; the
    feed ends with its client."""

    async def run() -> None:
        async with connected(worker_address) as client:
            first, second = client.watch(), client.watch()
            await wait_until_watched(client, first)
            second.close()
            second.close()
            await client.complete("abc", max_tokens=8, **GREEDY)
            assert (await until_ended(first, 1))[-1].epoch == client.worker.epoch  # type: ignore[union-attr]
        async with asyncio.timeout(TIMEOUT_S):
            async for _ in first:
                pass
            async for _ in second:
                pass

    asyncio.run(run())


def test_the_feed_goes_on_after_the_worker_died(tiny_model: Path) -> None:
    """A new worker is watched without a word; a receipt tells what the former had made."""

    async def run(address: str, parent: subprocess.Popen[bytes]) -> None:
        async with connected(address) as client, client.watch() as feed:
            await wait_until_watched(client, feed)
            former = client.worker
            stream = client.stream("abc", max_tokens=400, **GREEDY)
            for _ in range(5):
                await anext(stream)
            os.kill(worker_child(parent), signal.SIGKILL)
            receipt = [delta async for delta in stream][-1].receipt
            assert receipt is not None and receipt.num_resumed_tokens >= 5
            assert receipt.num_output_tokens == 400
            async with asyncio.timeout(TIMEOUT_S):
                async for steps in feed:
                    if former and steps.epoch != former.epoch:
                        break

    with (
        short_address() as address,
        chairlift("worker", model=tiny_model, address=address, dtype="float32") as worker,
    ):
        asyncio.run(run(address, worker))


def usage_of(body: dict[str, Any]) -> dict[str, Any]:
    usage: dict[str, Any] = body["usage"]
    return usage


def events_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_receipts_over_http(url: str, path: str, stream: bool) -> None:
    """With the header the usage tells of each choice, in a stream as well; without it nothing."""
    prompt = {
        "/v1/completions": {"prompt": "abc", "max_tokens": 6, "n": 2},
        "/v1/chat/completions": {
            "messages": [{"role": "user", "content": "abc"}],
            "max_tokens": 6,
            "n": 2,
        },
        "/v1/responses": {"input": "abc", "max_output_tokens": 16},
    }[path]
    body = {**prompt, "stream": stream}
    answer = httpx2.post(url + path, json=body, headers=WITH_RECEIPT, timeout=TIMEOUT_S)
    plain = httpx2.post(url + path, json=body, timeout=TIMEOUT_S)
    assert answer.status_code == plain.status_code == 200, answer.text
    if path == "/v1/responses":
        bodies = [e["response"] for e in events_of(answer.text) if "response" in e]
        usage = usage_of(bodies[-1] if stream else answer.json())
    else:
        usage = usage_of(events_of(answer.text)[-1] if stream else answer.json())
    receipts = usage["receipt"]
    assert len(receipts) == prompt.get("n", 1)
    assert len({receipt["request"] for receipt in receipts}) == len(receipts)
    for receipt in receipts:
        assert receipt["num_steps"] >= 1 and receipt["total_ms"] >= receipt["ttft_ms"] > 0
    assert '"receipt"' not in plain.text


def test_another_value_of_the_header_is_refused(url: str) -> None:
    """It asks for a receipt or for none."""
    answer = httpx2.post(
        f"{url}/v1/completions",
        json={"prompt": "a", "max_tokens": 1},
        headers={"X-Chairlift-Receipt": "yes"},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "X-Chairlift-Receipt"


def watched(url: str, until: str) -> dict[str, list[Any]]:
    """The events of GET /watch by name, up to the first of that name; meanwhile a request runs."""
    events: dict[str, list[Any]] = {}
    with httpx2.Client(timeout=TIMEOUT_S) as http, http.stream("GET", f"{url}/watch") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                events.setdefault(name, []).append(json.loads(line.removeprefix("data: ")))
                if until in events:
                    return events
                if name == "stats":
                    body = {"prompt": "abc", "max_tokens": 5, "ignore_eos": True}
                    ran = http.post(f"{url}/v1/completions", json=body)
                    assert ran.status_code == 200
    raise AssertionError("the feed ended")


def test_the_feed_over_http(url: str) -> None:
    """Who the worker is, its figures, steps, ends and this frontend's own requests."""
    events = watched(url, until="requests")
    assert events["worker"][0]["max_model_len"] == 512
    assert events["stats"][0]["condition"] == "ok" and events["stats"][0]["num_blocks"] > 0
    records = [record for records in events["steps"] for record in records]
    for record in records:
        assert {len(column) for column in record["rows"].values()} == {
            len(record["rows"]["request"])
        }
        assert list(record["phases_us"]) == [
            "arrivals",
            "schedule",
            "forward",
            "sample",
            "commit",
            "publish",
        ]
    (request,) = events["requests"][0]
    assert "request_id" not in request
    seen = {name for record in records for name in record["rows"]["request"]}
    ended = {end["request"]: end for ends in events["ended"] for end in ends}
    assert set(request["requests"]) <= seen & ended.keys()
    assert request["outcome"] == "length" and request["endpoint"] == "completions"
    first, last = request["first_token_us"], request["ended_us"]
    assert request["began_us"] <= request["submitted_us"] <= first <= last
    began = min(record["began_us"] for record in records)
    assert abs(began - request["began_us"]) < TIMEOUT_S * 1e6


def test_another_worker_is_told_before_its_steps(tiny_model: Path) -> None:
    """Whoever counts steps knows that they begin anew."""
    body = {"prompt": "abc", "max_tokens": 5, "ignore_eos": True}
    with (
        short_address() as address,
        chairlift("worker", model=tiny_model, address=address, dtype="float32") as worker,
        serving(address) as url,
        httpx2.Client(timeout=TIMEOUT_S) as http,
        http.stream("GET", f"{url}/watch") as answer,
    ):
        names: list[str] = []
        for line in answer.iter_lines():
            if not line.startswith("event: "):
                continue
            names.append(line.removeprefix("event: "))
            if names[-1] == "stats":
                http.post(f"{url}/v1/completions", json=body)
            elif names[-1] == "steps" and names.count("worker") == 2:
                break
            elif names[-1] == "steps" and names.count("steps") == 1:
                os.kill(worker_child(worker), signal.SIGKILL)
    told = [name for name in names if name in ("worker", "steps")]
    assert told[:2] == ["worker", "steps"] and told[-2:] == ["worker", "steps"]


def test_the_feed_takes_no_parameters(url: str) -> None:
    """An unknown one is refused by name."""
    answer = httpx2.get(f"{url}/watch?rate=5")
    assert answer.status_code == 400 and "rate" in answer.text


def test_requests_are_known_by_their_hash_alone(url: str) -> None:
    """The id of an answer, which opens its stream, is in no event."""
    with httpx2.Client(timeout=TIMEOUT_S) as http, http.stream("GET", f"{url}/watch") as answer:
        lines = answer.iter_lines()
        while not next(lines).startswith("event: stats"):
            pass
        body = {"prompt": "abc", "max_tokens": 5, "ignore_eos": True}
        made = http.post(f"{url}/v1/completions", json=body).json()["id"]
        base = made.removeprefix("cmpl-")
        text = ""
        while "event: requests" not in text:
            text += next(lines) + "\n"
        text += next(lines)
    assert short_hash(bytes.fromhex(base)) in text
    assert base not in text


@pytest.mark.usefixtures("worker")
def test_what_is_cached_is_no_business_of_another_key(worker_address: str) -> None:
    """With several keys neither receipts nor the feed's tell it, and no key takes all places."""
    keys = [{"Authorization": f"Bearer {key}"} for key in ("zoe", "max")]
    body = {"prompt": "a prompt that both ask, word for word, over and over", "max_tokens": 2}
    with (
        serving(worker_address, api_keys="zoe max") as url,
        httpx2.Client(timeout=TIMEOUT_S) as http,
        ExitStack() as watching,
    ):
        answers = [
            watching.enter_context(http.stream("GET", f"{url}/watch", headers=keys[1]))
            for _ in range(MAX_OF_A_TENANT)
        ]
        assert {answer.status_code for answer in answers} == {200}
        with http.stream("GET", f"{url}/watch", headers=keys[1]) as refused:
            assert refused.status_code == 429
        lines = watching.enter_context(
            http.stream("GET", f"{url}/watch", headers=keys[0])
        ).iter_lines()
        while not next(lines).startswith("event: stats"):
            pass
        for key in keys:
            headers = {**key, **WITH_RECEIPT}
            answer = http.post(f"{url}/v1/completions", json=body, headers=headers).json()
            (receipt,) = answer["usage"]["receipt"]
            assert receipt["num_cached_tokens"] is None and receipt["num_steps"]
        while not next(lines).startswith("event: ended"):
            pass
        assert '"num_cached_tokens":null' in next(lines)
