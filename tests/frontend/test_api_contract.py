"""docs/api.md is true: each parameter is tried, and does or refuses what the page says."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from tests.api_contract.contract import Endpoint, Json, Spot, contract
from tests.api_contract.page import PAGE, written
from tests.api_contract.samples import NAMES, UNSAID, Samples, found, placed
from tests.frontend.fake_client import FakeClient, FakeStream

# fmt: off
ANYTHING = ("x", "", "none", 1, 0, -1.5, True, False, [], ["x"], {}, {"x": 1})
OFFICIAL: dict[str, tuple[Any, ...]] = {
    "/v1/chat/completions": (
        chat_create_params.CompletionCreateParamsNonStreaming,
        chat_create_params.CompletionCreateParamsStreaming,
    ),
    "/v1/completions": (
        completion_create_params.CompletionCreateParamsNonStreaming,
        completion_create_params.CompletionCreateParamsStreaming,
    ),
    "/v1/embeddings": (embedding_create_params.EmbeddingCreateParams,),
    "/v1/responses": (
        response_create_params.ResponseCreateParamsNonStreaming,
        response_create_params.ResponseCreateParamsStreaming,
    ),
}
# fmt: on
UNKNOWN = "chairlift_unknown"
TIMES = re.compile(r"\b1[0-9]{9}\b")
CONTRACT = contract()
SAMPLES = Samples(CONTRACT)
WITH_BODY = [one for one in CONTRACT.endpoints if one.takes_body]

Condition = Callable[[Spot], bool]


def only_kind(spot: Spot) -> bool:
    """It has one value, which says what kind of object it stands in."""
    schema = spot.parameter.schema
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    is_const = len(kinds) == 1 and "const" in kinds[0]
    return is_const or (len(schema.get("enum", ())) == 1 and spot.parameter.has_shape)


def is_name(spot: Spot) -> bool:
    """It says which one of the things that are there."""
    return spot.parameter.place == "path" or spot.key in NAMES


def is_honoured(spot: Spot) -> bool:
    return spot.parameter.standing == "honoured" and not is_name(spot) and not only_kind(spot)


def is_harmless(spot: Spot) -> bool:
    return spot.parameter.standing == "harmless"


def is_refused(spot: Spot) -> bool:
    return spot.parameter.standing == "refused"


def may_be_null(spot: Spot) -> bool:
    one = spot.parameter
    return one.place == "body" and one.standing == "honoured" and not one.is_required


def is_first(spot: Spot) -> bool:
    """Of the object that it stands in."""
    holder = spot.holders[-1][1] if spot.holders else None
    fields = CONTRACT.fields(holder) if holder else spot.endpoint.parameters
    return spot.parameter == fields[0]


def each(condition: Condition) -> pytest.MarkDecorator:
    """A test for each of these parameters."""
    return pytest.mark.parametrize("spot", list(filter(condition, CONTRACT.spots())), ids=str)


class WatchedClient(FakeClient):
    """Remembers who wanted to take a stream over."""

    def __init__(self) -> None:
        super().__init__(special_tokens=["<s>"], bos="<s>")
        self.takeovers: list[bool] = []

    async def attach(self, request_id: bytes, *, takes_over: bool = True) -> FakeStream:
        self.takeovers.append(takes_over)
        return await super().attach(request_id, takes_over=takes_over)


@dataclass(frozen=True)
class Outcome:
    """What a request led to, but for the time of day."""

    status: int
    submitted: str
    answer: str
    error: Json


@pytest.fixture
def fake() -> WatchedClient:
    return WatchedClient()


@pytest.fixture(autouse=True)
def same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal requests have equal ids, and the seeds that are made of them."""
    monkeypatch.setattr(secrets, "token_bytes", bytes)


@dataclass(frozen=True)
class Desk:
    """Takes in requests for the app, one at a time, as if each was the first."""

    http: TestClient
    fake: WatchedClient

    def ask(self, spot: Spot, value: Any = UNSAID, body: Json | None = None) -> Outcome:
        """With the value for the parameter, or without."""
        self.fake.requests.clear()
        address = SAMPLES.address(spot, self.http)
        before = len(self.fake.asked)
        self.fake.takeovers.clear()
        arguments = _arguments(spot, SAMPLES.body(spot) if body is None else body, value)
        answer = self.http.request(spot.endpoint.method, address, **arguments)
        submitted = [*self.fake.asked[before:], *self.fake.options[before:], *self.fake.takeovers]
        error = answer.json()["error"] if answer.status_code >= 400 else {}
        return Outcome(
            answer.status_code, _timeless(repr(submitted)), _timeless(answer.text), error
        )


def _arguments(spot: Spot, body: Json, value: Any) -> dict[str, Any]:
    is_said, name = value is not UNSAID, spot.parameter.name
    place = spot.parameter.place
    arguments: dict[str, Any] = {"json": body} if spot.endpoint.takes_body else {}
    if is_said and place == "body":
        arguments["json"] = placed(body, spot.path, value)
    elif is_said:
        arguments["headers" if place == "header" else "params"] = {name: value}
    return arguments


def _timeless(text: str) -> str:
    return TIMES.sub("TIME", text)


@pytest.fixture
def desk(http: TestClient, fake: WatchedClient) -> Desk:
    return Desk(http, fake)


def check_names(outcome: Outcome, spot: Spot, name: str) -> None:
    """A 400 at the parameter, or at the object that holds it and then with its name."""
    assert outcome.status == 400, f"{spot}: accepted"
    param = outcome.error["param"]
    outermost = spot.path[0] if len(spot.path) > 1 else name
    assert re.split(r"[.\[]", param)[0] == outermost, outcome.error
    assert name in outcome.error["message"], outcome.error


