"""What the server's operator adds to sampling, in packages of their own. Never named by a request.

A package declares a processor as an entry point:

    [project.entry-points."chairlift.logits_processors"]
    no_digits = "my_package:no_digits"

and the worker applies it to every row when it is started with `--logits-processors no_digits`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points

import torch

from ..shared.errors import ChairliftError

GROUP = "chairlift.logits_processors"

# Takes a request's output token ids, not to be written to, and its row of logits before anything
# else was done to them: float32 [vocab_size], to be changed in place, or to be replaced by what is
# returned. Has to be a pure function of the two, since a row may be sampled again, on another
# worker as well. What it raises ends the request and no other.
LogitsProcessor = Callable[[Sequence[int], torch.Tensor], torch.Tensor | None]


class LogitsProcessorError(ChairliftError):
    """A processor that the operator named and that can't be had."""


def load_logits_processors(names: Iterable[str]) -> tuple[LogitsProcessor, ...]:
    """The named ones, in order. Raises LogitsProcessorError."""
    declared = {point.name: point for point in entry_points(group=GROUP)}
    return tuple(_load(name, declared) for name in names)


def process(processor: LogitsProcessor, output: Sequence[int], row: torch.Tensor) -> None:
    """Applies it to a row, in place. Raises what it raises."""
    result = processor(output, row)
    if result is not None and result is not row:
        if result.shape != row.shape:
            raise ValueError(f"a logits processor returned {result.shape} for {row.shape}")
        row.copy_(result)


def _load(name: str, declared: dict[str, EntryPoint]) -> LogitsProcessor:
    if name not in declared:
        known = ", ".join(sorted(declared)) or "none"
        raise LogitsProcessorError(
            f"--logits-processors: no installed package declares {name!r} as an entry point of "
            f"{GROUP}; declared: {known}"
        )
    try:
        processor = declared[name].load()
    except Exception as error:
        raise LogitsProcessorError(
            f"--logits-processors: {name} ({declared[name].value}) can't be loaded: {error!r}"
        ) from error
    if not callable(processor):
        raise LogitsProcessorError(
            f"--logits-processors: {name} ({declared[name].value}) can't be called"
        )
    return processor  # type: ignore[no-any-return]  # whatever it is, it can be called
