"""What `chairlift chat` can be told."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
)

from ...shared.sampling_params import MAX_SEED
from ...shared.settings import ClientSettings, Positive


class ChatSettings(ClientSettings):
    """A conversation with the worker's model. Its own options are flags alone."""

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

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, which other processes read too, tells only where the worker is."""
        shared = EnvSettingsSource(ClientSettings), DotEnvSettingsSource(ClientSettings)
        return init_settings, *shared
