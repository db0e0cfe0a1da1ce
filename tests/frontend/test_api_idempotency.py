"""Idempotency-Key, cache salts and the time limit: what a request is at the worker."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr, ValidationError

from chairlift.frontend.api import opening
from chairlift.frontend.api.errors import HttpError
from chairlift.frontend.api.idempotency import Idempotency
from chairlift.frontend.api.places import Places
from chairlift.frontend.results import Delta
from chairlift.shared.errors import ChairliftError
from chairlift.shared.messages import Finish, WorkerStats
from chairlift.shared.settings import ServeSettings
from tests.frontend.conftest import app_over
from tests.frontend.events import Assembled, events_of

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
KEY = {"Idempotency-Key": "order-17"}
BODY: dict[str, Any] = {"prompt": "a"}


class TestAskedTwice:
    """The same key: the same request, on any frontend."""

    pytestmark = pytest.mark.anyio

    @pytest.mark.parametrize("asked", [{}, {"n": 2}, {"stream": True}])
    async def test_after_the_end(
        self, url: str, fake: Any, asked: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A retry gets the same answer with the same id and date, and nothing is computed again."""
        moments = iter((1, 2))
        monkeypatch.setattr(opening, "now", lambda: next(moments))
        async with httpx2.AsyncClient() as http:
            first = await http.post(url + COMPLETIONS, json=BODY | asked, headers=KEY)
            fake.script = lambda *_: [Delta([1], "other", Finish("stop"))]
            again = await http.post(url + COMPLETIONS, json=BODY | asked, headers=KEY)
        assert first.status_code == again.status_code == 200
        if "stream" in asked:
            assert Assembled(events_of(first.text)).whole == Assembled(events_of(again.text)).whole
        else:
            assert first.json() == again.json()
        assert fake.num_made == asked.get("n", 1)

    async def test_while_it_runs(self, url: str, other_url: str, fake: Any) -> None:
        """A retry joins what runs, from its first token on."""
        fake.gate = asyncio.Semaphore(0)
        async with asyncio.timeout(10), httpx2.AsyncClient() as http:
            first = asyncio.create_task(http.post(url + CHAT, json=hello(), headers=KEY))
            await fake.generating.wait()
            again = asyncio.create_task(http.post(other_url + CHAT, json=hello(), headers=KEY))
            while len(fake.streams) < 2:
                await asyncio.sleep(0)
            for _ in range(10):
                fake.gate.release()
            assert (await first).json() == (await again).json()
        assert fake.num_made == 1

    async def test_the_caller_comes_back(self, url: str, fake: Any) -> None:
        """Hanging up does not stop a request with a key; who asks again gets its answer."""
        fake.gate = asyncio.Semaphore(0)
        async with asyncio.timeout(10), httpx2.AsyncClient(base_url=url) as http:
            first = asyncio.create_task(http.post(COMPLETIONS, json=BODY, headers=KEY))
            await fake.generating.wait()
            first.cancel()
            await asyncio.sleep(0.05)  # the server has seen it
            assert not fake.streams[0].ended.is_set()
            fake.streams[0].request.run_to_the_end()
            again = await http.post(COMPLETIONS, json=BODY, headers=KEY)
        assert again.json()["choices"][0]["text"] == " 0 1 2 3 4"
        assert fake.num_made == 1

    async def test_read_on_as_a_stream(self, url: str, fake: Any) -> None:
        """What was asked whole can be read as a stream by its id."""
        async with httpx2.AsyncClient(base_url=url) as http:
            answer = await http.post(COMPLETIONS, json=BODY, headers=KEY)
            rest = await http.get(f"/v1/streams/{answer.json()['id']}")
        assert Assembled(events_of(rest.text)).text[0] == answer.json()["choices"][0]["text"]

    async def test_after_the_grace(self, url: str, fake: Any) -> None:
        """What is no longer kept runs anew, with the same seed."""
        async with httpx2.AsyncClient(base_url=url) as http:
            await http.post(COMPLETIONS, json=BODY, headers=KEY)
            fake.requests.clear()
            await http.post(COMPLETIONS, json=BODY, headers=KEY)
        (_, first), (_, second) = fake.asked
        assert first.seed == second.seed and fake.num_made == 2

    async def test_failures_are_not_kept(self, url: str, fake: Any) -> None:
        """After a failure or a refusal the same key tries again."""
        fake.script = lambda *_: [Delta([], "", Finish("error", code="overloaded", message="no"))]
        async with httpx2.AsyncClient(base_url=url) as http:
            refused = await http.post(COMPLETIONS, json=BODY, headers=KEY)
            fake.script = lambda *_: [Delta([1], "yes", Finish("stop"))]
            answer = await http.post(COMPLETIONS, json=BODY, headers=KEY)
        assert (refused.status_code, answer.status_code) == (503, 200)

    async def test_official_client(self, api: openai.AsyncOpenAI, fake: Any) -> None:
        """The official client sends the header as an extra."""
        answers = [
            await api.completions.create(model="lift/tiny", prompt="a", extra_headers=KEY)
            for _ in range(2)
        ]
        assert answers[0].id == answers[1].id and fake.num_made == 1


