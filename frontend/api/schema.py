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
        404: "No such model or path",
        408: "The body came too slowly",
        413: "The body is too large",
        415: "The body is not declared to be JSON",
        429: "Too much in flight for this API key",
        500: "Our failure",
        503: "No worker, or too much in flight; Retry-After says when to try again",
    }.items()
}


def documented(schema: type[BaseModel]) -> dict[str, Any]:
    """Arguments for a route whose body is a `schema`."""
    reference = {"$ref": REFERENCE.format(model=schema.__name__)}
    body = {"required": True, "content": {"application/json": {"schema": reference}}}
    return {"openapi_extra": {"requestBody": body}, "responses": ERRORS}


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
