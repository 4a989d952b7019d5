"""A command line and perhaps a TOML file in, flags first; out, a config that is valid, or a line that says why not."""

import argparse
import tomllib
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from pipeline.config import ConfigType, said
from pipeline.errors import InputError


def load(model: type[ConfigType], arguments: list[str], program: str) -> ConfigType:
    """Build a config from ``[--config file.toml] [--dotted.key value …]``.

    Raises:
        InputError: an unknown flag or key, a missing or malformed value, an unreadable file.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    known, flags = first.parse_known_args([_spelled(argument) for argument in arguments])
    keys = _read_toml(known.config) if known.config else {}

    class Flags(model, BaseSettings):  # type: ignore[valid-type, misc]  # the base is only known here
        __doc__ = model.__doc__
        model_config = SettingsConfigDict(
            cli_prog_name=f"{program} [--config file.toml]",
            cli_exit_on_error=False,
            cli_avoid_json=True,
            cli_hide_none_type=True,
            cli_implicit_flags=True,
            nested_model_default_partial_update=True,
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
            return CliSettingsSource(settings_cls, cli_parse_args=flags), init_settings

    try:
        return model.model_validate(Flags(**keys).model_dump())
    except SettingsError as error:
        raise InputError(str(error)) from error
    except ValidationError as error:
        raise InputError(said(error)) from error


def _spelled(argument: str) -> str:
    """Let flags have hyphens, as --dry-run; but that of --no-… stays."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    start = "--no-" if name.startswith("--no-") else "--"
    return start + name.removeprefix(start).replace("-", "_") + equals + value


def _read_toml(file: str) -> dict[str, object]:
    try:
        return tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"--config {file}: {error}") from error
