"""Run by scripts/package inside an environment that holds the wheel and nothing else."""

from __future__ import annotations

import sys
from importlib.metadata import distribution, distributions

HEAVY = {"torch", "triton", "numpy", "transformers", "fastapi", "starlette", "uvicorn", "pydantic"}
HEAVY |= {"rich"}


def main() -> None:
    files = distribution("chairlift").files or []
    tops = {file.parts[0] for file in files if ".." not in file.parts}
    version = distribution("chairlift").version
    assert tops == {"chairlift", f"chairlift-{version}.dist-info"}, tops

    installed = {found.name.lower() for found in distributions()}
    assert not installed & HEAVY, f"the base install brings {installed & HEAVY}"

    import chairlift  # only now: what it imports is the question

    assert chairlift.__version__ == version
    assert (chairlift.__file__ or "").startswith(sys.prefix), chairlift.__file__
    for name in getattr(chairlift, "__all__", ()):
        getattr(chairlift, name)  # the public names may be imported lazily
    assert not HEAVY & set(sys.modules), HEAVY & set(sys.modules)
    print(f"chairlift {version}: {len(files)} files, {len(installed) - 1} packages beside it")


if __name__ == "__main__":
    main()
