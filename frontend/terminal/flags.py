"""Settings of commands that a person types."""

from __future__ import annotations

from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
)

from ...shared.settings import ClientSettings


class FlagSettings(ClientSettings):
    """Its own options are flags alone: the environment, which other processes read too, tells only
    where the worker is."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        shared = EnvSettingsSource(ClientSettings), DotEnvSettingsSource(ClientSettings)
        return init_settings, *shared