@pytest.mark.checkout
def test_the_page_is_current() -> None:
    """`python -m tests.api_contract` writes it anew after a parameter has changed."""
    page = PAGE.read_text("utf-8")
    assert written(page, CONTRACT) == page, "run python -m tests.api_contract"


@pytest.mark.parametrize("endpoint", CONTRACT.endpoints, ids=str)
def test_bodies_are_documented(endpoint: Endpoint) -> None:
    """What is posted has a schema, and so a table."""
    assert endpoint.takes_body == (endpoint.method in ("POST", "PUT", "PATCH"))


def test_every_parameter_is_tried() -> None:
    """There is a test for each kind."""
    for spot in CONTRACT.spots():
        tests = (is_honoured, is_harmless, is_refused, is_name, only_kind)
        assert sum(condition(spot) for condition in tests) == 1, spot


@each(is_honoured)
def test_what_is_honoured_has_an_effect(desk: Desk, spot: Spot) -> None:
    """It reaches the worker, or shows in the answer."""
    body = SAMPLES.body(spot)
    default = spot.parameter.schema.get("default")
    value = SAMPLES.value(spot, unlike=found(body, spot.path) or default)
    said = desk.ask(spot, value)
    assert said.status == 200, f"{spot}: {value!r} in {body}: {said.error}"
    unsaid = desk.ask(spot)
    assert said != unsaid, f"{spot}: {value!r} was accepted and changed nothing"


@each(is_harmless)
def test_what_is_harmless_changes_nothing(desk: Desk, spot: Spot) -> None:
    """Whatever it says, the worker is asked the same and the answer is the same."""
    unsaid = desk.ask(spot)
    assert unsaid.status == 200, unsaid.error
    values = [SAMPLES.value(spot, unlike=UNSAID)] if spot.parameter.has_shape else ANYTHING
    for value in values:
        assert desk.ask(spot, value) == unsaid, f"{spot}: {value!r}"


@each(is_refused)
def test_what_is_refused_is_named(desk: Desk, spot: Spot) -> None:
    """Any value that would say something is refused, those that say nothing change nothing."""
    neutral = spot.parameter.neutral
    unsaid = desk.ask(spot)
    assert unsaid.status == 200, unsaid.error
    for value in but_for(neutral, ANYTHING):
        refusal = desk.ask(spot, value)
        check_names(refusal, spot, spot.parameter.name)
        if len(spot.path) == 1:
            assert refusal.error["code"] == "unsupported_parameter", refusal.error
    for value in as_written(neutral):
        assert desk.ask(spot, value) == unsaid, f"{spot}: {value!r}"


def but_for(neutral: Iterable[Any], values: Iterable[Any]) -> list[Any]:
    known = [(type(one), one) for one in neutral]
    return [value for value in values if (type(value), value) not in known]


def as_written(values: Iterable[Any]) -> list[Any]:
    """JSON has one number where Python has two."""
    return [
        one
        for value in values
        for one in ([value, float(value)] if type(value) is int else [value])
    ]


@each(may_be_null)
def test_null_is_the_default(desk: Desk, spot: Spot) -> None:
    """As if it was left out."""
    assert desk.ask(spot, None) == desk.ask(spot), spot


@each(is_name)
def test_what_is_named_has_to_be_there(desk: Desk, spot: Spot) -> None:
    """What is there is taken, another is not found."""
    if spot.parameter.place == "path":
        known = desk.http.request(spot.endpoint.method, SAMPLES.address(spot, desk.http))
        other = desk.http.request(spot.endpoint.method, re.sub("{.*}", UNKNOWN, spot.endpoint.path))
        assert [known.status_code, other.status_code] == [200, 404]
    else:
        assert desk.ask(spot, NAMES[spot.key]) == desk.ask(spot)
        assert desk.ask(spot, UNKNOWN).status == 404


@each(only_kind)
def test_there_is_one_kind(desk: Desk, spot: Spot) -> None:
    """Another is refused."""
    assert desk.ask(spot).status == 200
    check_names(desk.ask(spot, UNKNOWN), spot, spot.parameter.name)


@each(lambda spot: spot.parameter.place == "body" and is_first(spot))
def test_what_is_in_no_table_is_refused(desk: Desk, spot: Spot) -> None:
    """By its name, in the body and in each object that it holds."""
    body = placed(SAMPLES.body(spot), (*spot.path[:-1], UNKNOWN), 1)
    check_names(desk.ask(spot, body=body), spot, UNKNOWN)


@pytest.mark.parametrize("endpoint", WITH_BODY, ids=str)
def test_what_is_in_another_table_is_refused(desk: Desk, endpoint: Endpoint) -> None:
    """An endpoint's table has all that it lets pass."""
    own = {one.name for one in endpoint.parameters}
    spot = Spot(endpoint, endpoint.parameters[0], (endpoint.parameters[0].name,))
    for name in {one.name for other in WITH_BODY for one in other.parameters} - own:
        outcome = desk.ask(spot, body={**SAMPLES.body(spot), name: None})
        assert outcome.error.get("param") == name, f"{endpoint}: {name}"


@pytest.mark.parametrize("endpoint", [one for one in WITH_BODY if one.path in OFFICIAL], ids=str)
def test_every_official_parameter_is_known(desk: Desk, endpoint: Endpoint) -> None:
    """What OpenAI's own client can send is in the table, be it as refused."""
    official = {
        name
        for kind in OFFICIAL[endpoint.path]
        for name in kind.__required_keys__ | kind.__optional_keys__
    }
    assert official - {one.name for one in endpoint.parameters} == set()
