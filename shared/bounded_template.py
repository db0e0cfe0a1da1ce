"""Jinja templates within limits: what one rendering may take of time, memory and output.

The sandbox keeps a template from the interpreter, this keeps it from eating the machine. Metered
is whatever makes much out of little: bodies that run again, operators, filters, calls, literals
and output. It is no guarantee to the byte, and none against a flaw of Jinja's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, str_join
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from .template_budget import MAX_INDENT, SIZES, Budget, TemplateLimitError, size_of_operation

MAX_SOURCE_CHARACTERS = 256 << 10  # the longest templates of known models have 20,000
NODE_BYTES = 16  # for what a pass through a body may make without being seen
# Names that no template can spell.
PASS, TAKE, JOIN, PRINT = " pass", " take", " join", " print"
COSTLY_ATTRIBUTES = frozenset({"decode", "encode", "format_map", "to_bytes", "translate"})
COSTLY_FILTERS = ("pprint", "urlize", "wordwrap", "xmlattr")
ITERATING_FILTERS = frozenset({"map", "reject", "rejectattr", "select", "selectattr", "sum"})


class BoundedTemplate:
    """A template compiled once; every rendering has a budget of its own."""

    def __init__(self, source: str) -> None:
        """Raises ValueError, TypeError or jinja2.TemplateError when the source is no template."""
        if not isinstance(source, str):
            raise TypeError(f"it is no text but {type(source).__name__}")
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise ValueError(f"it is longer than {MAX_SOURCE_CHARACTERS} characters")
        environment = _Environment(Budget())
        try:
            tree = _Metering().visit(environment.parse(source))
            self._code = environment.compile(tree)
        except (RecursionError, MemoryError) as error:
            raise ValueError(f"it is nested too deeply: {error}") from None

    def render(self, values: Mapping[str, Any], budget: Budget) -> str:
        """Raises TemplateLimitError, or whatever the template raises."""
        environment = _Environment(budget)
        template = jinja2.Template.from_code(environment, self._code, environment.globals)
        pieces, size = [], 0
        try:
            for piece in template.root_render_func(template.new_context(dict(values))):
                pieces.append(piece)
                size += len(piece)
                budget.check_size(size)
        except RecursionError:
            raise TemplateLimitError("it calls itself too deeply") from None
        except MemoryError:
            raise TemplateLimitError("it takes too much memory") from None
        return "".join(pieces)


class _Metering(NodeTransformer):
    """Puts the meters where the environment can't."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """The test too, which may let nothing pass into the body."""
        if node.test is not None:
            node.test = nodes.And(_cost([node.test]), node.test)
        return self._repeated(node)

    def _repeated(self, node: Any) -> nodes.Node:
        cost = _cost(node.body)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(cost))
        return node  # type: ignore[no-any-return]

    visit_Macro = visit_CallBlock = visit_Block = _repeated

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_filtered(PRINT, child) for child in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(JOIN, nodes.List(node.nodes, lineno=node.lineno))

    def _taken(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _filtered(TAKE, node)

    visit_List = visit_Dict = visit_Tuple = _taken

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(TAKE, node) if isinstance(node.arg, nodes.Slice) else node


def _cost(body: Iterable[nodes.Node]) -> nodes.Filter:
    num_nodes = sum(1 for node in body for _ in node.find_all(nodes.Node))
    return _filtered(PASS, nodes.Const(NODE_BYTES * (num_nodes + 1)))


def _filtered(name: str, node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's own sandbox; what might be large is measured before it is made."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, budget: Budget) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[jinja2.ext.loopcontrols],
            optimized=False,  # it would compute constants, and unmetered
        )
        self._budget = budget
        for name in COSTLY_FILTERS:
            del self.filters[name]
        self.filters = {name: self._metered(name, f) for name, f in self.filters.items()}
        self.filters |= {PASS: self._pass, TAKE: budget.take, JOIN: self._join, PRINT: self._print}
        self.filters["tojson"] = self._tojson
        del self.globals["lipsum"]
        self.globals["dict"] = _dict
        self.globals["namespace"] = _Namespace

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        is_costly = attr in COSTLY_ATTRIBUTES and isinstance(obj, str | bytes | int)
        return not is_costly and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        is_costly = getattr(value, "__name__", None) in COSTLY_ATTRIBUTES
        return None if is_costly else super().wrap_str_format(value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self._budget.check_size(size_of_operation(self._budget, operator, left, right))
        return self._budget.take(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes):
            args = tuple(self._afforded("." + method.__name__, owner, *args, **kwargs)[1:])
        return self._budget.take(super().call(context, obj, *args, **kwargs))

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        start = 1 if hasattr(function, "jinja_pass_arg") else 0

        def metered(*args: Any, **kwargs: Any) -> Any:
            values = self._afforded(name, *args[start:], **kwargs)
            return self._budget.take(function(*args[:start], *values, **kwargs))

        vars(metered).update(getattr(function, "__dict__", {}))  # where Jinja notes what to pass
        return metered

    def _afforded(self, name: str, value: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """What to give to the filter or method, when its result won't be too large."""
        if name in ITERATING_FILTERS:
            value = map(self._budget.look_at, value)
        elif name == "join" and not isinstance(value, str):
            value = [*map(self._budget.look_at, value)]
        elif name == ".join" and args:
            args = ([*map(self._budget.look_at, args[0])],)
        if name in SIZES:
            self._budget.check_size(SIZES[name](self._budget, value, *args, **kwargs))
        return [value, *args]

    def _pass(self, cost: int) -> bool:
        self._budget.spend(cost)
        return True

    def _join(self, parts: list[Any]) -> Any:
        self._budget.check_size(sum(map(self._budget.weigh, parts)))
        return self._budget.take(str_join(parts))

    @jinja2.pass_context  # which also keeps the compiler from computing it
    def _print(self, context: Context, value: Any) -> Any:
        self._budget.weigh(value)
        return self._budget.take(str(value))

    def _tojson(  # as transformers has it; Jinja's own escapes HTML, which no model was trained on
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> Any:
        self._budget.weigh(value)
        if max((indent or 0), *map(len, separators or ("",))) > MAX_INDENT:
            raise TemplateLimitError(f"it indents JSON by more than {MAX_INDENT}")
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        return "".join(map(self._budget.take, encoder.iterencode(value)))


class _Namespace(Namespace):
    """Takes no private names, and does not print itself: in rings and pyramids that has no end."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `self` may be a name
        self, *values = args
        Namespace.__init__(self)
        for name, value in dict(*values, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace can't hold {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        raise TemplateLimitError("it prints a namespace")


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """The function alone, without the attributes of the type."""
    return dict(*args, **kwargs)
