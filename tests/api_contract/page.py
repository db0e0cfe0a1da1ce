"""docs/api.md: what is written by hand, and between marks what the contract says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.api_contract.contract import Contract, Json, Parameter
from tests.in_words import limits, number

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
MARKED = re.compile(r"(<!-- begin (\w+)[^>]*-->\n).*?(<!-- end -->)", re.DOTALL)
HEAD = "| parameter | type | default | standing | |\n|---|---|---|---|---|"
ORDER = ("honoured", "harmless", "refused")


def written(page: str, contract: Contract) -> str:
    """The page with its generated parts as they have to be now."""
    parts = {"failures": _failures, "parameters": _parameters}

    def part(mark: re.Match[str]) -> str:
        lines = "\n".join(parts[mark[2]](contract))
        return f"{mark[1]}{lines}\n{mark[3]}"

    return MARKED.sub(part, page)


def _failures(contract: Contract) -> Iterator[str]:
    yield "| status | |\n|---|---|"
    for status, meaning in contract.failures.items():
        yield f"| {status} | {meaning} |"


def _parameters(contract: Contract) -> Iterator[str]:
    for endpoint in contract.endpoints:
        yield f"\n### {endpoint}\n\n{endpoint.description}"
        yield from _table(contract, endpoint.parameters)
    yield "\n## Objects in their bodies"
    for name in _objects(contract):
        yield f"\n### {name}\n\n{contract.named(name).get('description', '')}"
        yield from _table(contract, contract.fields(name))


def _objects(contract: Contract) -> list[str]:
    """Those that requests hold, each once."""
    holders = (name for spot in contract.spots() for _, name in spot.holders)
    return list(dict.fromkeys(holders))


def _table(contract: Contract, parameters: Iterable[Parameter]) -> Iterator[str]:
    rows = sorted(parameters, key=lambda one: (ORDER.index(one.standing), not one.is_required))
    if rows:
        yield f"\n{HEAD}"
    for one in rows:
        yield _row(contract, one)


def _row(contract: Contract, one: Parameter) -> str:
    place = "" if one.place == "body" else f" ({one.place})"
    shape = "" if one.standing == "refused" else type_of(contract, one.schema)
    default = "required" if one.is_required else _default(one.schema)
    meaning = one.schema.get("description", "") if one.standing == "honoured" else ""
    cells = (f"`{one.name}`{place}", shape, default, _standing(one), meaning)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _standing(one: Parameter) -> str:
    if one.standing != "refused":
        return one.standing
    values = [code(value) for value in one.neutral if value is not None]
    return f"refused, unless {' or '.join(values)}" if values else "refused"


def _default(schema: Json) -> str:
    value = schema.get("default")
    return "" if value is None else code(value)


def type_of(contract: Contract, schema: Json) -> str:
    """In words: `number, 0 to 2`; null, which all that may be left out may be, is not told."""
    kinds = schema.get("anyOf") or schema.get("oneOf")
    if kinds:
        told = (type_of(contract, kind) for kind in kinds if kind.get("type") != "null")
        return " or ".join(dict.fromkeys(told))
    if "$ref" in schema:
        return _reference(contract, schema["$ref"].rsplit("/")[-1])
    if "const" in schema or "enum" in schema:
        return " or ".join(map(code, schema.get("enum", [schema.get("const")])))
    match schema.get("type", "any value"):
        case "array":
            return _list(contract, schema)
        case "object":
            return _mapping(contract, schema)
        case kind:
            return ", ".join([kind, *_bounds(schema)])


def _reference(contract: Contract, name: str) -> str:
    schema = contract.named(name)
    return f"[{name}](#{name.lower()})" if "properties" in schema else type_of(contract, schema)


def _list(contract: Contract, schema: Json) -> str:
    count = limits(schema.get("minItems"), schema.get("maxItems"))
    item = type_of(contract, schema.get("items", {}))
    return " ".join(["list of", *count, item if item.startswith("[") else f"({item})"])


def _mapping(contract: Contract, schema: Json) -> str:
    count = limits(schema.get("minProperties"), schema.get("maxProperties"))
    for pattern, values in schema.get("patternProperties", {}).items():
        shape = f"({type_of(contract, values)}) by names like {code_of(pattern)}"
        return " ".join(["object of", *count, shape])
    values = schema.get("additionalProperties")
    return f"object of ({type_of(contract, values)})" if isinstance(values, dict) else "object"


def _bounds(schema: Json) -> Iterator[str]:
    if "exclusiveMinimum" in schema:
        yield f"more than {number(schema['exclusiveMinimum'])}"
    yield from limits(schema.get("minimum"), schema.get("maximum"))
    if schema.get("minLength") == 1 and "maxLength" not in schema:
        yield "not empty"
    else:
        for length in limits(schema.get("minLength"), schema.get("maxLength")):
            yield f"{length} characters"
    if "pattern" in schema:
        yield f"like {code_of(schema['pattern'])}"


def code(value: Any) -> str:
    return code_of(json.dumps(value))


def code_of(text: str) -> str:
    return f"`{text}`"
