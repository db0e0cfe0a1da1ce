"""The command `chairlift`: a table of what it can do, and one line for what goes wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from . import __version__
from .shared.errors import ChairliftError, NotInstalledError
from .shared.harmless import harmless

if TYPE_CHECKING:
    from .shared.settings import WorkerSettings
    from .worker.pulse import Pulse
    from .worker.quarantine import Quarantine

USAGE = """\
usage: chairlift COMMAND [options]

{commands}

`chairlift COMMAND --help` lists the options; those of processes that go on running can also come
from the environment as CHAIRLIFT_NAME or from a .env file. `serve --frontend NAME` runs another
frontend than HTTP, of any package that is installed: docs/frontends.md."""

TORCH_HINT = """
First, without a GPU: pip install torch --index-url https://download.pytorch.org/whl/cpu
(PyPI's own torch brings gigabytes for GPUs). In a clone scripts/bootstrap does both."""


@dataclass(frozen=True, slots=True)
class Command:
    """What `chairlift NAME` does, and the extra of chairlift that it can't do it without."""

    duty: str
    run: Callable[[list[str]], int]
    extra: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 failed while running, 2 wrong settings or nothing to run."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["help"]
    name = {"--version": "version", "--help": "help", "-h": "help"}.get(name, name)
    if name in COMMANDS:
        return _run(name, COMMANDS[name], rest)
    *names, last = COMMANDS
    print(f"chairlift: unknown command {name!r}: use {', '.join(names)} or {last}", file=sys.stderr)
    return 2


def _run(name: str, command: Command, arguments: list[str]) -> int:
    try:
        return command.run(arguments)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.split(".")[0] in {"", "chairlift"}:
            raise
        hint = TORCH_HINT if name == "worker" else ""
        extra = f"pip install 'chairlift[{command.extra}]'"
        print(f"chairlift {name}: {missing} is not installed: {extra}{hint}", file=sys.stderr)
        return 2
    except ChairliftError as error:
        print(f"chairlift {name}: {harmless(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, NotInstalledError) else 1
    except KeyboardInterrupt:
        return 130


def _worker(arguments: list[str]) -> int:
    from .shared.logs import configure_logs
    from .shared.settings import WorkerSettings, load_settings

    settings = load_settings(WorkerSettings, "worker", arguments)
    if find_spec("torch") is None:
        raise ModuleNotFoundError(name="torch")
    configure_logs(settings.log_format, settings.log_level)
    from .worker.process import restart_tuned

    restart_tuned()
    from .worker.supervisor import Supervisor

    return Supervisor(settings, _work).run()


def _work(settings: WorkerSettings, pulse: Pulse, quarantine: Quarantine) -> int:
    """In a process of its own: torch takes seconds to import, and the parent never needs it."""
    from .worker.main import run

    return run(settings, pulse, quarantine)


def _serve(arguments: list[str]) -> int:
    from .frontend.frontends import run_frontend

    parser = argparse.ArgumentParser("chairlift serve", add_help=False, allow_abbrev=False)
    parser.add_argument("--frontend", default="http", metavar="NAME")
    chosen, rest = parser.parse_known_args(arguments)
    return run_frontend(chosen.frontend, rest)


def _chat(arguments: list[str]) -> int:
    from .frontend.frontends import run_frontend

    return run_frontend("chat", arguments)


def _terminal(name: str) -> Callable[[list[str]], int]:
    """Imports the module when it is called."""

    def run(arguments: list[str]) -> int:
        code: int = import_module(f".frontend.terminal.{name}", __package__).main(arguments)
        return code

    return run


def _keygen(arguments: list[str]) -> int:
    from .shared.keygen import run

    return run(arguments)


def _version(_: list[str]) -> int:
    print(f"chairlift {__version__}")
    return 0


def _help(_: list[str]) -> int:
    rows = [
        f"  {name:8} {command.duty}"
        + (f"; needs chairlift[{command.extra}]" if command.extra else "")
        for name, command in COMMANDS.items()
    ]
    print(USAGE.format(commands="\n".join(rows)))
    return 0


COMMANDS = {
    "worker": Command("load a model and run its steps", _worker, "worker"),
    "serve": Command("speak HTTP for a worker, as the OpenAI API does", _serve, "server"),
    "chat": Command("talk with the worker's model in a terminal", _chat, "terminal"),
    "top": Command("show the running batch in a terminal", _terminal("top"), "terminal"),
    "tap": Command("read along with one answer", _terminal("tap"), "terminal"),
    "trace": Command("write some seconds of steps for Perfetto", _terminal("trace"), "terminal"),
    "keygen": Command("make the keys for worker and frontends on tcp beyond this machine", _keygen),
    "version": Command("print the version", _version),
    "help": Command("print this", _help),
}


if __name__ == "__main__":
    raise SystemExit(main())
