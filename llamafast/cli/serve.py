"""``llamafast serve``: load the model, or several, and serve until a signal."""

from __future__ import annotations

import argparse
import logging
import os
from typing import TYPE_CHECKING

from llamafast.cli.given import add_model, config_of
from llamafast.config import KEY_VARIABLE, Config, PoolConfig
from llamafast.config_file import warn_of_retired
from llamafast.console import LogWriter, interruptible, lines_in
from llamafast.errors import ConfigError, ModelLoadError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    text = "load the model and serve it"
    command = commands.add_parser("serve", help=text, description=text, allow_abbrev=False)
    add_model(command)
    command.add_argument("-v", "--verbose", action="store_true", help="show llama.cpp's own log")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError or ModelLoadError before anything is loaded."""
    config = config_of(arguments)
    if arguments.api_key:
        os.environ[KEY_VARIABLE] = arguments.api_key
    return serve(config, arguments.verbose, key_is_seen=bool(arguments.api_key))


def serve(config: Config | PoolConfig, verbose: bool, *, key_is_seen: bool = False) -> int:
    """Nothing that is told from here on waits for its reader, and all of it keeps its order."""
    lines = LogWriter()
    lines.tell_of_exceptions()
    lines.setFormatter(lines_in(config.server.log_format))
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    if key_is_seen:
        logging.warning("keys     the process list shows --api-key; --api-key-file and %s it does not", KEY_VARIABLE)
    warn_of_retired(config)
    try:
        if isinstance(config, Config) and not config.model.comes_and_goes:
            # loads llama.cpp, which `check --help` and a broken config need not wait for
            with interruptible():
                from llamafast import server

            server.serve(config, verbose)
        else:
            _serve_pool(config, verbose)
    except (ConfigError, ModelLoadError) as error:
        lines.tell(f"llamafast: {error}")
        return 1
    return 0


def _serve_pool(config: Config | PoolConfig, verbose: bool) -> None:
    """Loads no llama.cpp: that is for the children. Raises ConfigError."""
    try:
        with interruptible():
            from llamafast.pool.parent import serve_pool
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        hint = "pip install 'llamafast[pool]'"
        raise ConfigError(f"models in processes of their own need the package {package}: {hint}") from error
    serve_pool(config, verbose)
