"""Code in docstrings and on pages runs as it stands, against a real worker."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import chairlift

pytestmark = [pytest.mark.usefixtures("worker"), pytest.mark.slow]
DOCS = Path(__file__).parents[2] / "docs"
PAGES, EXAMPLES = ("embedding.md", "watching.md"), DOCS / "examples"
BLOCK = re.compile(r"(?:^ {4}.*\n|^\n(?= {4}))+", re.MULTILINE)


def in_docstring(documented: Any) -> list[str]:
    """Its blocks that are indented by four."""
    text = (inspect.getdoc(documented) or "") + "\n"
    return [inspect.cleandoc(block) for block in BLOCK.findall(text)]


def shown() -> Iterator[Any]:
    """Every public name's blocks, and those of its methods."""
    yield from (pytest.param(block, None, id="chairlift") for block in in_docstring(chairlift))
    for name in chairlift.__all__:
        public = getattr(chairlift, name)
        for block in in_docstring(public):
            yield pytest.param(block, None, id=name)
        for method, documented in vars(public).items() if inspect.isclass(public) else ():
            if not method.startswith("_"):
                for block in in_docstring(documented):
                    yield pytest.param(block, public is chairlift.Client, id=f"{name}.{method}")


def on(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)


def with_client(code: str, *, is_blocking: bool) -> str:
    """What the docstrings of methods and the page take for granted."""
    made = "with chairlift.Client()" if is_blocking else "async with chairlift.AsyncClient()"
    return f"{made} as client:\n{textwrap.indent(code, '    ')}"


def run(code: str) -> None:
    """With `await` at the top level, as a notebook has it."""
    names: dict[str, Any] = {**vars(chairlift), "chairlift": chairlift, "asyncio": asyncio}
    names |= {name: getattr(chairlift, name) for name in chairlift.__all__}
    program = compile(code, "<shown>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if program.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(program, names))
    else:
        exec(program, names)


@pytest.fixture(autouse=True)
def at_the_worker(worker_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAIRLIFT_ADDRESS", worker_address)
    with chairlift.Client() as client:
        client.connect(60)


@pytest.mark.parametrize(("code", "needs_blocking"), [*shown()])
def test_docstrings(
    code: str, needs_blocking: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A block of a docstring runs, and prints what it says it does; one of a method has a
    client."""
    run(code if needs_blocking is None else with_client(code, is_blocking=needs_blocking))
    assert bool(capsys.readouterr().out) == ("print" in code)


@pytest.mark.checkout
@pytest.mark.parametrize("page", PAGES)
def test_pages(page: str) -> None:
    """A block is a piece of an example, or runs where there is a client."""
    examples = [path.read_text("utf-8") for path in EXAMPLES.glob("*.py")]
    blocks = on(page)
    assert blocks
    for block in blocks:
        if not any(block in example for example in examples):
            run(with_client(block, is_blocking=False))


def test_docstrings_show_what_matters() -> None:
    """The package, the clients and their calls, and both ways into other applications have
    examples."""
    clients = ("AsyncClient", "Client")
    calls = {f"{one}.{call}" for one in clients for call in ("stream", "complete", "chat", "embed")}
    ids = {parameter.id for parameter in shown()}
    assert ids >= {"chairlift", "asgi_app", "sse", *clients, *calls}
