"""docs/protocol.md against the messages: what its tables and its bytes have to say.

`python -m tests.protocol_page` prints the tables, without their meanings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec.inspect as inspect
from msgspec import NODEFAULT, Struct

from chairlift.shared.messages import Extras, Finish, Joined, WorkerStats
from chairlift.shared.queue_place import QueuePlace
from chairlift.shared.sampling_params import Grammar, SamplingParams
from chairlift.shared.steps import Ended, Receipt, StepRecord
from tests.golden_messages import REPLIES, REQUESTS, path_of
from tests.in_words import limits

PAGE = Path(__file__).parents[1] / "docs" / "protocol.md"
PARTS = (
    SamplingParams, Grammar, Finish, QueuePlace, Extras, Receipt, Joined, WorkerStats, StepRecord,
    Ended,
)  # fmt: skip
STRUCTS: dict[str, type[Struct]] = {  # by heading
    **{str(type(one).__struct_config__.tag): type(one) for one in (REQUESTS | REPLIES).values()},
    **{one.__name__: one for one in PARTS},
}
ROW = re.compile(r"^\| (\d+) \| `(\w+)` \| (.*?) \| (.*?) \|.*\|$", re.MULTILINE)
Row = tuple[str, str, str, str]  # place, name, type, default


def rows_of(struct: type[Struct]) -> list[Row]:
    """A message's tag is at place 0."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    first = 0 if info.tag is None else 1
    return [
        (str(place), one.name, type_of(one.type), _default(one))
        for place, one in enumerate(info.fields, first)
    ]


def rows_on_page(page: str, heading: str) -> list[Row]:
    """Those of the section with that heading."""
    found = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no section {heading}"
    return ROW.findall(found[1])


def bytes_on_page(page: str) -> dict[str, bytes]:
    """By name: lines of hexadecimal digits after the name of a file."""
    blocks = re.findall(r"`v1-(\w+)\.msgpack`[^\n]*\n\n```\n([0-9a-f \n]+)```", page)
    return {name: bytes.fromhex(digits) for name, digits in blocks}


def golden_bytes() -> dict[str, bytes]:
    return {name: path_of(name).read_bytes() for name in REQUESTS | REPLIES}


def type_of(kind: inspect.Type) -> str:
    """In words: `bytes, 16`."""
    match kind:
        case inspect.UnionType(types):
            return " or ".join(map(type_of, types))
        case inspect.LiteralType(values):
            return " or ".join(f'`"{value}"`' for value in values)
        case inspect.StructType(cls):
            return f"[{cls.__name__}](#{cls.__name__.lower()})"
        case inspect.ListType(item) | inspect.VarTupleType(item):
            return ", ".join([f"array of ({type_of(item)})", *_range(kind, "length")])
        case inspect.TupleType(items):
            return f"[{', '.join(map(type_of, items))}]"
        case inspect.BytesType() | inspect.StrType():
            return ", ".join([NAMES[type(kind)], *_range(kind, "length")])
        case inspect.IntType() | inspect.FloatType():
            return ", ".join([NAMES[type(kind)], *_range(kind)])
    return NAMES[type(kind)]


NAMES: dict[type[inspect.Type], str] = {
    inspect.BytesType: "bytes",
    inspect.StrType: "text",
    inspect.IntType: "integer",
    inspect.FloatType: "float",
    inspect.BoolType: "boolean",
    inspect.NoneType: "nil",
}


def _range(kind: Any, of: str = "") -> Iterator[str]:
    least, most = (kind.min_length, kind.max_length) if of else (kind.ge, kind.le)
    if not of and kind.gt is not None:
        yield f"more than {kind.gt}, at most {most}"
    elif least is not None and least == most:
        yield str(least)
    else:
        yield from limits(least, most)


def _default(field: inspect.Field) -> str:
    value = field.default
    if field.default_factory is not NODEFAULT:
        value = field.default_factory()
    match value:
        case _ if value is NODEFAULT:
            return "required"
        case None:
            return "nil"
        case bool():
            return str(value).lower()
        case bytes() | str() | tuple() | list():
            return "empty"
    return str(value)


def main() -> None:
    for heading, struct in STRUCTS.items():
        print(f"\n### {heading}\n\n| place | field | type | default | |\n|---|---|---|---|---|")
        for place, name, kind, default in rows_of(struct):
            print(f"| {place} | `{name}` | {kind} | {default} |  |")


if __name__ == "__main__":
    main()
