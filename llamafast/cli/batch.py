"""``llamafast batch``: the requests of a file, through an engine of its own or a server that runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llamafast.cli.given import add_model, config_of, key_of
from llamafast.config import KEY_VARIABLE, PoolConfig
from llamafast.errors import ConfigError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    text = "answer the requests of a file, as OpenAI's batches have them"
    batch = commands.add_parser("batch", help=text, description=text, allow_abbrev=False)
    batch.add_argument(
        "model", nargs="?", metavar="MODEL", help="a GGUF, org/repo[:quant] on the hub, or a JSON config file"
    )
    batch.add_argument("input", type=Path, help='lines {"custom_id": ..., "url": "/v1/...", "body": {...}}')
    batch.add_argument("output", type=Path, help="a line for each; goes on where it ends")
    batch.add_argument("--url", help=f"a server that runs, in place of a model; its key is in {KEY_VARIABLE}")
    batch.add_argument("--width", type=int, help="requests at once; default: twice as many as the server computes")
    add_model(batch, model=False)
    batch.set_defaults(run=run, refuse=batch.error)


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError or ModelLoadError."""
    url, width = arguments.url, arguments.width
    named = any(
        one is not None for one in (arguments.model, arguments.config_file, arguments.model_path, arguments.hub)
    )
    if named and url is not None:
        arguments.refuse("a model, or a server by --url, and not both")
    if width is not None and width < 1:
        arguments.refuse("--width is a number from 1")
    config = None
    if url is None:
        loaded = config_of(arguments)
        if isinstance(loaded, PoolConfig):
            raise ConfigError("models: a batch has one model of its own; serve several, and give that server by --url")
        config = loaded
    from llamafast.batch.command import run_batch

    return run_batch(config, url, arguments.input, arguments.output, width, key_of(arguments))
