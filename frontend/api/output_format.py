"""What the output has to look like, as OpenAI spells it and as vLLM does: one grammar at most."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...shared.errors import InvalidRequestError
from ...shared.sampling_params import MAX_GRAMMAR_BYTES, Grammar, GrammarKind
from .parameters import HAS_NO_EFFECT

ANY_OBJECT = '{"type":"object"}'

JsonSchema = dict[str, Any] | str
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=4096)]
Source = Annotated[str, Field(min_length=1)]


class _Format(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class NamedSchema(_Format):
    """A JSON schema, which the output always adheres to, `strict` or not."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", description=HAS_NO_EFFECT)]
    description: Annotated[str | None, Field(description=HAS_NO_EFFECT)] = None
    source: Annotated[
        dict[str, Any] | None, Field(alias="schema", description="Without one, any object.")
    ] = None
    strict: Annotated[bool | None, Field(description=HAS_NO_EFFECT)] = None


class ResponseFormat(_Format):
    """Text, any JSON object, or what a schema describes."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Annotated[
        NamedSchema | None, Field(description="With the type json_schema, and only then.")
    ] = None

    @model_validator(mode="after")
    def _has_schema_when_named(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with type json_schema, and only with it")
        return self


class StructuredOutputs(_Format):
    """One of the four."""

    source: Annotated[
        JsonSchema | None, Field(alias="json", description="JSON that adheres to this schema.")
    ] = None
    regex: Annotated[Source | None, Field(description="A text that matches it as a whole.")] = None
    choice: Annotated[Choices | None, Field(description="One of these.")] = None
    grammar: Annotated[Source | None, Field(description="In Lark's notation")] = None


class ConstrainedRequest(BaseModel):
    """The fields of a request that constrain its output."""

    response_format: Annotated[
        ResponseFormat | None, Field(description="What the output has to be.")
    ] = None
    structured_outputs: Annotated[
        StructuredOutputs | None, Field(description="The same, as vLLM spells it.")
    ] = None
    guided_json: Annotated[
        JsonSchema | None, Field(description="JSON that adheres to this schema.")
    ] = None
    guided_regex: Annotated[
        Source | None, Field(description="A text that matches it as a whole.")
    ] = None
    guided_choice: Annotated[Choices | None, Field(description="One of these.")] = None
    guided_grammar: Annotated[Source | None, Field(description="In Lark's notation")] = None

    @property
    def grammar_param(self) -> str:
        """The field that constrains the output, or none; InvalidRequestError for two."""
        asked = self.response_format
        fields = ConstrainedRequest.model_fields
        given = [name for name in fields if getattr(self, name) is not None]
        if asked is not None and asked.type == "text":
            given.remove("response_format")
        if len(given) > 1:
            raise InvalidRequestError(f"{given[0]} and {given[1]}: give one", param=given[1])
        return given[0] if given else ""

    @property
    def grammar(self) -> Grammar | None:
        """Raises InvalidRequestError."""
        param = self.grammar_param
        if not param:
            return None
        if param == "response_format":
            named = self.response_format.json_schema if self.response_format else None
            return schema_grammar(param, named.source if named else None)
        if param != "structured_outputs":
            return _made(param, param.removeprefix("guided_"), getattr(self, param))
        asked = self.structured_outputs
        assert asked is not None, "it is given"
        values = {"json": asked.source} | {
            name: getattr(asked, name) for name in ("regex", "choice", "grammar")
        }
        given = {name: value for name, value in values.items() if value is not None}
        if len(given) != 1:
            message = f"{param}: give one of json, regex, choice and grammar"
            raise InvalidRequestError(message, param=param)
        ((name, value),) = given.items()
        return _made(param, name, value)


def schema_grammar(param: str, schema: dict[str, Any] | None) -> Grammar:
    """JSON that adheres to the schema, or any object."""
    source = ANY_OBJECT if schema is None else orjson.dumps(schema).decode()
    return _grammar(param, "json_schema", source)


def _made(param: str, name: str, value: Any) -> Grammar:
    match name:
        case "json":
            return _grammar(param, "json_schema", _schema_text(param, value))
        case "choice":
            return _grammar(param, "choice", orjson.dumps(value).decode())
        case "regex":
            return _grammar(param, "regex", value)
    return _grammar(param, "lark", value)


def _schema_text(param: str, schema: JsonSchema) -> str:
    if isinstance(schema, dict):
        return orjson.dumps(schema).decode()
    _check_size(param, schema)
    try:
        orjson.loads(schema)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"{param} is no JSON: {error}", param=param) from None
    return schema


def _grammar(param: str, kind: GrammarKind, source: str) -> Grammar:
    _check_size(param, source)
    return Grammar(kind, source)


def _check_size(param: str, source: str) -> None:
    if (num_bytes := len(source.encode())) > MAX_GRAMMAR_BYTES:
        message = f"{param} has {num_bytes} bytes, at most {MAX_GRAMMAR_BYTES} may be"
        raise InvalidRequestError(message, param=param)
