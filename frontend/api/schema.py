"""What /docs and /openapi.json tell: the routes parse their bodies themselves, under limits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..client import AsyncClient
from .answer_schemas import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    EmbeddingList,
    ErrorBody,
    Health,
    Model,
    ModelList,
    Text,
    Tokens,
    Version,
)
from .gate import OPEN_PATHS
from .parameters import HAS_NO_EFFECT, Neutral
from .receipts import HEADER as RECEIPT_HEADER
from .responses_schema import RESPONSE_EVENTS, ResponseBody

REFERENCE = "#/components/schemas/{model}"
NULL = {"type": "null"}
KEPT = ("title", "description", "default")

Json = dict[str, Any]


def reference(schema: type[BaseModel]) -> Json:
    return {"$ref": REFERENCE.format(model=schema.__name__)}


def as_json(schema: type[BaseModel]) -> Json:
    return {"application/json": {"schema": reference(schema)}}


def as_events(*chunks: type[BaseModel]) -> Json:
    """The schema is that of one event: a chunk, or an error instead of all that would follow."""
    return _events({"const": "[DONE]"}, _text_of(*chunks, ErrorBody))


def as_named_events(*events: type[BaseModel]) -> Json:
    """With their types for names, and no [DONE]."""
    return _events(_text_of(*events), event={"type": "string"})


def _text_of(*payloads: type[BaseModel]) -> Json:
    schema = {"anyOf": [*map(reference, payloads)]}
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}


def _events(*kinds: Json, **more: Json) -> Json:
    properties = {"id": {"type": "string"}, "data": {"anyOf": [*kinds]}, **more}
    event = {"type": "object", "required": ["id", "data", *more], "properties": properties}
    return {"text/event-stream": {"schema": event}}


def either(*contents: Json) -> Json:
    """Of one kind of content."""
    ((kind, _), *_) = contents[0].items()
    return {kind: {"schema": {"anyOf": [content[kind]["schema"] for content in contents]}}}


ANSWERS: dict[str, Json] = {
    "/v1/completions": as_json(Completion) | as_events(CompletionChunk),
    "/v1/chat/completions": as_json(ChatCompletion) | as_events(ChatCompletionChunk),
    "/v1/responses": as_json(ResponseBody) | as_named_events(*RESPONSE_EVENTS),
    "/v1/streams/{response_id}": either(
        as_events(CompletionChunk, ChatCompletionChunk), as_named_events(*RESPONSE_EVENTS)
    ),
    "/v1/models": as_json(ModelList),
    "/v1/models/{model_id}": as_json(Model),
    "/v1/embeddings": as_json(EmbeddingList),
    "/tokenize": as_json(Tokens),
    "/detokenize": as_json(Text),
    "/health": as_json(Health),
    "/ready": as_json(Health),
    "/version": as_json(Version),
    "/watch": {"text/event-stream": {"schema": {"type": "string"}}},
    "/metrics": {"text/plain": {"schema": {"type": "string"}}},
}
ANSWER_SCHEMAS: tuple[type[BaseModel], ...] = (
    Completion, CompletionChunk, ChatCompletion, ChatCompletionChunk, EmbeddingList, Tokens, Text,
    Model, ModelList, Health, Version, ResponseBody, *RESPONSE_EVENTS,
)  # fmt: skip


def header(description: str) -> Json:
    return {"description": description, "schema": {"type": "string"}}


REQUEST_ID = {"x-request-id": header("The request's own, or one that we gave it.")}
RETRY = {
    "Retry-After": header("Seconds to wait before the next try."),
    "retry-after-ms": header("The same in milliseconds."),
}
BODY_ERRORS = ("408", "413", "415")
ERRORS: dict[int | str, Json] = {
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
ERRORS[429]["headers"] = ERRORS[503]["headers"] = RETRY


def parameter(name: str, place: str, description: str, schema: Json | None = None) -> Json:
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


RECEIPT = parameter(
    RECEIPT_HEADER,
    "header",
    "1: tell with the usage, in a stream too, how the request fared among the others.",
    {"enum": ["0", "1"], "default": "0"},
)


def documented(schema: type[BaseModel], *, generates: bool = True) -> Json:
    """Arguments for a route whose body is a `schema`, and that may have our headers if it
    generates."""
    body = {"required": True, "content": as_json(schema)}
    extra = {"requestBody": body, "parameters": [IDEMPOTENCY_KEY, RECEIPT] if generates else []}
    return {"openapi_extra": extra, "responses": ERRORS}


class DocumentedApp(FastAPI):
    """A FastAPI app that also documents the bodies and answers that it does not handle itself."""

    body_schemas: tuple[type[BaseModel], ...] = ()
    client: AsyncClient

    def openapi(self) -> Json:
        if not self.openapi_schema:
            document = get_openapi(title=self.title, version=self.version, routes=self.routes)
            components = document["components"]
            components["schemas"] = self._schemas()
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{}, {"key": []}]  # a key only where the server has keys
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    _tell_answers(path, method, operation)
            self.openapi_schema = document
        return self.openapi_schema

    def _schemas(self) -> Json:
        told: tuple[type[BaseModel], ...] = (*self.body_schemas, *ANSWER_SCHEMAS, ErrorBody)
        _, definitions = models_json_schema(
            [(schema, "validation") for schema in told], ref_template=REFERENCE
        )
        schemas: Json = definitions["$defs"]
        for body in self.body_schemas:
            neutral, harmless = getattr(body, "neutral", {}), getattr(body, "harmless", ())
            _tell_neutral(schemas[body.__name__], neutral, harmless)
        return schemas


def _tell_answers(path: str, method: str, operation: Json) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's, which we never send
    if path in ANSWERS:
        responses["200"]["content"] = ANSWERS[path]
    if path in OPEN_PATHS:
        operation["security"] = []
        responses["503"]["content"] = ANSWERS[path]
    else:
        refused = {"description": ERRORS[401]["description"], "content": as_json(ErrorBody)}
        responses.setdefault("401", refused)
    if method == "get":
        for status in BODY_ERRORS:
            responses.pop(status, None)
    for response in responses.values():
        response["headers"] = REQUEST_ID | response.get("headers", {})


def _tell_neutral(definition: Json, neutral: Neutral, harmless: Iterable[str]) -> None:
    """What `without_neutral` lets pass: null for the default, and what says nothing."""
    properties, required = definition["properties"], definition.get("required", ())
    for name in properties.keys() - set(required):
        properties[name] = _or_null(properties[name])
    for name in sorted(harmless):
        properties.setdefault(name, {"description": HAS_NO_EFFECT})
    for name in sorted(neutral):
        told = {"description": HAS_NO_EFFECT, "enum": [None, *neutral[name]]}
        properties.setdefault(name, told)


def _or_null(schema: Json) -> Json:
    told: Json = {key: schema[key] for key in KEPT if key in schema}
    kinds = schema.get("anyOf") or [{k: v for k, v in schema.items() if k not in told}]
    return {**told, "anyOf": kinds if NULL in kinds else [*kinds, NULL]}
