"""Jinja templates that can't run wild: within limits of time, memory and output.

Looked at is each pass of a loop, and what operators, literals, slices, filters, calls and captured
blocks make: before it is there when it may be far too large, else after. What makes much of little
and no model's template uses is not offered. Not interrupted is one operation of Python's own, such
as a sort or `in`, on values of bounded size; nor counted what a template's own length costs.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain
from typing import Any

import jinja2
from jinja2 import ext, filters, nodes, sandbox, utils, visitor

MAX_CPU_S = 1.0
BASE_SIZE, SIZE_FACTOR = 1 << 20, 4  # of one value or the output: this, and a multiple of the input
MAX_BYTES = 512 << 20  # of all that is made, most of which is let go again
MAX_INDENT = 100
TAKE = " take"  # a filter that no template can spell
NOT_OFFERED = {
    "batch", "center", "encode", "expandtabs", "format", "format_map", "ljust", "pprint", "rjust",
    "round", "slice", "striptags", "sum", "to_bytes", "translate", "urlize", "wordwrap", "xmlattr",
    "zfill",
}  # fmt: skip


class TemplateLimitError(Exception):
    """The template takes too much; not caught by anything in Jinja."""


class BoundedTemplate:
    """A template compiled once; each rendering has an environment, and so limits, of its own."""

    def __init__(self, source: str) -> None:
        """Raises jinja2.TemplateError, or whatever Python does, when the source is no template."""
        if not isinstance(source, str):
            raise TypeError(f"it is no text but {type(source).__name__}")
        environment = _Environment({})
        self._code = environment.compile(_Checks().visit(environment.parse(source)))

    def render(self, values: Mapping[str, Any]) -> str:
        """Raises TemplateLimitError, or whatever the template raises, RecursionError too."""
        environment = _Environment(values)
        template = jinja2.Template.from_code(environment, self._code, environment.globals)
        return environment.concat(template.root_render_func(template.new_context(dict(values))))


class _Checks(visitor.NodeTransformer):
    """Puts checks where the environment is not asked: loops, literals, slices and `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        check = _filtered(nodes.Const(True), TAKE)
        node.test = node.test and nodes.And(check, node.test)
        node.body.insert(0, nodes.ExprStmt(check))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes), "join")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, TAKE) if isinstance(node.arg, nodes.Slice) else node

    def _literal(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _filtered(node, TAKE)

    visit_List = visit_Dict = visit_Tuple = _literal


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


class _Environment(sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox for one rendering, counting what that makes."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False)
        self.add_extension(ext.loopcontrols)
        self.add_extension(_Generation)
        del self.globals["lipsum"]
        self.globals |= {"dict": _dict, "namespace": _Namespace}
        self.filters |= {"join": self._join, "replace": self._replace}
        self.filters |= {"indent": _indent, "tojson": self._tojson, TAKE: lambda value: value}
        offered = self.filters.keys() - NOT_OFFERED
        self.filters = {name: self._taking(self.filters[name]) for name in offered}
        self._weights: dict[int, tuple[Any, int]] = {}  # with the value, so that its id stays its
        self._max_size = BASE_SIZE + SIZE_FACTOR * self._weigh(dict(values))
        self._bytes_left = MAX_BYTES
        self._deadline = time.thread_time() + MAX_CPU_S

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        name = getattr(obj, "__name__", None)
        if name in NOT_OFFERED:
            raise jinja2.TemplateError(f"templates can't use {name}()")
        if name == "join":
            return self._join(args[0], obj.__self__)
        if name == "replace":
            return self._replace(obj.__self__, *args)
        return self._take(super().call(context, obj, *args, **kwargs))

    def call_test(self, *args: Any, **kwargs: Any) -> Any:  # by select and the like, for each item
        return self._take(super().call_test(*args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        match operator, left, right:
            case ("*", int(n), Collection() as value) | ("*", Collection() as value, int(n)):
                self._check_size(n * self._weigh(value))
            case ("**", _, _) | ("%", str(), _):
                raise jinja2.TemplateError(f"templates can't use {operator} here")
        return self._take(super().call_binop(context, operator, left, right))

    def concat(self, pieces: Iterable[str]) -> str:
        """Makes one text of a rendering, a macro's, a captured block's or any other's pieces."""
        taken, size = [], 0
        for piece in pieces:
            taken.append(piece)
            size += len(piece)
            self._check_size(size)
        return str(self._take("".join(taken)))

    def _taking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.wraps(function)(lambda *args, **kw: self._take(function(*args, **kw)))

    def _take(self, value: Any) -> Any:
        self._check_size(self._weigh(value))
        self._bytes_left -= sys.getsizeof(value)
        if self._bytes_left < 0:
            raise TemplateLimitError("it takes too much memory")
        if time.thread_time() > self._deadline:
            raise TemplateLimitError(f"it takes more than {MAX_CPU_S:g} s")
        return value

    def _check_size(self, size: int) -> None:
        if size > self._max_size:
            raise TemplateLimitError(f"it makes more than {self._max_size} characters")

    def _weigh(self, value: Any) -> int:
        """Of a text its length, of a number its bits, and of a container all that it holds."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, int):
            return value.bit_length()
        if isinstance(value, range) or not isinstance(value, Collection):
            return 8
        if id(value) not in self._weights:
            parts = chain(value, value.values()) if isinstance(value, Mapping) else value
            self._weights[id(value)] = value, 2 + sum(2 + self._weigh(part) for part in parts)
        return self._weights[id(value)][1]

    def _join(self, items: Iterable[Any], d: Any = "", attribute: Any = None) -> str:
        values = map(filters.make_attrgetter(self, attribute), items) if attribute else items
        pieces = (str(piece) for value in values for piece in (d, value))
        next(pieces, None)  # no separator before the first
        return self.concat(pieces)

    def _replace(self, text: Any, old: Any, new: Any, count: int = -1) -> str:
        return self._join(str(text).split(str(old), count), new)

    def _tojson(self, value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        """As transformers has it; Jinja's own escapes HTML, which no model was trained on."""
        _check_indent(options.get("indent"))
        return self.concat(json.JSONEncoder(ensure_ascii=ensure_ascii, **options).iterencode(value))


def _indent(text: str, width: int | str = 4, *args: Any, **kwargs: Any) -> str:
    _check_indent(width)
    return filters.do_indent(text, width, *args, **kwargs)


def _check_indent(width: int | str | None) -> None:
    if (len(width) if isinstance(width, str) else width or 0) > MAX_INDENT:
        raise TemplateLimitError(f"it indents by more than {MAX_INDENT}")


class _Generation(ext.Extension):
    """`{% generation %}` marks for training what the model says: here it is printed as it is."""

    tags = {"generation"}  # noqa: RUF012  # as the base class has it

    def parse(self, parser: Any) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class _Namespace(utils.Namespace):
    """Does not print itself: it can change, and hold itself, so it can't be weighed."""

    def __repr__(self) -> str:
        raise TemplateLimitError("it prints a namespace")


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """Without the type's own methods: dict.update would change the messages."""
    return dict(*args, **kwargs)
