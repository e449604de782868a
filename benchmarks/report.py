"""What was measured, where: a table for people, JSON lines for machines."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

import llamafast
from llamafast.bench.figures import median

ROOT = Path(__file__).parents[1]


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(": ")[2] for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit that is checked out, ``+`` when the tree differs from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return "none"
    changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if changes.stdout else "")


def conditions() -> dict[str, object]:
    """The machine and the versions a figure belongs to."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "llama_cpp_python": version("llama-cpp-python"),
        "llamafast": llamafast.__version__,
        "commit": commit(),
    }


def spread(values: Sequence[float], form: str) -> str:
    """``median (lowest-highest)``, or the one value."""
    if len(values) == 1:
        return format(values[0], form)
    return f"{median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def print_table(rows: Sequence[dict[str, str]]) -> None:
    """One line a row, columns as in the first row, numbers to the right."""
    columns = list(rows[0])
    widths = [max(len(column), *(len(row[column]) for row in rows)) for column in columns]
    for line in ({column: column for column in columns}, *rows):
        print("  ".join(line[column].rjust(width) for column, width in zip(columns, widths, strict=True)))


class Journal:
    """The ``--json`` file: one JSON object a line, appended as soon as it is known; no file without a path."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def write(self, record: str, **fields: object) -> None:
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode({"record": record, **fields}) + b"\n")
