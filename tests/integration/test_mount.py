"""The OpenAI API inside other applications: real servers, a real worker, the official client."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import structlog
from django.conf import settings as django_settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import chairlift
from chairlift.shared.errors import InvalidRequestError
from tests.integration.hosts import in_thread

pytestmark = [pytest.mark.usefixtures("worker_of_long_answers"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def plain_host() -> None:
    """Whatever other tests did, this program has no structlog of its own."""
    structlog.reset_defaults()


IGNORE_EOS = {"ignore_eos": True}
WAIT_S = 20.0


def fastapi_host(llm: Any) -> Any:
    app = FastAPI()
    app.add_api_route("/hello", lambda: PlainTextResponse("hello"))
    app.mount("/llm", llm)
    return app


def starlette_host(llm: Any) -> Any:
    """Two mounts deep."""
    inner = Starlette(routes=[Mount("/llm", llm)])
    return Starlette(routes=[Route("/hello", _hello), Mount("/", inner)])


async def _hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def _django_hello(_: HttpRequest) -> HttpResponse:
    return HttpResponse(b"hello")


urlpatterns = [path("hello", _django_hello)]


def django_host(llm: Any) -> Any:
    """Its ASGI entry, with a prefix told apart by hand, and no lifespan."""
    if not django_settings.configured:
        django_settings.configure(ROOT_URLCONF=__name__, SECRET_KEY="x", ALLOWED_HOSTS=["*"])
    django = get_asgi_application()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/llm/"):
            await llm({**scope, "root_path": "/llm"}, receive, send)
        else:
            await django(scope, receive, send)

    return application


HOSTS = pytest.mark.parametrize("host", [fastapi_host, starlette_host, django_host])


@contextmanager
def mounted(
    address: str, host: Any = fastapi_host, **options: Any
) -> Iterator[tuple[str, chairlift.AsyncClient]]:
    """The mount's URL, and its client, which nobody has opened."""
    llm = chairlift.asgi_app(chairlift.AsyncClient(address), **options)
    with in_thread(host(llm)) as url:
        yield f"{url}/llm", llm.client
    asyncio.run(llm.client.close())


def official(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=WAIT_S)


def model_of(client: openai.OpenAI) -> str:
    (model,) = client.models.list().data
    return model.id


@HOSTS
def test_the_official_client_is_served(worker_address: str, host: Any) -> None:
    """Under every host models, whole answers, streams and errors are what the client expects, the
    document of the API is right under the prefix, and the host's own pages stay."""
    with mounted(worker_address, host) as (url, _), official(url) as client:
        model = model_of(client)
        messages: Any = [{"role": "user", "content": "abc"}]
        whole = client.chat.completions.create(
            model=model, messages=messages, max_tokens=20, seed=7, extra_body=IGNORE_EOS
        )
        chunks = client.chat.completions.create(
            model=model,
            messages=messages,
            max_tokens=20,
            seed=7,
            extra_body=IGNORE_EOS,
            stream=True,
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == whole.choices[0].message.content
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model=model, prompt="abc", max_tokens=-1)
        assert refused.value.param == "max_tokens"
        unknown = httpx2.get(f"{url}/v1/nothing")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
        document = httpx2.get(f"{url}/openapi.json").json()
        assert document["servers"] == [{"url": "/llm"}]
        assert "/v1/chat/completions" in document["paths"]
        assert "/llm/openapi.json" in httpx2.get(f"{url}/docs").text
        assert httpx2.get(f"{url}/health").json() == {"status": "ok"}
        assert httpx2.get(url.removesuffix("/llm") + "/hello").text == "hello"


@HOSTS
def test_who_hangs_up_cancels(worker_address: str, host: Any) -> None:
    """A stream whose caller goes ends at the worker, long before it would have."""
    with mounted(worker_address, host) as (url, inner), official(url) as client:
        stream = client.completions.create(
            model=model_of(client),
            prompt="abc",
            max_tokens=8000,
            stream=True,
            extra_body=IGNORE_EOS,
        )
        next(iter(stream))
        num_before = inner.stats.num_generation_tokens
        stream.close()
        deadline = time.monotonic() + WAIT_S
        while inner.num_live or inner.stats.num_running:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert inner.stats.num_generation_tokens - num_before < 6000


class Names(AuthenticationBackend):
    """Whoever has a key is called so."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        _, _, name = conn.headers.get("authorization", "").partition("Bearer ")
        return (AuthCredentials(), SimpleUser(name)) if name else None


def authenticating_host(llm: Any) -> Any:
    return AuthenticationMiddleware(fastapi_host(llm), backend=Names())


def tenant_of(scope: MutableMapping[str, Any]) -> str | None:
    return scope["user"].display_name if scope["user"].is_authenticated else None


async def slow_tenant_of(scope: MutableMapping[str, Any]) -> str | None:
    """As one that looks into a database."""
    await asyncio.sleep(0)
    return tenant_of(scope)


@pytest.mark.parametrize("tell", [tenant_of, slow_tenant_of])
def test_the_host_says_who_asks(worker_address: str, tell: Any) -> None:
    """Whom the host does not know gets a 401 as the API has it, but for /health; whom it knows has
    places, and Idempotency-Keys, of his own."""
    options = {"tenant_of": tell, "max_requests_per_tenant": 1}
    with ExitStack() as stack:
        url, _ = stack.enter_context(mounted(worker_address, authenticating_host, **options))
        zoe, max_ = (stack.enter_context(official(url, name)) for name in ("zoe", "max"))
        stranger = httpx2.get(f"{url}/v1/models")
        assert stranger.status_code == 401
        assert stranger.json()["error"]["code"] == "unauthenticated"
        assert httpx2.get(f"{url}/health").status_code == 200

        model = model_of(zoe)
        asked: dict[str, Any] = {"model": model, "prompt": "abc", "extra_body": IGNORE_EOS}
        stream = zoe.completions.create(**asked, max_tokens=8000, stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError):
            zoe.completions.create(**asked, max_tokens=2)
        key = {"Idempotency-Key": "the-same"}
        of_max = max_.completions.create(**asked, max_tokens=2, extra_headers=key)
        stream.close()
        of_zoe = _once_free(zoe, **asked, max_tokens=2, extra_headers=key)
        assert of_zoe.id != of_max.id


def _once_free(client: openai.OpenAI, **asked: Any) -> Any:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return client.completions.create(**asked)
        except openai.RateLimitError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_tenant_that_is_no_text_is_the_hosts_error(
    worker_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A `tenant_of` that gives something else makes a 500, and the host's log says what it gave."""
    with mounted(worker_address, tenant_of=lambda _: 7) as (url, _):
        failed = httpx2.get(f"{url}/v1/models")
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal_error")
    assert "must give a str or None, not int" in caplog.text


