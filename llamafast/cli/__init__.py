"""The command line: one module a command, each with ``add`` (its arguments) and ``run`` (its exit code)."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterator, Sequence

from llamafast import __version__
from llamafast.cli import batch, bench, chat, check, grammar, serve
from llamafast.cli.answers import COMMANDS as COMMANDS_OF_OTHERS
from llamafast.cli.answers import family
from llamafast.cli.flags import ALWAYS, refuse
from llamafast.cli.words import harmless
from llamafast.config.neighbours import hint_for
from llamafast.config_file import keys_called
from llamafast.console import open_standard_streams
from llamafast.errors import ConfigError, ModelLoadError

COMMANDS = (serve, chat, check, batch, bench, grammar)
# How much of a flag another one has to have to be meant: --cache-typ-k is --cache-type-k, of what is no known kind of
# flags --prot is --port, and --grammar is never --mmap.
_LIKE = (0.9, 0.82)
INTERRUPTED = 130  # what shells make of SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the process's exit code: 0, 1 for a config or model that cannot be served, 2 for usage."""
    try:
        return _run(argv)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return 0
    finally:
        _flush_output()


def _run(argv: Sequence[str] | None) -> int:
    open_standard_streams()
    arguments = parse(argv)
    try:
        code: int = arguments.run(arguments)
    except (ConfigError, ModelLoadError) as error:
        print(f"llamafast: {harmless(str(error))}", file=sys.stderr)
        return 1
    return code


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Says of flags that are nobody's which are meant, and ends."""
    whole = parser()
    words = sys.argv[1:] if argv is None else list(argv)
    (commands,) = (one.choices for one in whole._actions if isinstance(one, argparse._SubParsersAction))
    if words and words[0] not in (*commands, "-h", "--help", "--version"):
        if (told := COMMANDS_OF_OTHERS.get(words[0])) is not None:
            refuse(whole, f"{words[0]}: is no command here; {told}")
        meant = difflib.get_close_matches(words[0], commands, n=1) or ["serve"]
        rest = words[1:] if words[0].isalpha() else words
        hint = " ".join([whole.prog, meant[0], *rest])
        refuse(whole, f"{words[0]}: is no command, of {', '.join(commands)}; did you mean `{hint}`?")
    for word in _clusters(words[1:], commands.get(words[0]) if words else None):
        refuse(whole, f"{word}: {_suggestion(word, tuple(commands[words[0]]._option_string_actions))}")
    arguments, unknown = whole.parse_known_args(words)
    for word in unknown:
        flag = word.partition("=")[0]
        if flag.startswith("-"):
            refuse(whole, f"{flag}: {_suggestion(flag, arguments.flags)}")
    if unknown:
        refuse(whole, f"{unknown[0]}: one argument too many")
    return arguments


def _clusters(words: Sequence[str], command: argparse.ArgumentParser | None) -> Iterator[str]:
    """Flags that are nobody's and that argparse would read as a short one without a value and more: -hfd is no -h."""
    if command is None:
        return
    bare = {name for action in command._actions if action.nargs == 0 for name in action.option_strings}
    for word in words:
        flag = word.partition("=")[0]
        if len(flag) > len("-h") and flag[:2] in bare and flag not in command._option_string_actions:
            yield flag


def _suggestion(flag: str, known: Sequence[str]) -> str:
    if (always := flag.replace("--no-", "--", 1)) != flag and always in (*ALWAYS, "--slots"):
        return f"{always} is always so here"
    if (hint := hint_for(flag)) is not None:
        return f"no such flag; {hint} Any key is set by --set KEY=VALUE" if hint.endswith("?") else hint
    for like in _LIKE:
        if nearest := difflib.get_close_matches(flag, known, n=1, cutoff=like):
            return f"no such flag; did you mean {nearest[0]}?"
        if (told := family(flag)) is not None:
            return told
        if keys := keys_called(flag.lstrip("-").replace("-", "_")):
            return f"no such flag; --set {keys[0]}=VALUE is the same"
    return "no such flag; any key of a config is set by --set KEY=VALUE"


def parser() -> argparse.ArgumentParser:
    """Every command with all of its arguments."""
    whole = argparse.ArgumentParser(prog="llamafast", description="An OpenAI-compatible server for GGUF models.")
    whole.add_argument("--version", action="version", version=__version__)
    commands = whole.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add(commands)
    for one in commands.choices.values():
        one.set_defaults(flags=tuple(one._option_string_actions))
    return whole


def _flush_output() -> None:
    """Whoever read the output may have enough of it (`| head`): then the rest goes nowhere, without a traceback."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
