"""The instructions of a Dockerfile, stage by stage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class Stage(NamedTuple):
    base: str
    instructions: list[tuple[str, str]]

    def of(self, name: str) -> list[str]:
        return [text for instruction, text in self.instructions if instruction == name]


def stages(path: Path) -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        name, _, text = line.partition(" ")
        if name == "FROM":
            base, _, stage = text.partition(" AS ")
            found[stage] = Stage(base, [])
        else:
            list(found.values())[-1].instructions.append((name, text))
    return found
