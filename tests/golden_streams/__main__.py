"""Writes the event streams of every case as they are now: `python -m tests.golden_streams`.

Look at the difference before it is committed: clients read these bytes.
"""

from __future__ import annotations

from tests.golden_streams.cases import ENDPOINTS, path_of, recorded


def main() -> None:
    for endpoint in ENDPOINTS:
        path_of(endpoint).write_text(recorded(endpoint), "utf-8")


if __name__ == "__main__":
    main()
