"""The command: `chairlift worker`, `chairlift serve`, `chairlift keygen`, `chairlift version`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from . import __version__
from .shared.errors import ChairliftError

if TYPE_CHECKING:
    from .shared.settings import WorkerSettings
    from .worker.pulse import Pulse
    from .worker.quarantine import Quarantine

USAGE = """\
usage: chairlift COMMAND [options]

  worker   load a model and run its steps; needs chairlift[worker]
  serve    speak HTTP for a worker, as the OpenAI API does; needs chairlift[server]
  keygen   make the keys that worker and frontends need on tcp beyond this machine
  version  print the version

`chairlift COMMAND --help` lists the options; each can also come from the environment as
CHAIRLIFT_NAME or from a .env file."""

EXTRAS = {"worker": "worker", "serve": "server"}
TORCH_HINT = """
First, without a GPU: pip install torch --index-url https://download.pytorch.org/whl/cpu
(PyPI's own torch brings gigabytes for GPUs). In a clone scripts/bootstrap does both."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 failed while running, 2 wrong settings or nothing to run."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    match command:
        case "worker" | "serve" | "keygen":
            return _run(command, rest)
        case "version" | "--version":
            print(f"chairlift {__version__}")
            return 0
        case "help" | "--help" | "-h":
            print(USAGE)
            return 0
    known = "worker, serve, keygen or version"
    print(f"chairlift: unknown command {command!r}: use {known}", file=sys.stderr)
    return 2


def _run(command: str, arguments: list[str]) -> int:
    try:
        return {"worker": _worker, "serve": _serve, "keygen": _keygen}[command](arguments)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.split(".")[0] in {"", "chairlift"}:
            raise
        hint = TORCH_HINT if command == "worker" else ""
        print(
            f"chairlift {command}: {missing} is not installed: "
            f"pip install 'chairlift[{EXTRAS[command]}]'{hint}",
            file=sys.stderr,
        )
        return 2
    except ChairliftError as error:
        print(f"chairlift {command}: {error}", file=sys.stderr)
        return 1
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
    from .shared.logs import configure_logs
    from .shared.settings import ServeSettings, load_settings

    settings = load_settings(ServeSettings, "serve", arguments)
    configure_logs(settings.log_format, settings.log_level)
    from .frontend.api.serve import run

    return run(settings)


def _keygen(arguments: list[str]) -> int:
    from .shared.keygen import run

    return run(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
