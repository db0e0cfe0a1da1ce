"""The HTTP side of a frontend: the OpenAI API over one client of the worker."""

from __future__ import annotations

from .app import create_app

__all__ = ["create_app"]
