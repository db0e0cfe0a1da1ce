"""Calls as Python writes them, `f(a=1, b=["x"])`: where one ends, and its arguments as JSON."""

from __future__ import annotations

import ast
import json
import warnings

_CONSTANTS = {"true": True, "false": False, "null": None}  # models mix the languages


class PythonScanner:
    """Follows what stands between a call's brackets."""

    def __init__(self) -> None:
        self.is_complete = False
        self._quote = ""
        self._is_escaped = False
        self._depth = 1

    def take(self, text: str, at: int) -> int:
        """From there, the end of what goes on with the call or ends it."""
        for end in range(at, len(text)):
            c = text[end]
            if self._quote:
                self._in_string(c)
            elif c in "'\"":
                self._quote = c
            else:
                self._depth += (c in "([{") - (c in ")]}")
                if self._depth == 0:
                    self.is_complete = True
                    return end + 1
        return len(text)

    def _in_string(self, c: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif c == "\\":
            self._is_escaped = True
        elif c == self._quote:
            self._quote = ""


def arguments_of(brackets: str) -> str | None:
    """`(a=1)` as a JSON object; None for anything but literals by keyword."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a model's odd escapes
            node = ast.parse(f"_{brackets}", mode="eval").body
        if not isinstance(node, ast.Call) or node.args:
            return None
        values = {
            keyword.arg: ast.literal_eval(_Constants().visit(keyword.value))
            for keyword in node.keywords
        }
        if None in values or len(values) < len(node.keywords):
            return None
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
        text.encode()  # raises for half a surrogate pair
        return text
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


class _Constants(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_CONSTANTS[node.id]) if node.id in _CONSTANTS else node