class TestAnotherBody:
    """The same key for something else is a mistake, and disturbs nothing."""

    pytestmark = pytest.mark.anyio

    @pytest.mark.parametrize(
        ("path", "changed"),
        [
            (COMPLETIONS, BODY | {"prompt": "b"}),
            (COMPLETIONS, BODY | {"stream": True}),
            (COMPLETIONS, BODY | {"n": 2}),
            (COMPLETIONS, BODY | {"model": "lift/tiny"}),
            (COMPLETIONS, BODY | {"max_tokens": 16}),
            (CHAT, {"messages": [{"role": "user", "content": "a"}]}),
        ],
    )
    @pytest.mark.parametrize("sees_conflicts", [False, True])
    async def test_conflict(
        self, url: str, fake: Any, path: str, changed: Any, sees_conflicts: bool
    ) -> None:
        """409 before anything is sent, whether the worker or we see the difference; the original
        goes on."""
        fake.gate, fake.sees_conflicts = asyncio.Semaphore(0), sees_conflicts
        async with asyncio.timeout(10), httpx2.AsyncClient() as http:
            first = asyncio.create_task(http.post(url + COMPLETIONS, json=BODY, headers=KEY))
            await fake.generating.wait()
            refused = await http.post(url + path, json=changed, headers=KEY)
            assert refused.status_code == 409, refused.text
            assert refused.json()["error"]["code"] == "idempotency_key_reused"
            assert refused.headers["x-should-retry"] == "false"
            for _ in range(10):
                fake.gate.release()
            assert (await first).status_code == 200
        assert not any(stream.is_cancelled for stream in fake.streams)

    async def test_conflict_with_what_waits_for_its_caller(self, url: str, fake: Any) -> None:
        """Nor is a kept request that nobody reads stopped."""
        fake.gate = asyncio.Semaphore(0)
        async with asyncio.timeout(10), httpx2.AsyncClient(base_url=url) as http:
            first = asyncio.create_task(http.post(COMPLETIONS, json=BODY, headers=KEY))
            await fake.generating.wait()
            first.cancel()
            await asyncio.sleep(0.05)  # the server has seen it
            refused = await http.post(COMPLETIONS, json=BODY | {"stream": True}, headers=KEY)
            assert refused.status_code == 409
            assert len(fake.requests) == 1
        assert not any(stream.is_cancelled for stream in fake.streams)

    async def test_the_same_in_other_words(self, url: str, fake: Any) -> None:
        """Order, null and labels are no difference."""
        async with httpx2.AsyncClient(base_url=url) as http:
            for body in ({"prompt": "a", "n": 1}, {"n": None, "user": "me", "prompt": "a"}):
                assert (await http.post(COMPLETIONS, json=body, headers=KEY)).status_code == 200
        assert fake.num_made == 1


