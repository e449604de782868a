"""The code blocks of README and docs, and what is said of them in comments before them.

A block is run by its language. Before one that cannot be stands ``<!-- not run: why -->``, before one that begins a
server ``<!-- run: serve -->``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>run|not run): (?P<how>[^>]+?) -->\n\n?)?"
    r"^(?P<indent> *)```(?P<language>\S*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


class Snippet(NamedTuple):
    """``how`` is a way of running it, or with ``runs`` false why it is not run."""

    page: str
    line: int
    language: str
    text: str
    runs: bool
    how: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """What people read: of the decisions' blocks none is meant to be run."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets() -> Iterator[Snippet]:
    for page in pages():
        text = page.read_text()
        for found in _BLOCK.finditer(text):
            yield Snippet(
                str(page.relative_to(ROOT)),
                text.count("\n", 0, found.start("language")) + 1,
                found["language"],
                found["text"],
                found["mark"] != "not run",
                found["how"] or "",
            )