def test_only_what_is_wanted_is_there(worker_address: str) -> None:
    """Of the API there are the parts that the host names, in its document as well."""
    with mounted(worker_address, parts=("chat", "models")) as (url, _), official(url) as client:
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model=model_of(client), prompt="abc")
        document = httpx2.get(f"{url}/openapi.json").json()
        assert set(document["paths"]) == {
            "/v1/chat/completions",
            "/v1/models",
            "/v1/models/{model_id}",
        }


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"parts": ("chat", "files")}, "files"),
        ({"parts": "chat"}, "chat"),
        ({"port": 80}, "port"),
        ({"max_requests": 0}, "max_requests"),
        ({"max_requests_per_tenant": 0, "tenant_of": tenant_of}, "max_requests_per_tenant"),
        ({"max_requests_per_tenant": 1}, "tenant_of"),
    ],
)
def test_what_is_no_option_is_refused(options: Any, named: str) -> None:
    """Parts, limits and values that there are not raise an error that names them."""
    with pytest.raises(InvalidRequestError, match=named):
        chairlift.asgi_app(**options)


def test_the_hosts_environment_is_not_read(
    worker_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a `.env` nor variables that `chairlift serve` would read change a mount."""
    (tmp_path / ".env").write_text("CHAIRLIFT_MAX_BODY_BYTES=1\nCHAIRLIFT_NONSENSE=1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHAIRLIFT_API_KEYS", "sk-secret")
    monkeypatch.setenv("CHAIRLIFT_MAX_BODY_BYTES", "1")
    with mounted(worker_address) as (url, _), official(url) as client:
        assert client.completions.create(model=model_of(client), prompt="abc", max_tokens=1).id


def test_without_a_worker_it_says_so() -> None:
    """A mount whose worker is not there answers 503, in the API's shape."""
    with mounted("ipc:///tmp/chairlift-nobody") as (url, _):
        answer = httpx2.get(f"{url}/v1/models", timeout=WAIT_S)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "worker_unavailable"


def test_a_client_of_another_loop_says_so(worker_address: str) -> None:
    """A mount whose client was used in another event loop before answers 503, and tells why."""
    client = chairlift.AsyncClient(worker_address)
    asyncio.run(client.connect())
    with in_thread(fastapi_host(chairlift.asgi_app(client))) as url:
        answer = httpx2.get(f"{url}/llm/v1/models")
    asyncio.run(client.close())
    assert answer.status_code == 503
    assert "another event loop" in answer.json()["error"]["message"]


def test_it_speaks_in_the_hosts_log(
    worker_address: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Requests are told to the standard library's logging, the host's, and nowhere else."""
    with (
        caplog.at_level(logging.INFO, "chairlift.http"),
        mounted(worker_address) as (url, _),
    ):
        httpx2.get(f"{url}/v1/models")
    (record,) = [record for record in caplog.records if record.name == "chairlift.http"]
    assert json.dumps([record.__dict__[name] for name in ("route", "status")]) == (
        '["/v1/models", 200]'
    )
    assert capfd.readouterr() == ("", "")


def test_watching_has_to_be_asked_for(worker_address: str) -> None:
    """A mount shows nobody the batch unless its host says so."""
    with mounted(worker_address) as (url, _):
        assert httpx2.get(f"{url}/watch").status_code == 404
        assert httpx2.get(f"{url}/").status_code == 404


def test_watching_ends_with_the_client(worker_address: str) -> None:
    """Its host may close it under a reader, whose stream then comes to its end."""
    llm = chairlift.asgi_app(chairlift.AsyncClient(worker_address), parts=("watch",))
    host = fastapi_host(llm)

    async def close() -> PlainTextResponse:
        await llm.client.close()
        return PlainTextResponse("closed")

    host.add_api_route("/close", close)
    with (
        in_thread(host) as url,
        httpx2.Client(timeout=WAIT_S) as http,
        http.stream("GET", f"{url}/llm/watch") as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith("event: worker")
        assert http.get(f"{url}/close").text == "closed"
        assert [*lines]


def test_a_user_without_a_name_is_nobody(worker_address: str) -> None:
    """Who has not logged in has an empty name in Starlette, and is refused."""
    with mounted(worker_address, tenant_of=lambda scope: "") as (url, _):
        answer = httpx2.get(f"{url}/v1/models")
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated")
