"""What `chairlift chat` can be told."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ...shared.sampling_params import MAX_SEED
from ...shared.settings import Positive
from .flags import FlagSettings


class ChatSettings(FlagSettings):
    """A conversation with the worker's model."""

    system: str = Field(default="", description="What the model is told before all else.")
    max_tokens: Positive | None = Field(
        default=None, description="Most tokens of an answer; by default what fits."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] = Field(
        default=1.0, description="0 always takes the likeliest token."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Share of the likeliest tokens that one is drawn from."
    )
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        default=None,
        description="Of the first answer; each further one has the next. By default drawn.",
    )
