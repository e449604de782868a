"""docs/cli.md has every flag, every variable and the keys that they set."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from llamafast import cli
from llamafast.cli.answers import ANSWERS
from llamafast.cli.environment import CONFIG, MODEL
from llamafast.cli.flags import ALWAYS, FOREIGN, OWN, variables

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def part(name: str) -> str:
    return PAGE.partition(f"<!-- {name} -->\n")[2].partition("<!-- end -->")[0]


def test_our_settings_are_those_of_the_table() -> None:
    rows = [
        f"| `{flag.names[0]} {flag.metavar}` | `LLAMAFAST_{variable}` | `{key}` |"
        for flag, (variable, key) in zip(OWN, variables().items(), strict=True)
    ]
    assert part("settings").splitlines()[2:] == rows


def test_the_flags_of_others_are_in_the_other() -> None:
    told = re.findall(r"`(-[^` ]*)`", part("others"))
    assert len(told) == len(set(told))
    assert set(told) == {name for flag in OWN for name in flag.names[1:]} | {
        *(name for flag in FOREIGN for name in flag.names),
        "--api-key",
    }


def test_every_command_and_flag_is_documented() -> None:
    told = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", PAGE))
    (commands,) = (one for one in cli.parser()._actions if isinstance(one, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        assert name == "run" or re.search(rf"llamafast {name}\b", PAGE), name
        flags = {flag for action in command._actions for flag in action.option_strings} - set(ANSWERS)
        shown = {action.option_strings[-1] for action in command._actions if action.option_strings}
        if name in ("serve", "check", "chat", "batch"):
            known = {*told, "-h", "-cb", "-hfr", "-hff", "--hf-file", "--help", "--url", "--width"}
            assert flags <= known, flags - known
        assert shown
    assert {MODEL, CONFIG} <= set(re.findall(r"LLAMAFAST_\w+", PAGE))
    assert set(ALWAYS) - {"-cb"} <= told
