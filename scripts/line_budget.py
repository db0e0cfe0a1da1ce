"""Counts the lines of code, without docstrings, comments and blanks, and fails beyond the budget.

Raising a limit is a decision: say why in the commit.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {("shared", "worker"): 8150, ("worker/cuda",): 2800, ("frontend",): 9600}
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def count_code_lines(source: str) -> int:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    text = source.splitlines()
    return sum(1 for line in lines - _docstring_lines(source) if text[line - 1].strip())


def _docstring_lines(source: str) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            lines.update(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return lines


def count_folder(folder: Path) -> dict[str, tuple[int, int]]:
    """Number of files and of code lines in each folder below, and in this one itself."""
    counts: dict[str, tuple[int, int]] = {}
    for path in sorted(folder.rglob("*.py")):
        name = str(path.parent.relative_to(ROOT))
        num_files, num_lines = counts.get(name, (0, 0))
        counts[name] = num_files + 1, num_lines + count_code_lines(path.read_text("utf-8"))
    return counts


def main() -> int:
    is_over = False
    for folders, limit in LIMITS.items():
        total = 0
        for folder in folders:
            for name, (num_files, num_lines) in count_folder(ROOT / folder).items():
                if (name,) in LIMITS and name not in folders:
                    continue  # it has a budget of its own
                print(f"{name:24} {num_files:4} files {num_lines:6} lines")
                total += num_lines
        print(f"{' + '.join(folders):24} {'':10} {total:6} of {limit}")
        is_over |= total > limit
    if is_over:
        print("over budget: delete something, or raise the limit and say why", file=sys.stderr)
    return int(is_over)


if __name__ == "__main__":
    sys.exit(main())
