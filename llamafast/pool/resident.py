"""How much host memory a child has had at most, with the processes that it started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


def peak_bytes(pid: int, proc: Path = PROC) -> int | None:
    """The resident memory of a process and all below it, each at its own peak; None where the system does not tell, or
    the process has ended."""
    if (own := _peak(proc / str(pid))) is None:
        return None
    return own + sum(_peak(proc / str(child)) or 0 for child in _below(pid, proc))


def _below(pid: int, proc: Path) -> Iterator[int]:
    for file in proc.glob(f"{pid}/task/*/children"):
        try:
            children = file.read_text().split()
        except OSError:  # ended meanwhile
            continue
        for child in map(int, children):
            yield child
            yield from _below(child, proc)


def _peak(folder: Path) -> int | None:
    try:
        lines = (folder / "status").read_text().splitlines()
    except OSError:
        return None
    # a process that has ended and is not waited for has no such line
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