def hello() -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "é", "a\tb"])
def test_bad_keys(http: TestClient, fake: Any, key: str) -> None:
    """A key is 1 to 255 visible ASCII characters."""
    headers = [(b"idempotency-key", key.encode("latin-1"))]
    answer = http.post(COMPLETIONS, json=BODY, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Idempotency-Key"
    assert not fake.asked


class TestTenants:
    """What one tenant names is nothing to another."""

    @pytest.fixture
    def settings(self, address: str) -> ServeSettings:
        return ServeSettings(address=address, api_keys=(SecretStr("one"), SecretStr("two")))

    def test_keys(self, http: TestClient, fake: Any) -> None:
        """The same Idempotency-Key of another API key is another request."""
        ids = {
            http.post(COMPLETIONS, json=BODY, headers=KEY | bearer(key)).json()["id"]
            for key in ("one", "two", "one")
        }
        assert len(ids) == 2

    def test_salts(self, http: TestClient, fake: Any) -> None:
        """Without a salt prefixes are shared by all, with one within the tenant; then how much
        was cached is no secret."""
        salted = BODY | {"cache_salt": "mine"}
        for key, body in (("one", BODY), ("one", salted), ("two", salted), ("one", salted)):
            answer = http.post(COMPLETIONS, json=body, headers=bearer(key)).json()
            assert ("prompt_tokens_details" in answer["usage"]) == (body is salted)
        shared, *salts = (options.cache_salt for options in fake.options)
        assert shared == b"" and [len(salt) for salt in salts] == [32] * 3
        assert salts[0] == salts[2] != salts[1]

    @pytest.mark.parametrize("salt", ["", "x" * 257, 1, ["a"]])
    def test_bad_salts(self, http: TestClient, salt: Any) -> None:
        """A salt is a text of 1 to 256 characters."""
        answer = http.post(COMPLETIONS, json=BODY | {"cache_salt": salt}, headers=bearer("one"))
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "cache_salt"


class TestIsolation:
    """Every tenant has a prefix cache of its own."""

    @pytest.fixture
    def settings(self, address: str) -> ServeSettings:
        keys = (SecretStr("one"), SecretStr("two"))
        return ServeSettings(address=address, api_keys=keys, isolate_prefix_cache=True)

    def test_salts(self, http: TestClient, fake: Any) -> None:
        """The salt is the tenant's, and another with one of the caller's."""
        for key, body in (("one", {}), ("two", {}), ("one", {"cache_salt": "x"}), ("one", {})):
            http.post(COMPLETIONS, json=BODY | body, headers=bearer(key))
        salts = [options.cache_salt for options in fake.options]
        assert salts[0] == salts[3] and len(set(salts)) == 3 and all(salts)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class TestSecret:
    """What makes request ids of keys."""

    def test_made_once(self, address: str, fake: Any) -> None:
        """The first frontend that needs it makes it, private; all have the same."""
        settings = ServeSettings(address=address)
        path = Path(address.removeprefix("ipc://")) / "secret"
        ids = set()
        for _ in range(2):
            with TestClient(app_over(fake, settings)) as http:
                assert path.exists() == bool(ids)
                ids.add(http.post(COMPLETIONS, json=BODY, headers=KEY).json()["id"])
        assert len(ids) == 1
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(path.read_bytes()) >= 32
        assert os.listdir(path.parent) == ["secret"]

    def test_no_directory(self, fake: Any, tmp_path: Path) -> None:
        """Over tcp there is no common place, so the setting is needed and named; with it the key
        is served."""
        settings = ServeSettings(address="tcp://127.0.0.1:5555")
        with TestClient(app_over(fake, settings)) as http:
            answer = http.post(COMPLETIONS, json=BODY, headers=KEY)
            assert answer.status_code == 400
            assert "--idempotency-secret-file" in answer.json()["error"]["message"]
            assert http.post(COMPLETIONS, json=BODY).status_code == 200
        path = tmp_path / "secret"
        path.write_text("s" * 32 + "\n")
        path.chmod(0o600)
        changed = settings.model_copy(update={"idempotency_secret_file": path})
        with TestClient(app_over(fake, changed)) as http:
            assert http.post(COMPLETIONS, json=BODY, headers=KEY).status_code == 200

    def test_short(self, tmp_path: Path) -> None:
        """A secret that could be guessed, or none, is refused at the start."""
        path = tmp_path / "secret"
        path.write_text("short\n")
        path.chmod(0o600)
        settings = ServeSettings(idempotency_secret_file=path)
        with pytest.raises(ChairliftError, match="openssl rand"):
            Idempotency.from_settings(settings)

    @pytest.mark.parametrize("mode", [0o666, 0o644, 0o620, 0o602])
    def test_open_to_others(self, tmp_path: Path, mode: int) -> None:
        """A secret that others can read or replace is none; who may read it by its group may."""
        path = tmp_path / "secret"
        path.write_text("s" * 32)
        path.chmod(mode)
        settings = ServeSettings(idempotency_secret_file=path)
        with pytest.raises(ChairliftError, match=f"other users: chmod go= {path}"):
            Idempotency.from_settings(settings)
        path.chmod(0o640)
        Idempotency.from_settings(settings)

    def test_of_another_user(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What somebody else owns he can change; root's is as good as ours."""
        path = tmp_path / "secret"
        path.write_text("s" * 32)
        path.chmod(0o600)
        owner = path.stat().st_uid
        monkeypatch.setattr("os.getuid", lambda: owner + 1)
        settings = ServeSettings(address="ipc:///tmp/x", idempotency_secret_file=path)
        if owner == 0:
            Idempotency.from_settings(settings)
            os.chown(path, 7, 7)
        with pytest.raises(ChairliftError, match="belongs to somebody else"):
            Idempotency.from_settings(settings)

    def test_no_file(self, tmp_path: Path, fake: Any, address: str) -> None:
        """A FIFO, at which a read would wait for ever, is refused, wherever it lies."""
        path = Path(address.removeprefix("ipc://")) / "secret"
        os.mkfifo(path, 0o600)
        with pytest.raises(ValidationError, match="not point to a file"):
            ServeSettings(idempotency_secret_file=path)
        with TestClient(app_over(fake, ServeSettings(address=address))) as http:
            answer = http.post(COMPLETIONS, json=BODY, headers=KEY)
            assert answer.json()["error"]["code"] == "idempotency_unavailable"
            assert http.post(COMPLETIONS, json=BODY).status_code == 200
        given = ServeSettings(address=address).model_copy(update={"idempotency_secret_file": path})
        with pytest.raises(ChairliftError, match="is no file"):
            Idempotency.from_settings(given)

    def test_unreadable(self, fake: Any, address: str) -> None:
        """A damaged common secret fails requests with a key, clearly, and no others."""
        path = Path(address.removeprefix("ipc://")) / "secret"
        path.write_text("")
        with TestClient(app_over(fake, ServeSettings(address=address))) as http:
            answer = http.post(COMPLETIONS, json=BODY, headers=KEY)
            assert answer.json()["error"]["code"] == "idempotency_unavailable"
            assert http.post(COMPLETIONS, json=BODY).status_code == 200


def test_resumable_is_for_streams(http: TestClient, fake: Any) -> None:
    """Without a stream nobody knows the id to come back with."""
    answer = http.post(COMPLETIONS, json=BODY | {"resumable": True})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "resumable"
    answer = http.post(COMPLETIONS, json=BODY | {"resumable": "yes", "stream": True})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "resumable"


def test_the_time_limit(address: str, fake: Any) -> None:
    """Every request takes the limit to the worker."""
    with TestClient(app_over(fake, ServeSettings(address=address, request_timeout_s=7))) as http:
        http.post(COMPLETIONS, json=BODY)
    assert fake.options[0].ttl_s == 7


@pytest.mark.parametrize(("estimate_ms", "told"), [(0, "1"), (200, "1"), (6500, "7")])
def test_retry_after(fake: Any, address: str, estimate_ms: int, told: str) -> None:
    """Who has too much in flight is told the worker's estimate, and a second at least."""
    fake.stats = WorkerStats(retry_after_ms=estimate_ms)
    places = Places(1, 9, lambda: fake.stats.retry_after_ms / 1000)
    with places.hold("one", 1), pytest.raises(HttpError) as error, places.hold("one", 1):
        pass
    assert (error.value.status, error.value.headers["Retry-After"]) == (429, told)


def test_the_estimate_is_the_workers(fake: Any, address: str) -> None:
    """The app asks the client for it."""
    fake.stats = WorkerStats(retry_after_ms=4000)
    app = app_over(fake, ServeSettings(address=address, max_requests=1))
    with TestClient(app) as http:
        fake.script = lambda *_: [
            Delta([], "", Finish("error", code="overloaded", message="no", retry_after_ms=4000))
        ]
        answer = http.post(COMPLETIONS, json=BODY)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "4")
