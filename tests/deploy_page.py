"""What docs/deploy.md has to copy from, and the same with a test's places in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "deploy.md"
PROGRAM = "/srv/chairlift/.venv/bin/chairlift"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def moved(block: str, places: Mapping[str, str]) -> str:
    """Everything of the page but these; each has to be there."""
    for theirs, ours in places.items():
        assert theirs in block, f"docs/deploy.md no longer has {theirs!r}"
        block = block.replace(theirs, ours)
    return block
