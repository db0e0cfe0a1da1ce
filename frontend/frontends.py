"""Frontends by name, those of other packages too: docs/frontends.md.

A package declares one as an entry point, chairlift's own are declared in the same way:

    [project.entry-points."chairlift.frontends"]
    shout = "shout:main"
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from ..shared.errors import NotInstalledError

GROUP = "chairlift.frontends"
OUR_EXTRAS = {"http": "server", "chat": "terminal"}

Main = Callable[[list[str]], int]  # the options after its name, and the exit code


def run_frontend(name: str, arguments: list[str]) -> int:
    """Its exit code. Raises NotInstalledError for one that can't be had, and what it raises."""
    declared = _declared(name)
    try:
        return _load(declared)(arguments)
    except ModuleNotFoundError as error:
        if message := _what_is_missing(declared, error.name or str(error)):
            raise NotInstalledError(message) from error
        raise


def _declared(name: str) -> EntryPoint:
    declared = entry_points(group=GROUP)
    found = [one for one in declared if one.name == name]
    if not found:
        known = ", ".join(sorted(declared.names)) or "none, not even http: reinstall chairlift"
        raise NotInstalledError(
            f"no installed package declares a frontend {name!r}; declared: {known}"
        )
    if len(found) > 1:
        packages = " and ".join(_package(one) for one in found)
        raise NotInstalledError(f"{packages} both declare a frontend {name!r}: uninstall one")
    return found[0]


def _load(declared: EntryPoint) -> Main:
    where = f"the frontend {declared.name!r} ({declared.value} of {_package(declared)})"
    try:
        main = declared.load()
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise NotInstalledError(f"{where} can't be imported: {error!r}") from error
    if not callable(main):
        raise NotInstalledError(f"{where} can't be called")
    return main  # type: ignore[no-any-return]  # whatever it is, it can be called


def _what_is_missing(declared: EntryPoint, module: str) -> str:
    """Empty where it is of our own package, and so our mistake."""
    if (package := _package(declared)) != "chairlift":
        return f"the frontend {declared.name!r} of {package} needs {module}, which is not installed"
    if module.split(".")[0] == "chairlift":
        return ""
    return f"{module} is not installed: pip install 'chairlift[{OUR_EXTRAS[declared.name]}]'"


def _package(declared: EntryPoint) -> str:
    return declared.dist.name if declared.dist else "an unknown package"
