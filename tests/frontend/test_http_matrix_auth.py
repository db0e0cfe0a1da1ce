"""Who may pass: nobody without a key, wherever they knock."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from chairlift.frontend import auth
from chairlift.frontend.api.gate import OPEN_PATHS
from chairlift.frontend.api.page import PAGE_PATHS
from chairlift.frontend.auth import ApiKeys
from chairlift.shared.settings import ServeSettings
from tests.frontend.loopback import exchange, loopback, post

KEYS = ("first-key-of-some-length", "second-key", "schlüssel")
KEY = KEYS[0]
WRONG: dict[str, bytes | None] = {
    "none": None,
    "empty": b"",
    "no key": b"Bearer",
    "a blank": b"Bearer ",
    "wrong": b"Bearer wrong",
    "no scheme": KEY.encode(),
    "another scheme": b"Basic " + KEY.encode(),
    "more": b"Bearer " + KEY.encode() + b"x",
    "twice": b"Bearer " + KEY.encode() + b" " + KEY.encode(),
    "both": f"Bearer {KEY},{KEYS[1]}".encode(),
    "capitals": b"Bearer " + KEY.upper().encode(),
    "a million": b"Bearer " + b"x" * 1_000_000,
    "the key and a million": b"Bearer " + KEY.encode() + b"x" * 1_000_000,
    "letters": "Bearer ключ".encode(),
    "latin": b"Bearer \xff\xfe",
    "a zero": b"Bearer " + KEY.encode() + b"\0",
    "the digest": b"Bearer " + b"a" * 64,
    **{f"{n} of it": b"Bearer " + KEY.encode()[:n] for n in range(1, len(KEY))},
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@pytest.fixture
def settings(address: str) -> ServeSettings:
    return ServeSettings(address=address, api_keys=tuple(map(SecretStr, KEYS)))


def routes_of(routes: Any) -> Iterator[str]:
    """Every path of the app, those of included routers too."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from routes_of(inner.routes)
        else:
            yield route.path.replace("{", "").replace("}", "").replace(":path", "")


@pytest.mark.parametrize("authorization", WRONG.values(), ids=WRONG.keys())
def test_every_route_is_closed(http: TestClient, authorization: bytes | None) -> None:
    """Only /health, /ready and the page's files are open, whatever routes there are; what does not
    exist is not told either."""
    headers = [] if authorization is None else [(b"authorization", authorization)]
    paths = set(routes_of(http.app.routes))  # type: ignore[attr-defined]
    assert {"/health", "/metrics", "/docs", "/openapi.json", "/v1/completions"} <= paths
    assert len(paths) >= 9 and {"/health", "/ready"} == OPEN_PATHS - PAGE_PATHS
    others = ["/nothing", "/health/", "http://testserver//health", "/health/../metrics"]
    for path in [*paths - OPEN_PATHS, *others]:
        for method in METHODS:
            answer = http.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path)
            assert method == "HEAD" or answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
    for path in OPEN_PATHS:
        assert http.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize("key", KEYS)
def test_keys_open(http: TestClient, key: str) -> None:
    """Each of the keys opens every route, those with letters beyond ASCII too."""
    headers = [(b"authorization", b"bearer " + key.encode())]
    for path in routes_of(http.app.routes):  # type: ignore[attr-defined]
        assert http.get(path, headers=headers).status_code != 401, path


def test_over_a_socket(settings: ServeSettings) -> None:
    """A key of a megabyte does not even get to be compared."""
    body = b'{"prompt": "a"}'
    with loopback(settings) as port:
        for name, authorization in WRONG.items():
            headers = (
                []
                if authorization is None
                else [f"Authorization: {authorization.decode('latin-1')}"]
            )
            answer = exchange(port, post("/v1/completions", body, *headers))
            allowed = {"a million": (431, 0), "the key and a million": (431, 0), "a zero": (400,)}
            assert answer.status in allowed.get(name, (401,)), name
        assert (
            exchange(port, post("/v1/completions", body, f"Authorization: Bearer {KEY}")).status
            == 200
        )


@pytest.mark.parametrize("given", [*KEYS, "wrong", "", KEY[:-1], "x" * 100_000])
def test_comparing_tells_nothing_by_its_time(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys are compared whichever fits, each by a digest of fixed length, in constant time."""
    compared: list[tuple[bytes, bytes]] = []

    def compare_digest(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(auth, "compare_digest", compare_digest)
    tenant = ApiKeys(KEYS).tenant_of(b"Bearer " + given.encode())
    assert bool(tenant) == (given in KEYS)
    assert len(compared) == len(KEYS)
    assert {len(digest) for pair in compared for digest in pair} == {32}
