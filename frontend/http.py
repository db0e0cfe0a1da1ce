"""The frontend `http`: its settings first, since the API takes a second to import."""

from __future__ import annotations

from ..shared.logs import configure_logs
from ..shared.settings import ServeSettings, load_settings


def main(arguments: list[str]) -> int:
    """`chairlift serve`; the exit code."""
    settings = load_settings(ServeSettings, "serve", arguments)
    configure_logs(settings.log_format, settings.log_level)
    from .api.serve import run

    return run(settings)
