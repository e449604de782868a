"""``llamafast grammar``: what a JSON schema allows, found out without a model."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafast.errors import ConfigError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

# Exit codes; 2 is argparse's for usage.
CODES = {"accepted": 0, "refused": 1, "uncompilable": 3}
# How much of a text is shown around the byte at fault.
_BEFORE, _AFTER = 48, 24


def add(commands: Commands) -> None:
    grammar = commands.add_parser("grammar", help="what a JSON schema allows, found out without a model")
    check = grammar.add_subparsers(dest="action", required=True).add_parser(
        "check",
        help="whether data follows a schema",
        description="Whether a request with this JSON schema could be answered with this data. Without files: lines "
        '{"schema": ..., "data": ...} (or "text") from standard input, each answered with '
        '{"result": ..., "reason": ...}. '
        "The exit code is 0 where all is accepted, 1 where some is refused, 3 where a schema cannot be followed.",
    )
    check.add_argument("schema", type=Path, nargs="?", help="a file with a JSON schema")
    check.add_argument("data", type=Path, nargs="?", help="a file with a JSON value; its keys in the schema's order")
    check.add_argument("--text", action="store_true", help="the data as the file has it, with all white space")
    check.set_defaults(run=run, parser=check)


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError for files that cannot be read, or are no JSON."""
    from llamafast.chat.grammar.constraints import check_lines

    if arguments.schema is not None and arguments.data is not None:
        return _check_files(arguments.schema, arguments.data, arguments.text)
    if arguments.schema is not None or arguments.text:
        arguments.parser.error("a schema and its data are two files; without any, lines are read")
    code = 0
    with suppress(BrokenPipeError):
        for verdict in check_lines(sys.stdin):
            code = max(code, CODES[verdict.result])
    return code


def _check_files(schema: Path, data: Path, as_it_is: bool) -> int:
    from llamafast.chat.grammar.constraints import check, place, written

    value = None if as_it_is else _json(data)
    text = _read(data) if as_it_is else written(value)
    verdict = check(_json(schema), text)
    where = "" if as_it_is or verdict.at is None else f"{place(value, verdict.at)}: "
    print(f"{verdict.result}{f': {where}{verdict.reason}' if verdict.reason else ''}")
    if verdict.at is not None:
        raw = text.encode()
        before = raw[max(0, verdict.at - _BEFORE) : verdict.at].decode(errors="ignore").replace("\n", " ")
        after = raw[verdict.at : verdict.at + _AFTER].decode(errors="ignore").replace("\n", " ")
        print(f"  {before}{after}\n  {' ' * len(before)}^")
    return CODES[verdict.result]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path.absolute()}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.absolute()}: is not UTF-8: {error.reason} at byte {error.start}") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path.absolute()}: is not JSON: {error}") from error
