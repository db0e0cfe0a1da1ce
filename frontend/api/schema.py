"""What /docs and /openapi.json tell: the routes parse their bodies themselves, under limits."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

REFERENCE = "#/components/schemas/{model}"


class Problem(BaseModel):
    """What is wrong, for people and for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every failure has this shape."""

    error: Problem


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "model": ErrorBody}
    for status, description in {
        400: "The request can't be served as it is",
        401: "No known API key",
        404: "No such model, path or stream",
        408: "The body came too slowly",
        409: "The Idempotency-Key came with another body, or another reader took over",
        413: "The body is too large",
        415: "The body is not declared to be JSON",
        429: "Too much in flight for this API key",
        500: "Our failure",
        503: "No worker, or too much in flight; Retry-After says when to try again",
        504: "Not finished within the time limit",
    }.items()
}


def parameter(
    name: str, place: str, description: str, schema: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One that may be left out; a string unless the schema says otherwise."""
    shape = schema or {"type": "string"}
    return {"name": name, "in": place, "description": description, "schema": shape}


IDEMPOTENCY_KEY = parameter(
    "Idempotency-Key",
    "header",
    "A name of yours for this request: sent again with it, the request that runs, or that ended "
    "a short while ago, is joined instead of made anew.",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
)


def documented(schema: type[BaseModel]) -> dict[str, Any]:
    """Arguments for a route whose body is a `schema`."""
    reference = {"$ref": REFERENCE.format(model=schema.__name__)}
    body = {"required": True, "content": {"application/json": {"schema": reference}}}
    extra = {"requestBody": body, "parameters": [IDEMPOTENCY_KEY]}
    return {"openapi_extra": extra, "responses": ERRORS}


class DocumentedApp(FastAPI):
    """A FastAPI app that also documents the schemas of bodies it does not parse itself."""

    body_schemas: tuple[type[BaseModel], ...] = ()

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            document = get_openapi(title=self.title, version=self.version, routes=self.routes)
            _, definitions = models_json_schema(
                [(schema, "validation") for schema in self.body_schemas], ref_template=REFERENCE
            )
            document["components"]["schemas"].update(definitions["$defs"])
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)  # FastAPI's, which we never send
            self.openapi_schema = document
        return self.openapi_schema
