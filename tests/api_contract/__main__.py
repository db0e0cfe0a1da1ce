"""Writes the generated parts of docs/api.md anew: `python -m tests.api_contract`."""

from __future__ import annotations

from tests.api_contract.contract import contract
from tests.api_contract.page import PAGE, written


def main() -> None:
    PAGE.write_text(written(PAGE.read_text("utf-8"), contract()), "utf-8")


if __name__ == "__main__":
    main()
