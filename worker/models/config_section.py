"""Typed reads from a checkpoint's JSON files. Knows no model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...shared.errors import ModelError

MAX_INTEGER = 2**31 - 1  # kernels take no more


class ConfigSection:
    """One JSON object. Every complaint names the key and the file; null counts as absent."""

    def __init__(self, values: dict[str, Any], file: Path, prefix: str = "") -> None:
        self._values = {key: value for key, value in values.items() if value is not None}
        self._prefix = prefix
        self.file = file

    @classmethod
    def read(cls, file: Path) -> ConfigSection:
        try:
            values = json.loads(file.read_bytes())
        except FileNotFoundError:
            raise ModelError(f"{file} does not exist: not a checkpoint folder?") from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} can't be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise ModelError(f"{file} must hold a JSON object, not {type(values).__name__}")
        return cls(values, file)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, key: str) -> Any:
        """The raw value, or None."""
        return self._values.get(key)

    def refusal(self, key: str, reason: str) -> ModelError:
        """The error for a value that was read and can't be served."""
        return ModelError(
            f"{self.file}: {self._prefix}{key} = {json.dumps(self.get(key))}: {reason}"
        )

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        value = self._required(key, default)
        if type(value) is not int or not minimum <= value <= MAX_INTEGER:
            raise self.refusal(key, f"must be an integer from {minimum} to {MAX_INTEGER}")
        return value

    def optional_integer(self, key: str) -> int | None:
        return self.integer(key) if key in self else None

    def number(self, key: str, default: float | None = None) -> float:
        value = self._required(key, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.refusal(key, "must be a positive number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return self.number(key) if key in self else None

    def boolean(self, key: str, default: bool) -> bool:
        value = self._required(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, "must be true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._required(key, default)
        if not isinstance(value, str):
            raise self.refusal(key, "must be a string")
        return value

    def texts(self, key: str) -> list[str]:
        value = self._required(key, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.refusal(key, "must be a list of strings")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id or a list of ids; () when absent."""
        value = self._values.get(key, [])
        ids = value if isinstance(value, list) else [value]
        if not all(type(item) is int and item >= 0 for item in ids):
            raise self.refusal(key, "must be a token id or a list of token ids")
        return tuple(ids)

    def section(self, key: str) -> ConfigSection | None:
        """The object nested under `key`; None when absent."""
        if key not in self:
            return None
        value = self._values[key]
        if not isinstance(value, dict):
            raise self.refusal(key, "must be an object")
        return ConfigSection(value, self.file, f"{self._prefix}{key}.")

    def has_nested(self) -> bool:
        return any(isinstance(value, dict) for value in self._values.values())

    def _required(self, key: str, default: Any) -> Any:
        value = self._values.get(key, default)
        if value is None:
            raise ModelError(f"{self.file} lacks the key {self._prefix}{key}")
        return value
