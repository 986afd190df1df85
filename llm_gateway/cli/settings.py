"""Which gateway.toml a command uses, and a clear end if it cannot be used."""

import os
from pathlib import Path
from typing import Final

import rich_click as click

from llm_gateway.cli.failure import CommandError
from llm_gateway.config import Config, ConfigError, Overrides, load

FILE_NAME: Final = "gateway.toml"

config_option = click.option(
    "--config",
    "config_path",
    envvar="LLM_GATEWAY_CONFIG",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Default: gateway.toml here if there is one, else built-in settings.",
)
data_dir_option = click.option(
    "--data-dir",
    envvar="LLM_GATEWAY_DATA_DIR",
    metavar="DIR",
    help="Instead of the file's data_dir.",
)


def settings_file(given: Path | None) -> Path | None:
    """The file to read: the one that was named, else gateway.toml here, else none."""
    here = Path(FILE_NAME)
    return given or (here if here.exists() else None)


def load_settings(given: Path | None, overrides: Overrides | None = None) -> Config:
    """The configuration; raises CommandError with every problem, one a line."""
    try:
        return load(settings_file(given), os.environ, overrides)
    except ConfigError as error:
        raise CommandError(str(error)) from error
