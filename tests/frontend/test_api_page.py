"""The files of the page, as they are served."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from chairlift.frontend.api.page import FILES, FOLDER, POLICY
from chairlift.shared.settings import ServeSettings


@pytest.fixture
def settings(address: str) -> ServeSettings:
    return ServeSettings(address=address, api_keys=(SecretStr("k"),))


@pytest.mark.parametrize(("path", "file"), FILES.items(), ids=FILES)
def test_each_file(http: TestClient, path: str, file: Any) -> None:
    """It comes without a key, as what it is, under the policy, and once while it is the same."""
    answer = http.get(path)
    assert answer.content == file.read_bytes()
    kind = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
    assert answer.headers["content-type"].startswith(kind.get(file.suffix, "image/svg+xml"))
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = http.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = http.get(path, headers={"If-None-Match": '"another"'})
    assert other.status_code == 200
    assert http.head(path).status_code == 200


def test_nothing_else(http: TestClient) -> None:
    """What is no file of the page is told as any unknown path is: by nobody without a key."""
    for path in (
        "/page",
        "/page/",
        "/page/index.html",
        "/page/nothing.js",
        "/page/..%2fapi/app.py",
    ):
        assert http.get(path).status_code == 401
        answer = http.get(path, headers={"Authorization": "Bearer k"})
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"
    assert http.post("/", headers={"Authorization": "Bearer k"}).status_code == 405


def test_it_is_no_part_of_the_api(http: TestClient) -> None:
    """The OpenAPI document does not list it."""
    document = http.get("/openapi.json", headers={"Authorization": "Bearer k"}).json()
    assert not set(FILES) & set(document["paths"])


def test_addresses_are_relative() -> None:
    """The page can be mounted below any path: no file has an address from the root or of a host."""
    for file in FILES.values():
        text = file.read_text("utf-8")
        assert not re.search(r"""(?:href|src)=["']/|fetch\(["'`]/|url\(|from ["']/""", text), file
        hosts = set(re.findall(r"https?://([\w.]+)", text))
        assert hosts <= {"www.w3.org", "html.spec.whatwg.org"}, file


def test_every_module_is_preloaded() -> None:
    """Modules are fetched at once, not one after another as they import each other."""
    document = (FOLDER / "index.html").read_text("utf-8")
    listed = set(re.findall(r'modulepreload" href="page/([\w.]+)"', document))
    assert listed | {"main.js"} == {path.name for path in FOLDER.glob("*.js")}


def test_there_is_nothing_inline() -> None:
    """The policy forbids it, so neither scripts nor styles nor handlers stand in the document; and
    no script makes markup of text."""
    document = (FOLDER / "index.html").read_text("utf-8")
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)", document)
    for path in FOLDER.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(",
            path.read_text("utf-8"),
        )
