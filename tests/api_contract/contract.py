"""Every parameter of every endpoint, as the app's own OpenAPI document tells them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, cast

from chairlift.frontend.api import create_app
from chairlift.frontend.api.parameters import HAS_NO_EFFECT
from chairlift.frontend.client import AsyncClient
from chairlift.shared.settings import ServeSettings
from tests.frontend.fake_client import FakeClient

Json = dict[str, Any]
Standing = Literal["honoured", "harmless", "refused"]
Path = tuple[str | int, ...]  # 0 stands for an item of a list

SHAPE = {"type", "anyOf", "oneOf", "$ref", "const"}


@dataclass(frozen=True)
class Parameter:
    """One name that a request, or an object in it, may hold."""

    name: str
    place: str  # body, or path, query, header
    schema: Json
    is_required: bool = False

    @property
    def standing(self) -> Standing:
        if not self.schema.get("description", "").startswith(HAS_NO_EFFECT):
            return "honoured"
        return "refused" if "enum" in self.schema and not self.has_shape else "harmless"

    @property
    def has_shape(self) -> bool:
        """Whether the document says what values look like."""
        return bool(SHAPE & self.schema.keys())

    @property
    def neutral(self) -> list[Any]:
        """The values of a refused one that say nothing."""
        return cast(list[Any], self.schema["enum"])


@dataclass(frozen=True)
class Endpoint:
    method: str
    path: str
    description: str
    parameters: tuple[Parameter, ...]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def takes_body(self) -> bool:
        return any(one.place == "body" for one in self.parameters)


@dataclass(frozen=True)
class Held:
    """An object schema, by name, and how deep in lists a value holds it."""

    steps: tuple[int, ...]
    name: str


@dataclass(frozen=True)
class Spot:
    """A parameter where it stands in a request; `holders` are the objects around it, outermost
    first, by their places."""

    endpoint: Endpoint
    parameter: Parameter
    path: Path
    holders: tuple[tuple[Path, str], ...] = ()

    @property
    def key(self) -> str:
        return ".".join(step for step in self.path if isinstance(step, str))

    def __str__(self) -> str:
        return f"{self.endpoint} {self.key}"


class Contract:
    """What the document says, by endpoint and by object."""

    def __init__(self, document: Json) -> None:
        self._document = document

    @cached_property
    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                method.upper(),
                path,
                operation.get("description", ""),
                (*self._body_of(operation), *_others_of(operation)),
            )
            for path, operations in self._document["paths"].items()
            for method, operation in operations.items()
        ]

    @property
    def failures(self) -> dict[str, str]:
        """What each status of a failure means."""
        responses = (
            response
            for operations in self._document["paths"].values()
            for operation in operations.values()
            for response in operation["responses"].items()
        )
        told = {status: one["description"] for status, one in responses if _is_failure(one)}
        return dict(sorted(told.items()))

    def named(self, name: str) -> Json:
        return cast(Json, self._document["components"]["schemas"][name])

    def fields(self, name: str) -> list[Parameter]:
        """Of an object schema."""
        schema = self.named(name)
        required = schema.get("required", ())
        return [
            Parameter(field, "body", one, field in required)
            for field, one in schema.get("properties", {}).items()
        ]

    def held(self, schema: Json) -> Iterator[Held]:
        """The objects that a value of the schema may be, or list."""
        for one in schema.get("anyOf", schema.get("oneOf", ())):
            yield from self.held(one)
        if "$ref" in schema:
            name = schema["$ref"].rsplit("/")[-1]
            if "properties" in self.named(name):
                yield Held((), name)
            else:
                yield from self.held(self.named(name))
        if isinstance(schema.get("items"), dict):
            yield from (Held((0, *one.steps), one.name) for one in self.held(schema["items"]))

    def spots(self) -> Iterator[Spot]:
        """Everything that an endpoint takes in, to the innermost object."""
        for endpoint in self.endpoints:
            for parameter in endpoint.parameters:
                yield from self._within(Spot(endpoint, parameter, (parameter.name,)))

    def _within(self, spot: Spot) -> Iterator[Spot]:
        yield spot
        for held in self.held(spot.parameter.schema):
            if held.name in {name for _, name in spot.holders}:
                continue  # an object in one of its own kind
            path = (*spot.path, *held.steps)
            holders = (*spot.holders, (path, held.name))
            for field in self.fields(held.name):
                yield from self._within(Spot(spot.endpoint, field, (*path, field.name), holders))

    def _body_of(self, operation: Json) -> Iterator[Parameter]:
        content = operation.get("requestBody", {}).get("content", {})
        if content:
            for held in self.held(content["application/json"]["schema"]):
                yield from self.fields(held.name)


def _others_of(operation: Json) -> Iterator[Parameter]:
    for one in operation.get("parameters", ()):
        description = {"description": one["description"]} if "description" in one else {}
        schema = {**one["schema"], **description}
        yield Parameter(one["name"], one["in"], schema, one.get("required", False))


def _is_failure(response: Json) -> bool:
    schema = response.get("content", {}).get("application/json", {}).get("schema", {})
    return bool(schema.get("$ref", "").endswith("/ErrorBody"))


@cache
def contract() -> Contract:
    """Of the app as it is now."""
    settings = ServeSettings(address="ipc:///nowhere")
    return Contract(create_app(cast(AsyncClient, FakeClient()), settings).openapi())
