"""Text from elsewhere, for a terminal."""

from __future__ import annotations

import re

# All controls but tabs and line feeds, and what turns the direction of writing.
COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """Without what a terminal would obey, or show as something else: a model may write anything,
    and an error quotes what it is about."""
    return COMMANDS.sub("", text)
