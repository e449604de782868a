"""The command line: ``llamafast serve cfg.json``, ``check cfg.json``, ``batch cfg.json in out``, ``grammar check``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llamafast import __version__
from llamafast.config import Config, FromPretrained, ModelConfig, ModelSource, PoolConfig
from llamafast.config_file import load_config, refuse_unsupported, warn_of_retired
from llamafast.console import FORMAT, LogWriter, open_standard_streams
from llamafast.errors import ConfigError, ModelAbsent, ModelLoadError

HIDDEN = "(hidden)"
INTERRUPTED = 130  # what shells make of SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the process's exit code: 0, 1 for a config or model that cannot be served, 2 for usage."""
    try:
        return _run(argv)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        _flush_output()


def _run(argv: Sequence[str] | None) -> int:
    open_standard_streams()
    parser = argparse.ArgumentParser(prog="llamafast", description="An OpenAI-compatible server for GGUF models.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("serve", "load the model and serve it"),
        ("check", "print the settings a config file resolves to, without loading or downloading the model"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("config", type=Path, help="a JSON config file")
        if name == "serve":
            command.add_argument("-v", "--verbose", action="store_true", help="show llama.cpp's own log")
    grammar = commands.add_parser("grammar", help="what a JSON schema allows, found out without a model")
    grammar.add_argument(
        "action", choices=["check"],
        help='read lines {"schema": ..., "data": ...} (or "text"), answer each with {"result": ..., "reason": ...}',
    )  # fmt: skip
    batch = commands.add_parser("batch", help="answer the requests of a file, as OpenAI's batches have them")
    batch.add_argument("config", type=Path, nargs="?", help="a JSON config file, or a GGUF")
    batch.add_argument("input", type=Path, help='lines {"custom_id": ..., "url": "/v1/...", "body": {...}}')
    batch.add_argument("output", type=Path, help="a line for each; goes on where it ends")
    batch.add_argument("--url", help="a server that runs, in place of a config; its key is in LLAMAFAST_API_KEY")
    batch.add_argument("--width", type=int, help="requests at once; default: twice as many as the server computes")
    arguments = parser.parse_args(argv)
    if arguments.command == "grammar":
        return _check_grammars()
    try:
        if arguments.command == "batch":
            return _batch(arguments, batch)
        config = load_config(arguments.config)
        refuse_unsupported(config)
        if arguments.command == "check":
            _check(config)
        else:
            return _serve(config, arguments.verbose)
    except (ConfigError, ModelLoadError) as error:
        print(f"llamafast: {error}", file=sys.stderr)
        return 1
    return 0


def _check(config: Config | PoolConfig) -> None:
    """Print the whole config with its defaults; for models that are on this machine also what llama.cpp is told.

    Asks no hub. That a model is not on this machine is told and no fault: its settings may be meant for another one.
    What is wrong with a model that is here is a ModelLoadError, after the settings: they are right by themselves.
    """
    models = config.models if isinstance(config, PoolConfig) else (config.model,)
    found = [_resolved(model) for model in models]
    shown = msgspec.to_builtins(config)
    if config.server.ssl_keyfile_password is not None:
        shown["server"]["ssl_keyfile_password"] = HIDDEN
    resolved: Any = [one.settings for one in found]
    settings = {"config": shown, "resolved": resolved if isinstance(config, PoolConfig) else resolved[0]}
    with suppress(BrokenPipeError):
        print(msgspec.json.format(msgspec.json.encode(settings), indent=2).decode())
    for one in found:
        if one.fault is not None:
            raise one.fault
        for told in one.absent:
            print(f"llamafast: {told}", file=sys.stderr)


class _Resolved(NamedTuple):
    """What becomes of a model's settings, what is wrong with it, and which of its files nobody can look at here."""

    settings: dict[str, Any] | None
    fault: Exception | None
    absent: list[str]


def _resolved(model: ModelConfig) -> _Resolved:
    settings: dict[str, Any] | None = None
    absent: list[str] = []
    try:
        path = _find(model.source, "the model", absent)
        loras = [_find(lora.source, "an adapter", absent) for lora in model.loras]
        if path is not None:
            from llamafast.engine.load import check_adapters, resolved_settings

            settings = resolved_settings(model, path)
            settings["loras"] = check_adapters(model.loras, loras, path)
    except (ConfigError, ModelLoadError) as error:
        return _Resolved(settings, error, absent)
    return _Resolved(settings, None, absent)


def _find(source: ModelSource, what: str, absent: list[str]) -> Path | None:
    """Where it is on this machine; None where it is not, and ``absent`` says why. Raises ModelLoadError."""
    from llamafast.hub import find_model

    try:
        path = find_model(source)
    except ModelAbsent as error:
        absent.append(f"{what} is not on this machine: {error}")
        return None
    if path is None and isinstance(source, FromPretrained):
        absent.append(
            f"{source.repo_id}: {source.filename} is not on this machine, or not all of it; "
            "`llamafast serve` downloads it"
        )
    return path


def _batch(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Raises ConfigError or ModelLoadError."""
    path, url, width = arguments.config, arguments.url, arguments.width
    if (path is None) == (url is None):
        parser.error("give a config file, or a server by --url")
    if width is not None and width < 1:
        parser.error("--width is a number from 1")
    config = None
    if path is not None:
        gguf = path.suffix.lower() == ".gguf"
        loaded = Config(model=ModelConfig(path=str(path))) if gguf else load_config(path)
        refuse_unsupported(loaded)
        if isinstance(loaded, PoolConfig):
            raise ConfigError("models: a batch has one model of its own; serve several, and give that server by --url")
        config = loaded
    try:
        from llamafast.batch.command import run_batch
    except ModuleNotFoundError as error:
        raise ConfigError(f"a batch needs the package {error.name}: pip install 'llamafast[batch]'") from error
    return run_batch(config, url, arguments.input, arguments.output, width)


def _check_grammars() -> int:
    from llamafast.chat.grammar.constraints import check_lines

    with suppress(BrokenPipeError):
        check_lines(sys.stdin)
    return 0


def _flush_output() -> None:
    """Whoever read the output may have enough of it (`| head`): then the rest goes nowhere, without a traceback."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _serve(config: Config | PoolConfig, verbose: bool) -> int:
    """Nothing that is told from here on waits for its reader, and all of it keeps its order."""
    lines = LogWriter()
    lines.tell_of_exceptions()
    lines.setFormatter(logging.Formatter(FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    warn_of_retired(config)
    try:
        if isinstance(config, Config) and not config.model.comes_and_goes:
            # loads llama.cpp, which `check --help` and a broken config need not wait for
            from llamafast.server import serve

            serve(config, verbose)
        else:
            _serve_pool(config, verbose)
    except (ConfigError, ModelLoadError) as error:
        lines.tell(f"llamafast: {error}")
        return 1
    return 0


def _serve_pool(config: Config | PoolConfig, verbose: bool) -> None:
    """Loads no llama.cpp: that is for the children. Raises ConfigError."""
    try:
        from llamafast.pool.parent import serve_pool
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        hint = "pip install 'llamafast[pool]'"
        raise ConfigError(f"models in processes of their own need the package {package}: {hint}") from error
    serve_pool(config, verbose)
