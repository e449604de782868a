"""A config as every command has it."""

from __future__ import annotations

from pathlib import Path

from llamafast import cli
from llamafast.cli.given import config_of
from llamafast.config import Config, PoolConfig


def config_in(file: str | Path) -> Config | PoolConfig:
    """What a config file says. Raises ConfigError."""
    return config_of(cli.parse(["serve", "-c", str(file)]), {}, ask_hub=False)
