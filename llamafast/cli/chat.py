"""``llamafast chat``: its arguments; what it does is in ``talk``, which other commands need not load."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from llamafast.cli.given import add_model
from llamafast.cli.words import DEFAULT, HELP
from llamafast.config import KEY_VARIABLE

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    text = "talk to a server, or to a model, in the terminal"
    command = commands.add_parser(
        "chat", aliases=["run"], help=text, description=text, allow_abbrev=False, epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument(
        "model", nargs="?", metavar="URL|MODEL",
        help=f"a server ({DEFAULT}), whose key is in {KEY_VARIABLE}; or a GGUF, org/repo[:quant] or a config, which "
        "is served for this",
    )  # fmt: skip
    command.add_argument("--system", metavar="TEXT", default="", help="the system prompt")
    command.add_argument("--max-tokens", type=int, metavar="N", help="of an answer")
    add_model(command, model=False)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError or ModelLoadError."""
    from llamafast.cli.talk import talk

    return talk(arguments)
